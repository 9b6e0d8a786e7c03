#define _GNU_SOURCE
#include "base/alloc.h"
#include "base/knobs.h"
#include "manager/server_inside.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { EVENTS = 64 };

/* What epoll says of: connections have ids from 1 on, the others are above all of them. */
#define FOR_WAKE     UINT64_MAX
#define FOR_LISTENER (UINT64_MAX - 1)
#define FOR_MODELS   (UINT64_MAX - 2) /* any engine's eventfd */

fs_model *fs_server_model(fs_server *s, uint64_t id) {
    fs_model *m;
    TAILQ_FOREACH(m, &s->models, link) if (m->id == id) return m;
    return NULL;
}

void fs_server_wake(fs_server *s) {
    uint64_t one = 1;
    if (write(s->wake, &one, sizeof one) < 0) return; /* the count is at its end: it wakes in any case */
}

static fs_connection *connection(fs_server *s, uint64_t id) {
    fs_connection *c;
    TAILQ_FOREACH(c, &s->connections, link) if (c->id == id) return c;
    return NULL;
}

/* -- the thread ---------------------------------------------------------------------------------------------------- */

static void quiet(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof count) < 0) return; /* nothing was in it */
}

static void collect(fs_server *s) {
    fs_model *m;
    TAILQ_FOREACH(m, &s->models, link) {
        quiet(fs_engine_fd(m->engine));
        fs_model_collect(s, m);
    }
}

static void look(fs_server *s, const struct epoll_event *e) {
    if (e->data.u64 == FOR_WAKE) quiet(s->wake);
    else if (e->data.u64 == FOR_LISTENER) fs_connection_accept(s); /* without memory for it, it is tried again */
    else if (e->data.u64 == FOR_MODELS) collect(s);
    else {
        fs_connection *c = connection(s, e->data.u64);
        if (!c) return;
        if (e->events & EPOLLOUT) fs_connection_write(s, c);
        if (e->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) fs_connection_read(s, c);
        if (e->events & (EPOLLHUP | EPOLLERR) && !(c->watched & EPOLLIN)) c->gone = 1; /* a full one hung up */
    }
}

static void end_gone(fs_server *s) {
    for (fs_connection *c = TAILQ_FIRST(&s->connections), *next; c; c = next) {
        next = TAILQ_NEXT(c, link);
        if (c->gone) fs_connection_end(s, c);
    }
}

/* How long to wait at most: while a connection is full, not for ever. */
static int patience_ms(fs_server *s) {
    fs_connection *c;
    int ms = -1;
    TAILQ_FOREACH(c, &s->connections, link) {
        fs_connection_reassure(s, c);
        if (fs_connection_full(c)) ms = FS_REASSURE_MS;
    }
    return ms;
}

static void *serve(void *server) {
    fs_server *s = server;
    struct epoll_event events[EVENTS];
    prctl(PR_SET_NAME, "fs-manager");
    for (int ms = -1;;) {
        int n = epoll_wait(s->epoll, events, EVENTS, ms);
        pthread_mutex_lock(&s->lock);
        for (int i = 0; i < n && !s->stopping; i++) look(s, &events[i]);
        fs_server_feed(s);
        ms = patience_ms(s);
        end_gone(s);
        int stopping = s->stopping;
        pthread_mutex_unlock(&s->lock);
        if (stopping) return NULL;
    }
}

/* -- open and close ------------------------------------------------------------------------------------------------ */

static fs_status watch(fs_server *s, int fd, uint64_t what) {
    struct epoll_event e = { .events = EPOLLIN, .data.u64 = what };
    if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &e) == 0) return FS_OK;
    return fs_fail(FS_MANAGER, "watching descriptor %d failed: %s", fd, strerror(errno));
}

static void server_free(fs_server *s) {
    fs_queued_ask *q;
    while ((q = STAILQ_FIRST(&s->asks))) {
        STAILQ_REMOVE_HEAD(&s->asks, link);
        fs_ask_free(&q->ask);
    }
    fs_store_close(s->store);
    if (s->epoll >= 0) close(s->epoll);
    if (s->wake >= 0) close(s->wake);
    pthread_cond_destroy(&s->asked);
    pthread_mutex_destroy(&s->lock);
    fs_free(s);
}

fs_status fs_server_open(fs_server **out, int listening, const fs_server_options *options) {
    fs_status st = FS_OK;
    fs_server *s;
    *out = NULL;
    FS_TRY(fs_alloc(&s, 1, sizeof *s));
    s->listening = listening;
    fs_status knob = fs_knob_int(FS_KNOB_TEST_CRASH, -1, INT32_MAX, &s->crash);
    if (knob != FS_OK) {
        fs_free(s);
        return knob;
    }
    snprintf(s->build, sizeof s->build, "%s", options->build);
    TAILQ_INIT(&s->connections);
    TAILQ_INIT(&s->models);
    STAILQ_INIT(&s->asks);
    pthread_mutex_init(&s->lock, NULL);
    fs_cond_init(&s->asked);
    s->last_row_ns = fs_now_ns();
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->epoll < 0 || s->wake < 0) FS_GO(fs_fail(FS_MANAGER, "making an epoll set failed: %s", strerror(errno)));
    FS_GO(fs_store_open(&s->store, options->store_bytes));
    FS_GO(watch(s, s->wake, FOR_WAKE));
    FS_GO(watch(s, listening, FOR_LISTENER));
    FS_GO(fs_thread_start(&s->thread, serve, s));
    s->started = 1;
    *out = s;
    return FS_OK;
done:
    server_free(s);
    return st;
}

void fs_server_close(fs_server *s) {
    fs_model *m;
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->stopping = 1;
    pthread_cond_broadcast(&s->asked);
    pthread_mutex_unlock(&s->lock);
    fs_server_wake(s);
    pthread_join(s->thread, NULL);
    while (!TAILQ_EMPTY(&s->connections)) fs_connection_end(s, TAILQ_FIRST(&s->connections));
    while ((m = TAILQ_FIRST(&s->models))) {
        TAILQ_REMOVE(&s->models, m, link);
        fs_model_abandon(s, m);
        fs_free(m);
    }
    server_free(s);
}

/* -- what the manager calls ---------------------------------------------------------------------------------------- */

fs_status fs_server_take(fs_server *s, double seconds, fs_ask **out) {
    struct timespec until = fs_deadline(seconds);
    *out = NULL;
    pthread_mutex_lock(&s->lock);
    while (STAILQ_EMPTY(&s->asks) && !s->stopping)
        if (pthread_cond_timedwait(&s->asked, &s->lock, &until) == ETIMEDOUT) break;
    fs_queued_ask *q = STAILQ_FIRST(&s->asks);
    if (q) {
        STAILQ_REMOVE_HEAD(&s->asks, link);
        *out = &q->ask; /* its first member */
    }
    pthread_mutex_unlock(&s->lock);
    return FS_OK;
}

void fs_ask_free(fs_ask *a) {
    if (!a) return;
    for (int i = 0; i < a->fd_count; i++) close(a->fds[i]);
    fs_free(a->fds);
    fs_free(a->body);
    fs_free(a);
}

fs_status fs_server_answer(fs_server *s, uint64_t id, uint64_t serial, const char *body, size_t bytes) {
    const size_t most = FS_PACKET_BYTES - sizeof(fs_packet_head);
    if (bytes > most) return fs_fail(FS_REQUEST, "an answer has %zu bytes; a packet has room for %zu", bytes, most);
    pthread_mutex_lock(&s->lock);
    fs_connection *c = connection(s, id);
    if (c) {
        c->open_asks--;
        fs_connection_send(s, c, FS_PACKET_ANSWER, serial, body, bytes);
        fs_connection_watch(s, c);
    }
    pthread_mutex_unlock(&s->lock);
    if (c) fs_server_wake(s); /* it may be gone */
    return FS_OK;
}

fs_status fs_server_serve(fs_server *s, uint64_t id, fs_engine *engine) {
    fs_status st = FS_OK;
    fs_model *m = NULL;
    pthread_mutex_lock(&s->lock);
    if (fs_server_model(s, id))
        FS_GO(fs_fail(FS_REQUEST, "model %llu is served already; retire it first", (unsigned long long)id));
    FS_GO(fs_alloc(&m, 1, sizeof *m));
    m->id = id, m->engine = engine, m->last_row_ns = fs_now_ns();
    TAILQ_INIT(&m->running);
    FS_GO(watch(s, fs_engine_fd(engine), FOR_MODELS));
    TAILQ_INSERT_TAIL(&s->models, m, link);
    m = NULL;
done:
    fs_free(m);
    pthread_mutex_unlock(&s->lock);
    if (st == FS_OK) fs_server_wake(s);
    return st;
}

void fs_server_retire(fs_server *s, uint64_t id) {
    pthread_mutex_lock(&s->lock);
    fs_model *m = fs_server_model(s, id);
    if (m) {
        TAILQ_REMOVE(&s->models, m, link);
        epoll_ctl(s->epoll, EPOLL_CTL_DEL, fs_engine_fd(m->engine), NULL);
        fs_model_abandon(s, m);
        fs_free(m);
    }
    pthread_mutex_unlock(&s->lock);
    fs_server_wake(s);
}

int64_t fs_server_use_of(fs_server *s, uint64_t model, double *idle_seconds) {
    int64_t rows = 0;
    fs_connection *c;
    fs_asked *a;
    pthread_mutex_lock(&s->lock);
    fs_model *m = fs_server_model(s, model);
    if (m) rows += m->fed_rows;
    *idle_seconds = m ? (double)(fs_now_ns() - m->last_row_ns) * 1e-9 : 0;
    TAILQ_FOREACH(c, &s->connections, link)
    TAILQ_FOREACH(a, &c->waiting, link) if (a->submit.model == model) rows += a->submit.count;
    pthread_mutex_unlock(&s->lock);
    return rows;
}

static int64_t waiting_rows(const fs_connection *c) {
    int64_t rows = 0;
    fs_asked *a;
    TAILQ_FOREACH(a, &c->waiting, link) rows += a->submit.count;
    return rows;
}

int fs_server_clients(fs_server *s, fs_client_info *out, int room) {
    int n = 0;
    fs_connection *c;
    pthread_mutex_lock(&s->lock);
    TAILQ_FOREACH(c, &s->connections, link) {
        if (c->greeted && n < room)
            out[n] = (fs_client_info){ c->id,           c->pid,       c->uid,  c->jobs,      c->rows,
                                       waiting_rows(c), c->done_rows, c->hits, c->duplicates };
        n += c->greeted;
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

fs_server_stats fs_server_stats_read(fs_server *s) {
    pthread_mutex_lock(&s->lock);
    fs_server_stats stats = s->stats;
    stats.store_bytes = fs_store_bytes(s->store);
    stats.idle_seconds = (double)(fs_now_ns() - s->last_row_ns) * 1e-9;
    fs_connection *c;
    fs_model *m;
    TAILQ_FOREACH(c, &s->connections, link) {
        if (c->rows > 0) stats.idle_seconds = 0;
        stats.waiting_rows += waiting_rows(c);
    }
    TAILQ_FOREACH(m, &s->models, link) stats.running_rows += m->fed_rows;
    pthread_mutex_unlock(&s->lock);
    return stats;
}
