/* server_inside.h - what the server's files share.
 *
 *   server.c    open, close, the thread, what Python calls
 *   serve.c     a connection's packets
 *   requests.c  rows: from a segment to an engine and back
 *
 * All under the server's lock. */
#ifndef FS_MANAGER_SERVER_INSIDE_H
#define FS_MANAGER_SERVER_INSIDE_H

#include "base/clock.h"
#include "base/thread.h"
#include "manager/packet.h"
#include "manager/segment.h"
#include "manager/server.h"
#include "manager/store.h"

#include <sys/queue.h>

enum {
    FS_SUBMIT_ROWS = 1 << 16,     /* of one job */
    FS_FED_ROWS = 4096,           /* rows that an engine is given at a time, or one job */
    FS_FED_BYTES = 256 << 20,     /* of their results */
    FS_HELD_BYTES = 256 << 20,    /* of rows that a connection may have waiting; it is not read beyond */
    FS_HELD_JOBS = 4096,
    FS_UNSENT_BYTES = 64 << 20,   /* that a worker has not read: beyond, it is cut off */
    FS_SEGMENTS = 1024,           /* of a connection */
    FS_OPEN_ASKS = 64,
    FS_REASSURE_MS = 1000 /* how often a full connection, whose PINGs are not read, gets a PONG */
};

typedef struct fs_connection fs_connection;
typedef struct fs_model fs_model;

/* A job's life:  WAITING -[start]-> RUNNING -[finish]-> gone.  A RUNNING one whose worker cancelled or left loses its
 * connection, and is dropped when the engine lets go of it. */
typedef struct fs_asked {
    fs_connection *connection; /* NULL: nobody waits for it */
    fs_model *model;           /* NULL: not served; it fails */
    uint64_t id;
    fs_submit submit;
    fs_task task;
    char *rows;        /* a copy of them */
    fs_tokens source, targets;
    float *results;    /* [submit.result_floats], while it runs */
    fs_job *job;       /* NULL: all were known */
    int64_t *computed; /* rows given to the engine, where not all were; with their own offsets, ids and results */
    int64_t computed_count;
    char *fewer;
    float *fewer_results;
    int64_t hits;
    TAILQ_ENTRY(fs_asked) link; /* of its connection while WAITING, of its model while RUNNING */
} fs_asked;
TAILQ_HEAD(fs_asked_list, fs_asked);

typedef struct fs_unsent {
    STAILQ_ENTRY(fs_unsent) link;
    fs_packet_kind kind;
    uint64_t id;
    size_t bytes;
    char body[];
} fs_unsent;

typedef struct {
    uint64_t id;
    fs_segment memory;
} fs_known_segment;

struct fs_connection {
    uint64_t id;
    int fd, pid, uid;
    int greeted, gone; /* gone: closed at the end of this turn */
    int64_t told_ns;   /* when a full one was last told that the server lives */
    uint32_t watched;  /* epoll events */
    fs_known_segment *segments;
    int segment_count, segment_room, open_asks;
    struct fs_asked_list waiting;
    size_t held_bytes, unsent_bytes;
    int64_t jobs, rows, done_rows, hits, duplicates; /* jobs, rows: waiting and running */
    STAILQ_HEAD(, fs_unsent) unsent;
    TAILQ_ENTRY(fs_connection) link;
};

struct fs_model {
    uint64_t id;
    fs_engine *engine;
    struct fs_asked_list running;
    int64_t fed_rows, last_row_ns;
    size_t fed_bytes;
    TAILQ_ENTRY(fs_model) link;
};

typedef struct fs_queued_ask {
    fs_ask ask;
    STAILQ_ENTRY(fs_queued_ask) link;
} fs_queued_ask;

struct fs_server {
    int listening, epoll, wake;
    char build[FS_BUILD_BYTES];
    pthread_t thread;
    int started, stopping;
    pthread_mutex_t lock;
    pthread_cond_t asked;
    uint64_t last_connection;
    int64_t last_row_ns;
    TAILQ_HEAD(, fs_connection) connections; /* the first is the next to be served */
    TAILQ_HEAD(, fs_model) models;
    STAILQ_HEAD(, fs_queued_ask) asks;
    fs_store *store;
    fs_packet packet; /* the one that is looked at */
    int64_t crash; /* test mode: the token id to die of; -1: none */
    fs_server_stats stats;
};

/* server.c */
fs_model *fs_server_model(fs_server *s, uint64_t id); /* NULL: not served */
void fs_server_wake(fs_server *s);

/* serve.c */
fs_status fs_connection_accept(fs_server *s);
void fs_connection_read(fs_server *s, fs_connection *c);
void fs_connection_write(fs_server *s, fs_connection *c); /* what was not sent */
void fs_connection_watch(fs_server *s, fs_connection *c); /* what epoll shall tell of it, as things are now */
void fs_connection_end(fs_server *s, fs_connection *c);
void fs_connection_send(fs_server *s, fs_connection *c, fs_packet_kind kind, uint64_t id, const void *body,
                        size_t bytes);
/* Tells the worker why, and hangs up. */
void fs_connection_refuse(fs_server *s, fs_connection *c, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int fs_connection_full(const fs_connection *c); /* it is not read until some of its rows are done */
void fs_connection_reassure(fs_server *s, fs_connection *c);
fs_segment *fs_connection_segment(fs_connection *c, uint64_t id);

/* requests.c */
void fs_asked_submit(fs_server *s, fs_connection *c, uint64_t id, const fs_submit *submit);
void fs_asked_cancel(fs_server *s, fs_connection *c, uint64_t id);
void fs_asked_forget(fs_server *s, fs_connection *c); /* all of a connection that ends */
void fs_server_feed(fs_server *s);                     /* engines that have room get rows */
void fs_model_collect(fs_server *s, fs_model *m);      /* jobs that have finished */
void fs_model_abandon(fs_server *s, fs_model *m);      /* all of its jobs fail; waits for those that run */

#endif
