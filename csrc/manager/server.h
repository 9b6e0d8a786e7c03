/* server.h - the manager's end: one thread between the sockets of workers and engines.
 *
 *     worker --packets--> I/O thread --rows--> engine          asks (JSON): queued for whoever calls fs_server_take
 *            <-packets--             <-eventfd-
 *
 * Rows are copied out of the worker's memory before anything looks at them, results are computed in memory of our own and
 * copied in: nothing that a worker does to its segments, and no death of it, reaches an engine. Each engine is given
 * but so many rows at a time, from one connection after the other, and a connection that has sent much more than that is
 * not read until some of it is done: tasks share fairly, and a stream that is full does not hold up another.
 *
 * Thread-safe. One lock over all; the I/O thread holds it but while it waits. Nothing is called back. */
#ifndef FS_MANAGER_SERVER_H
#define FS_MANAGER_SERVER_H

#include "manager/protocol.h"

typedef struct fs_server fs_server;

typedef struct {
    const char *build;  /* a worker of another one is refused */
    size_t store_bytes; /* of results that are kept for rows that come again */
} fs_server_options;

typedef struct {
    uint64_t connection, serial;
    char *body; /* JSON, of the worker: believe nothing */
    size_t bytes;
    int *fds;
    int fd_count;
} fs_ask;

typedef struct {
    uint64_t connection;
    int pid, uid;
    int64_t jobs, rows, waiting_rows; /* not done yet; waiting: not given to an engine either */
    int64_t done_rows, hits, duplicates;
} fs_client_info;

typedef struct {
    int64_t rows, hits, duplicates, jobs, refused; /* done; refused: connections that were cut off */
    int64_t waiting_rows, running_rows; /* not given to an engine yet; given and not done */
    size_t store_bytes;
    double idle_seconds; /* since a row was last asked for or done; 0 while rows are not done */
} fs_server_stats;

/* `listening`: a socket that listens for SOCK_SEQPACKET; stays the caller's. Workers of another user are refused. */
fs_status fs_server_open(fs_server **out, int listening, const fs_server_options *options);
void fs_server_close(fs_server *s); /* workers see the connection end; NULL is fine */

/* The oldest ask; *out is NULL when none has come in that time (seconds). */
fs_status fs_server_take(fs_server *s, double seconds, fs_ask **out);
void fs_ask_free(fs_ask *a); /* closes its descriptors; NULL is fine */
/* Fine where the worker has gone. FS_REQUEST: more bytes than a packet has. */
fs_status fs_server_answer(fs_server *s, uint64_t connection, uint64_t serial, const char *body, size_t bytes);
/* Rows for `model` go to the engine, from now until fs_server_retire; the engine outlives that. */
fs_status fs_server_serve(fs_server *s, uint64_t model, fs_engine *engine);
/* Its rows fail with a sentence; when it returns the engine is no longer used. */
void fs_server_retire(fs_server *s, uint64_t model);
/* Rows of the model that are not done, and how long ago one was. */
int64_t fs_server_use_of(fs_server *s, uint64_t model, double *idle_seconds);

int fs_server_clients(fs_server *s, fs_client_info *out, int room); /* how many there are */
fs_server_stats fs_server_stats_read(fs_server *s);

#endif
