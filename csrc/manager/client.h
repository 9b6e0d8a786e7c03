/* client.h - a worker's end of a manager: memory that both see, asks, jobs.
 *
 * A client outlives its connection: when the manager dies, every wait fails with FS_MANAGER, and fs_client_connect with
 * a new socket makes it whole again, with the same memory (results that are there stay). Jobs of the old connection
 * have failed; submit them again.
 *
 * Thread-safe. Whoever waits reads packets for all; a manager that says nothing to a PING for as long as `patience` is
 * given up. A forked child's client answers FS_DEVICE to everything but disconnect and free, which leave the parent's
 * connection alone. */
#ifndef FS_MANAGER_CLIENT_H
#define FS_MANAGER_CLIENT_H

#include "manager/protocol.h"

typedef struct fs_client fs_client;
typedef struct fs_client_job fs_client_job;

fs_status fs_client_new(fs_client **out, const char *build, double patience_seconds);
void fs_client_free(fs_client *c); /* NULL is fine. Arrays and jobs of it may live on, and keep the memory */
/* Says HELLO over a connected socket, which is the client's from now on, success or not. FS_MANAGER with the manager's own
 * sentence where it refuses. Whatever was connected before is given up. */
fs_status fs_client_connect(fs_client *c, int socket);
void fs_client_disconnect(fs_client *c);
int fs_client_manager_pid(fs_client *c); /* 0: not connected */

/* Shared memory for results, 64-byte aligned; contents undefined. */
fs_status fs_client_take(fs_client *c, size_t bytes, void **out);
void fs_client_give(fs_client *c, void *at);

/* JSON there and back; descriptors are copied. *out is freed with fs_free. */
fs_status fs_client_ask(fs_client *c, const char *body, size_t bytes, const int *fds, int fd_count, char **out,
                        size_t *out_bytes);

/* As fs_engine_submit, but `out` must be memory of fs_client_take; everything else is copied before it returns. */
fs_status fs_client_submit(fs_client *c, uint64_t model, const fs_request *r, fs_client_job **out);
fs_status fs_client_job_wait(fs_client_job *j, double seconds, int *done);
int64_t fs_client_job_errors(fs_client_job *j, const fs_row_error **out); /* ordered by row; borrowed */
int64_t fs_client_job_hits(const fs_client_job *j); /* rows that the manager knew from before */
int64_t fs_client_job_duplicates(const fs_client_job *j); /* rows that it copied from an equal row */
void fs_client_job_cancel(fs_client_job *j); /* its rows leave the queue; wait then answers FS_CANCELLED */
void fs_client_job_free(fs_client_job *j); /* cancels; NULL is fine */

#endif
