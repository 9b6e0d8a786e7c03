#define _GNU_SOURCE
#include "manager/client.h"

#include "base/alloc.h"
#include "base/clock.h"
#include "manager/packet.h"
#include "manager/shared.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

enum { POLL_MS = 50, SEND_PATIENCE = 20 /* times that of an answer: a manager that is full does not read */ };

#define SLICE_NS 500000000 /* no longer goes by between two slices of one wait */

typedef struct ask {
    uint64_t serial;
    int done;
    char *body;
    size_t bytes;
    fs_error error;
    TAILQ_ENTRY(ask) link;
} ask;

struct fs_client_job {
    fs_client *client;
    uint64_t id;
    int finished, unread; /* unread: in the list of those whose DONE is to come */
    void *rows;           /* a piece of it, until DONE */
    fs_error error;
    fs_row_error *errors;
    int64_t error_count, error_room, hits, duplicates;
    TAILQ_ENTRY(fs_client_job) link;
};

struct fs_client {
    atomic_int refs; /* the owner's, and one a job and a piece of memory */
    pid_t pid;
    char build[FS_BUILD_BYTES];
    double patience;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int socket, manager_pid;
    int reading, sending; /* a thread is at it, with the lock let go */
    int waiters;
    int64_t heard_ns, pinged_ns, waited_ns; /* the last packet, PING, end of a wait */
    fs_error broken;
    uint64_t last_id;
    TAILQ_HEAD(, fs_client_job) jobs; /* unread */
    TAILQ_HEAD(, ask) asks;
    fs_shared shared;
    fs_packet packet;
};

static fs_status not_ours(const fs_client *c) {
    return fs_fail(FS_DEVICE,
                   "this connection to the manager belongs to process %d and this is process %d, forked from it; "
                   "connect here",
                   (int)c->pid, (int)getpid());
}

/* -- the connection's end ------------------------------------------------------------------------------------------ */

/* Under the lock. Everybody who waits gets the sentence. gone: the manager has unmapped our memory, or lives no more; else
 * it may still write to it, and no new piece may lie there. */
static void end_connection(fs_client *c, fs_status st, int gone) {
    fs_client_job *j;
    ask *a;
    if (c->broken.status != FS_OK) return;
    fs_error_take(&c->broken, st);
    if (!gone) fs_shared_abandon(&c->shared);
    if (c->socket >= 0) shutdown(c->socket, SHUT_RDWR);
    while ((j = TAILQ_FIRST(&c->jobs))) {
        TAILQ_REMOVE(&c->jobs, j, link);
        j->unread = 0, j->finished = 1, j->error = c->broken;
    }
    while ((a = TAILQ_FIRST(&c->asks))) {
        TAILQ_REMOVE(&c->asks, a, link);
        a->done = 1, a->error = c->broken;
    }
    pthread_cond_broadcast(&c->moved);
}

static void break_off(fs_client *c, fs_status st) { end_connection(c, st, 0); }

static void hung_up(fs_client *c) {
    end_connection(c, fs_fail(FS_MANAGER, "the manager (process %d) has gone", c->manager_pid), 1);
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

static fs_client_job *job_of(fs_client *c, uint64_t id) {
    fs_client_job *j;
    TAILQ_FOREACH(j, &c->jobs, link) if (j->id == id) break;
    return j;
}

static void add_faults(fs_client *c, const fs_packet *p) {
    fs_client_job *j = job_of(c, p->head.id);
    const int64_t count = (int64_t)(p->body_bytes / sizeof(fs_fault));
    if (!j) return;
    if (j->error_count + count > j->error_room) {
        int64_t room = 2 * (j->error_count + count);
        fs_status st = fs_realloc(&j->errors, (size_t)room, sizeof *j->errors);
        if (st != FS_OK) {
            fs_error_take(&j->error, st);
            return;
        }
        j->error_room = room;
    }
    for (int64_t i = 0; i < count; i++) {
        fs_fault f;
        fs_row_error *e = &j->errors[j->error_count++];
        memcpy(&f, p->body + (size_t)i * sizeof f, sizeof f);
        f.text[sizeof f.text - 1] = 0;
        *e = (fs_row_error){ .row = f.row, .code = (fs_row_code)f.code };
        snprintf(e->text, sizeof e->text, "%s", f.text);
    }
}

static void finish(fs_client *c, const fs_packet *p) {
    fs_client_job *j = job_of(c, p->head.id);
    fs_shared_segment *empty;
    fs_done done = { .status = FS_MANAGER, .text = "the manager has sent a DONE that is none" };
    if (!j) return;
    if (p->body_bytes == sizeof done) memcpy(&done, p->body, sizeof done);
    done.text[sizeof done.text - 1] = 0;
    if (j->error.status == FS_OK && done.status != FS_OK) {
        j->error.status = done.status > FS_OK && done.status < FS_STATUS_COUNT ? (fs_status)done.status : FS_MANAGER;
        snprintf(j->error.text, sizeof j->error.text, "%s", done.text);
    }
    j->hits = done.hits, j->duplicates = done.duplicates;
    TAILQ_REMOVE(&c->jobs, j, link);
    fs_shared_give(&c->shared, j->rows, &empty);
    j->rows = NULL;
    j->unread = 0, j->finished = 1;
}

static void answered(fs_client *c, const fs_packet *p) {
    ask *a;
    TAILQ_FOREACH(a, &c->asks, link) if (a->serial == p->head.id) break;
    if (!a) return;
    TAILQ_REMOVE(&c->asks, a, link);
    fs_status st = fs_alloc(&a->body, 1, p->body_bytes + 1);
    if (st == FS_OK) memcpy(a->body, p->body, p->body_bytes), a->bytes = p->body_bytes;
    else fs_error_take(&a->error, st);
    a->done = 1;
}

static void dispatch(fs_client *c, const fs_packet *p) {
    fs_hello theirs;
    switch ((fs_packet_kind)p->head.kind) {
    case FS_PACKET_WELCOME:
        memcpy(&theirs, p->body, p->body_bytes < sizeof theirs ? p->body_bytes : sizeof theirs);
        c->manager_pid = p->body_bytes == sizeof theirs ? (int)theirs.pid : -1;
        break;
    case FS_PACKET_ANSWER: answered(c, p); break;
    case FS_PACKET_FAULTS: add_faults(c, p); break;
    case FS_PACKET_DONE: finish(c, p); break;
    case FS_PACKET_PONG: break;
    case FS_PACKET_REFUSED: break_off(c, fs_fail(FS_MANAGER, "the manager hung up: %.900s", p->body)); break;
    default:
        break_off(c, fs_fail(FS_MANAGER, "the manager has sent %s, which it never does", fs_packet_name(p->head.kind)));
    }
}

/* Under the lock: all packets that are there. */
static void read_all(fs_client *c) {
    while (c->broken.status == FS_OK) {
        fs_received got = fs_packet_receive(c->socket, &c->packet);
        if (got == FS_NOTHING_THERE) return;
        if (got == FS_HUNG_UP) hung_up(c);
        if (got == FS_MALFORMED) break_off(c, fs_fail(FS_MANAGER, "the manager has sent a packet that is none"));
        if (got != FS_RECEIVED) return;
        c->heard_ns = fs_now_ns();
        dispatch(c, &c->packet);
        fs_packet_close_fds(&c->packet);
    }
}

/* Someone who waits hears nothing: a PING, and in the end the connection is given up. */
static void check_patience(fs_client *c, double factor) {
    const double silent = (double)(fs_now_ns() - c->heard_ns) * 1e-9;
    if (silent > c->patience * factor) {
        break_off(c, fs_fail(FS_MANAGER,
                             "the manager (process %d) has not answered for %.0f s; see its log, or end it and "
                             "try again",
                             c->manager_pid, silent));
    } else if (silent > c->patience / 3 && c->pinged_ns < c->heard_ns && !c->sending) {
        c->pinged_ns = fs_now_ns();
        fs_packet_send(c->socket, FS_PACKET_PING, 0, NULL, 0, NULL, 0); /* not sent: its answer will be missed */
    }
}

/* Under the lock, which it lets go for up to 50 ms or until something has moved. */
static void pump(fs_client *c, int64_t until_ns) {
    int64_t left_ms = (until_ns - fs_now_ns()) / 1000000 + 1;
    int ms = left_ms < 0 ? 0 : left_ms < POLL_MS ? (int)left_ms : POLL_MS;
    if (c->reading) {
        struct timespec at = fs_deadline(ms * 1e-3);
        pthread_cond_timedwait(&c->moved, &c->lock, &at);
        return;
    }
    struct pollfd p = { .fd = c->socket, .events = POLLIN };
    c->reading = 1;
    pthread_mutex_unlock(&c->lock);
    poll(&p, 1, ms);
    pthread_mutex_lock(&c->lock);
    read_all(c);
    if (c->broken.status == FS_OK) check_patience(c, 1);
    c->reading = 0;
    pthread_cond_broadcast(&c->moved);
}

/* Silence counts while somebody waits; who waits in slices does so all the time. */
static void wait_begins(fs_client *c) {
    const int64_t now = fs_now_ns();
    if (c->waiters++ == 0 && now - c->waited_ns > SLICE_NS) c->heard_ns = now;
}

static void wait_ends(fs_client *c) {
    c->waiters--;
    c->waited_ns = fs_now_ns();
}

/* -- sending ------------------------------------------------------------------------------------------------------- */

/* One thread sends at a time, so that what belongs together arrives together. */
static void sending_begins(fs_client *c) {
    while (c->sending) pthread_cond_wait(&c->moved, &c->lock);
    c->sending = 1;
}

static void sending_ends(fs_client *c) {
    c->sending = 0;
    pthread_cond_broadcast(&c->moved);
}

/* Where the socket is full: the manager may be full itself, until jobs of ours are done. */
static void wait_until_sendable(fs_client *c) {
    struct pollfd p = { .fd = c->socket, .events = POLLOUT | (c->reading ? 0 : POLLIN) };
    const int reads = !c->reading;
    c->reading |= reads;
    pthread_mutex_unlock(&c->lock);
    poll(&p, 1, POLL_MS);
    pthread_mutex_lock(&c->lock);
    if (reads) {
        read_all(c);
        c->reading = 0;
        pthread_cond_broadcast(&c->moved);
    }
    if (c->broken.status == FS_OK) check_patience(c, SEND_PATIENCE);
}

static fs_status send_packet(fs_client *c, fs_packet_kind kind, uint64_t id, const void *body, size_t bytes,
                             const int *fds, int fd_count) {
    for (;;) {
        if (c->broken.status != FS_OK) return fs_error_raise(&c->broken);
        switch (fs_packet_send(c->socket, kind, id, body, bytes, fds, fd_count)) {
        case FS_SENT: return FS_OK;
        case FS_WOULD_BLOCK: wait_until_sendable(c); break;
        case FS_PEER_GONE:
            read_all(c); /* it may have said why */
            hung_up(c);
        }
    }
}

/* -- open and close ------------------------------------------------------------------------------------------------ */

fs_status fs_client_new(fs_client **out, const char *build, double patience_seconds) {
    fs_client *c;
    *out = NULL;
    FS_TRY(fs_alloc(&c, 1, sizeof *c));
    atomic_init(&c->refs, 1);
    c->pid = getpid(), c->patience = patience_seconds, c->socket = -1;
    snprintf(c->build, sizeof c->build, "%s", build);
    pthread_mutex_init(&c->lock, NULL);
    fs_cond_init(&c->moved);
    TAILQ_INIT(&c->jobs);
    TAILQ_INIT(&c->asks);
    fs_shared_open(&c->shared);
    c->broken = (fs_error){ .status = FS_MANAGER, .text = "no manager is connected" };
    *out = c;
    return FS_OK;
}

static void unref(fs_client *c) {
    if (atomic_fetch_sub(&c->refs, 1) > 1 || c->pid != getpid()) return;
    if (c->socket >= 0) close(c->socket);
    fs_shared_close(&c->shared);
    pthread_cond_destroy(&c->moved);
    pthread_mutex_destroy(&c->lock);
    fs_free(c);
}

void fs_client_free(fs_client *c) {
    if (!c) return;
    fs_client_disconnect(c);
    unref(c);
}

/* Under the lock: nobody is at the socket any more. */
static void close_socket(fs_client *c) {
    while (c->reading || c->sending) pthread_cond_wait(&c->moved, &c->lock);
    if (c->socket >= 0) close(c->socket);
    c->socket = -1, c->manager_pid = 0;
    fs_shared_unannounce(&c->shared);
}

/* A fork's copy leaves socket and lock alone: they are the parent's. */
void fs_client_disconnect(fs_client *c) {
    if (c->pid != getpid()) return;
    pthread_mutex_lock(&c->lock);
    break_off(c, fs_fail(FS_MANAGER, "the connection to the manager was closed; connect again"));
    close_socket(c);
    pthread_mutex_unlock(&c->lock);
}

fs_status fs_client_connect(fs_client *c, int socket) {
    fs_status st = FS_OK;
    fs_hello ours = { .protocol = FS_PROTOCOL, .pid = (uint32_t)getpid() };
    if (c->pid != getpid()) {
        close(socket);
        return not_ours(c);
    }
    fs_client_disconnect(c);
    pthread_mutex_lock(&c->lock);
    c->socket = socket;
    memset(&c->broken, 0, sizeof c->broken);
    snprintf(ours.build, sizeof ours.build, "%s", c->build);
    wait_begins(c);
    st = send_packet(c, FS_PACKET_HELLO, 0, &ours, sizeof ours, NULL, 0);
    while (c->broken.status == FS_OK && c->manager_pid == 0) pump(c, INT64_MAX);
    wait_ends(c);
    if (c->broken.status != FS_OK) st = fs_error_raise(&c->broken);
    pthread_mutex_unlock(&c->lock);
    return st;
}

int fs_client_manager_pid(fs_client *c) {
    if (c->pid != getpid()) return 0;
    pthread_mutex_lock(&c->lock);
    int pid = c->broken.status == FS_OK ? c->manager_pid : 0;
    pthread_mutex_unlock(&c->lock);
    return pid;
}

/* -- memory -------------------------------------------------------------------------------------------------------- */

/* Under the lock. One empty segment is kept for what comes next; the manager need not map the others. */
static void give_back(fs_client *c, void *at) {
    fs_shared_segment *empty, *s;
    int spare = 0;
    if (!at) return;
    fs_shared_give(&c->shared, at, &empty);
    if (!empty) return;
    TAILQ_FOREACH(s, &c->shared.segments, link) spare |= s != empty && !s->abandoned && fs_shared_is_empty(s);
    if (!spare && !empty->abandoned) return;
    if (empty->announced && c->broken.status == FS_OK) {
        if (c->sending) return; /* it stays until it is empty again */
        fs_packet_send(c->socket, FS_PACKET_DROP, empty->id, NULL, 0, NULL, 0); /* not sent: it stays mapped there */
    }
    fs_shared_drop(&c->shared, empty);
}

fs_status fs_client_take(fs_client *c, size_t bytes, void **out) {
    *out = NULL;
    if (c->pid != getpid()) return not_ours(c);
    pthread_mutex_lock(&c->lock);
    fs_status st = fs_shared_take(&c->shared, bytes, out);
    if (st == FS_OK) atomic_fetch_add(&c->refs, 1);
    pthread_mutex_unlock(&c->lock);
    return st;
}

void fs_client_give(fs_client *c, void *at) {
    if (c->pid != getpid()) return;
    pthread_mutex_lock(&c->lock);
    give_back(c, at);
    pthread_mutex_unlock(&c->lock);
    unref(c);
}

/* -- asks ---------------------------------------------------------------------------------------------------------- */

fs_status fs_client_ask(fs_client *c, const char *body, size_t bytes, const int *fds, int fd_count, char **out,
                        size_t *out_bytes) {
    ask a = { 0 };
    const size_t most = FS_PACKET_BYTES - sizeof(fs_packet_head);
    *out = NULL, *out_bytes = 0;
    if (c->pid != getpid()) return not_ours(c);
    if (bytes > most || fd_count > FS_PACKET_FDS)
        return fs_fail(FS_REQUEST, "an ask has %zu bytes and %d files; at most %zu and %d go", bytes, fd_count, most,
                       FS_PACKET_FDS);
    pthread_mutex_lock(&c->lock);
    wait_begins(c);
    sending_begins(c);
    a.serial = ++c->last_id;
    fs_status st = c->broken.status == FS_OK ? FS_OK : fs_error_raise(&c->broken);
    if (st == FS_OK) {
        TAILQ_INSERT_TAIL(&c->asks, &a, link);
        st = send_packet(c, FS_PACKET_ASK, a.serial, body, bytes, fds, fd_count); /* a failure has taken it out */
    }
    sending_ends(c);
    while (st == FS_OK && !a.done) pump(c, INT64_MAX);
    wait_ends(c);
    pthread_mutex_unlock(&c->lock);
    FS_TRY(st);
    if (a.error.status != FS_OK) return fs_error_raise(&a.error);
    *out = a.body, *out_bytes = a.bytes;
    return FS_OK;
}

/* -- jobs ---------------------------------------------------------------------------------------------------------- */

static char *copy_side(char *at, const fs_tokens *t, int64_t rows) {
    const int64_t tokens = t->offsets[rows];
    const size_t offsets = ((size_t)rows + 1) * sizeof *t->offsets;
    memcpy(at, t->offsets, offsets);
    if (t->features) memcpy(at + offsets, t->features, (size_t)(tokens * t->width) * sizeof *t->features);
    else if (tokens) memcpy(at + offsets, t->ids, (size_t)tokens * sizeof *t->ids);
    return at + fs_side_bytes(rows, tokens, t->features ? t->width : 0);
}

static fs_submit submit_of(const fs_request *r, uint64_t model) {
    fs_submit q;
    memset(&q, 0, sizeof q);
    q.model = model, q.count = r->rows, q.result_floats = r->out_floats;
    q.tokens = r->source.offsets[r->rows], q.width = r->source.features ? r->source.width : 0;
    q.target_tokens = r->targets.offsets ? r->targets.offsets[r->rows] : -1;
    q.target_width = r->targets.features ? r->targets.width : 0;
    q.task = (int32_t)r->task.kind, q.normalize = r->task.normalize, q.dimensions = r->task.dimensions;
    q.pooling_count = r->task.pooling_count;
    for (int i = 0; i < r->task.pooling_count && i < FS_POOL_COUNT; i++) q.pooling[i] = (int32_t)r->task.pooling[i];
    return q;
}

/* Under the lock. Where a piece is, for the manager; it is told of the segment first. */
static fs_status place_of(fs_client *c, const void *at, size_t bytes, fs_place *out) {
    fs_shared_segment *s = fs_shared_find(&c->shared, at, bytes);
    if (!s) return fs_fail(FS_REQUEST, "out is no memory that this connection has given; take it from empty()");
    *out = (fs_place){ .segment = s->id, .at = (uint64_t)((const char *)at - s->memory.at) };
    if (s->announced) return FS_OK;
    uint64_t size = s->memory.bytes;
    FS_TRY(send_packet(c, FS_PACKET_SEGMENT, s->id, &size, sizeof size, &s->memory.fd, 1));
    s->announced = 1;
    return FS_OK;
}

static fs_status send_job(fs_client *c, fs_client_job *j, fs_submit *q, const fs_request *r, uint64_t bytes) {
    fs_status st = FS_OK;
    sending_begins(c);
    FS_GO(place_of(c, j->rows, (size_t)bytes, &q->rows));
    if (r->out_floats) FS_GO(place_of(c, r->out, (size_t)r->out_floats * sizeof *r->out, &q->results));
    else q->results = q->rows;
    if (c->broken.status != FS_OK) FS_GO(fs_error_raise(&c->broken));
    TAILQ_INSERT_TAIL(&c->jobs, j, link);
    j->unread = 1;
    FS_GO(send_packet(c, FS_PACKET_SUBMIT, j->id, q, sizeof *q, NULL, 0)); /* a failure has taken it out */
done:
    sending_ends(c);
    return st;
}

fs_status fs_client_submit(fs_client *c, uint64_t model, const fs_request *r, fs_client_job **out) {
    fs_status st = FS_OK;
    fs_client_job *j;
    fs_submit q = submit_of(r, model);
    uint64_t bytes = fs_side_bytes(q.count, q.tokens, q.width);
    *out = NULL;
    if (c->pid != getpid()) return not_ours(c);
    if (q.target_tokens >= 0) bytes += fs_side_bytes(q.count, q.target_tokens, q.target_width);
    FS_TRY(fs_alloc(&j, 1, sizeof *j));
    pthread_mutex_lock(&c->lock);
    j->client = c, j->id = ++c->last_id;
    atomic_fetch_add(&c->refs, 1);
    FS_GO(fs_shared_take(&c->shared, (size_t)bytes, &j->rows));
    char *at = copy_side(j->rows, &r->source, r->rows);
    if (q.target_tokens >= 0) copy_side(at, &r->targets, r->rows);
    FS_GO(send_job(c, j, &q, r, bytes));
    *out = j;
    j = NULL;
done:
    pthread_mutex_unlock(&c->lock);
    fs_client_job_free(j);
    return st;
}

fs_status fs_client_job_wait(fs_client_job *j, double seconds, int *done) {
    fs_client *c = j->client;
    const int64_t until = seconds < 0 || seconds > 1e9 ? INT64_MAX : fs_now_ns() + (int64_t)(seconds * 1e9);
    *done = 0;
    if (c->pid != getpid()) return not_ours(c);
    pthread_mutex_lock(&c->lock);
    wait_begins(c);
    while (!j->finished) {
        pump(c, until);
        if (fs_now_ns() >= until) break;
    }
    wait_ends(c);
    *done = j->finished;
    fs_status st = j->finished ? j->error.status : FS_OK;
    if (st != FS_OK) fs_error_raise(&j->error);
    pthread_mutex_unlock(&c->lock);
    return st;
}

int64_t fs_client_job_errors(fs_client_job *j, const fs_row_error **out) {
    *out = j->errors;
    return j->finished ? j->error_count : 0;
}

int64_t fs_client_job_hits(const fs_client_job *j) { return j->hits; }

int64_t fs_client_job_duplicates(const fs_client_job *j) { return j->duplicates; }

void fs_client_job_cancel(fs_client_job *j) {
    fs_client *c = j->client;
    if (c->pid != getpid()) return;
    pthread_mutex_lock(&c->lock);
    if (j->unread) {
        wait_begins(c);
        sending_begins(c);
        send_packet(c, FS_PACKET_CANCEL, j->id, NULL, 0, NULL, 0); /* a failure has finished the job */
        sending_ends(c);
        while (!j->finished) pump(c, INT64_MAX);
        wait_ends(c);
    }
    pthread_mutex_unlock(&c->lock);
}

void fs_client_job_free(fs_client_job *j) {
    if (!j || j->client->pid != getpid()) return;
    fs_client *c = j->client;
    fs_client_job_cancel(j);
    pthread_mutex_lock(&c->lock);
    give_back(c, j->rows);
    pthread_mutex_unlock(&c->lock);
    fs_free(j->errors);
    fs_free(j);
    unref(c);
}
