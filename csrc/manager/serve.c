/* serve.c - connections: who may come in, what their packets ask for, what is sent to them. */
#define _GNU_SOURCE
#include "base/alloc.h"
#include "manager/server_inside.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PACKETS_A_TURN = 64 }; /* of one connection, before others are looked at */

/* -- sending ------------------------------------------------------------------------------------------------------- */

static void keep_unsent(fs_server *s, fs_connection *c, fs_packet_kind kind, uint64_t id, const void *body,
                        size_t bytes) {
    fs_unsent *u;
    if (c->unsent_bytes + bytes > FS_UNSENT_BYTES || fs_alloc(&u, 1, sizeof *u + bytes) != FS_OK) {
        c->gone = 1; /* it does not read: there is no telling it */
        s->stats.refused++;
        return;
    }
    u->kind = kind, u->id = id, u->bytes = bytes;
    if (bytes) memcpy(u->body, body, bytes);
    STAILQ_INSERT_TAIL(&c->unsent, u, link);
    c->unsent_bytes += sizeof *u + bytes;
}

void fs_connection_send(fs_server *s, fs_connection *c, fs_packet_kind kind, uint64_t id, const void *body,
                        size_t bytes) {
    fs_sent sent = FS_WOULD_BLOCK;
    if (c->gone) return;
    if (STAILQ_EMPTY(&c->unsent)) sent = fs_packet_send(c->fd, kind, id, body, bytes, NULL, 0);
    if (sent == FS_PEER_GONE) c->gone = 1;
    if (sent == FS_WOULD_BLOCK) keep_unsent(s, c, kind, id, body, bytes);
}

static void drop_first_unsent(fs_connection *c) {
    fs_unsent *u = STAILQ_FIRST(&c->unsent);
    STAILQ_REMOVE_HEAD(&c->unsent, link);
    c->unsent_bytes -= sizeof *u + u->bytes;
    fs_free(u);
}

void fs_connection_write(fs_server *s, fs_connection *c) {
    fs_unsent *u;
    while (!c->gone && (u = STAILQ_FIRST(&c->unsent))) {
        fs_sent sent = fs_packet_send(c->fd, u->kind, u->id, u->body, u->bytes, NULL, 0);
        if (sent == FS_WOULD_BLOCK) break;
        if (sent == FS_PEER_GONE) c->gone = 1;
        drop_first_unsent(c);
    }
    fs_connection_watch(s, c);
}

void fs_connection_refuse(fs_server *s, fs_connection *c, const char *format, ...) {
    char text[1000];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fs_connection_send(s, c, FS_PACKET_REFUSED, 0, text, strlen(text));
    c->gone = 1;
    s->stats.refused++;
}

/* -- coming and going ---------------------------------------------------------------------------------------------- */

int fs_connection_full(const fs_connection *c) { return c->held_bytes > FS_HELD_BYTES || c->jobs > FS_HELD_JOBS; }

void fs_connection_reassure(fs_server *s, fs_connection *c) {
    const int64_t now = fs_now_ns();
    if (!fs_connection_full(c) || now - c->told_ns < FS_REASSURE_MS * INT64_C(1000000)) return;
    c->told_ns = now;
    fs_connection_send(s, c, FS_PACKET_PONG, 0, NULL, 0);
}

void fs_connection_watch(fs_server *s, fs_connection *c) {
    struct epoll_event e = { .data.u64 = c->id };
    if (!fs_connection_full(c)) e.events |= EPOLLIN;
    if (!STAILQ_EMPTY(&c->unsent)) e.events |= EPOLLOUT;
    if (e.events == c->watched || c->gone) return;
    if (epoll_ctl(s->epoll, EPOLL_CTL_MOD, c->fd, &e) < 0) c->gone = 1;
    c->watched = e.events;
}

static fs_status connection_new(fs_server *s, int fd, const struct ucred *who) {
    fs_connection *c;
    FS_TRY(fs_alloc(&c, 1, sizeof *c));
    c->id = ++s->last_connection;
    c->fd = fd, c->pid = who->pid, c->uid = (int)who->uid;
    TAILQ_INIT(&c->waiting);
    STAILQ_INIT(&c->unsent);
    struct epoll_event e = { .events = EPOLLIN, .data.u64 = c->id };
    if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &e) < 0) {
        fs_free(c);
        return fs_fail(FS_MANAGER, "watching a connection failed: %s", strerror(errno));
    }
    c->watched = e.events;
    TAILQ_INSERT_TAIL(&s->connections, c, link);
    return FS_OK;
}

/* One that waits. Whoever is not let in sees the connection end. */
fs_status fs_connection_accept(fs_server *s) {
    struct ucred who;
    socklen_t size = sizeof who;
    int fd = accept4(s->listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        /* Without a descriptor or memory for it it waits on, and epoll would tell of it at once and again. */
        if (errno != EAGAIN && errno != EWOULDBLOCK) nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
        return FS_OK;
    }
    fs_status st = FS_OK;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) < 0 || who.uid != geteuid()) {
        static const char sentence[] = "the manager belongs to another user";
        fs_packet_send(fd, FS_PACKET_REFUSED, 0, sentence, sizeof sentence - 1, NULL, 0);
        s->stats.refused++;
        close(fd);
        return FS_OK;
    }
    st = connection_new(s, fd, &who);
    if (st != FS_OK) close(fd);
    return st;
}

void fs_connection_end(fs_server *s, fs_connection *c) {
    fs_asked_forget(s, c);
    for (int i = 0; i < c->segment_count; i++) fs_segment_close(&c->segments[i].memory);
    fs_free(c->segments);
    epoll_ctl(s->epoll, EPOLL_CTL_DEL, c->fd, NULL);
    close(c->fd); /* last: whoever sees it knows that its memory is left alone */
    while (!STAILQ_EMPTY(&c->unsent)) drop_first_unsent(c);
    TAILQ_REMOVE(&s->connections, c, link);
    fs_free(c);
}

/* -- packets ------------------------------------------------------------------------------------------------------- */

static void greet(fs_server *s, fs_connection *c, const fs_packet *p) {
    fs_hello theirs, ours = { .protocol = FS_PROTOCOL, .pid = (uint32_t)getpid() };
    snprintf(ours.build, sizeof ours.build, "%s", s->build);
    if (p->body_bytes != sizeof theirs) {
        fs_connection_refuse(s, c, "a HELLO has %zu bytes, not %zu", p->body_bytes, sizeof theirs);
        return;
    }
    memcpy(&theirs, p->body, sizeof theirs);
    theirs.build[sizeof theirs.build - 1] = 0;
    if (theirs.protocol != FS_PROTOCOL || strcmp(theirs.build, ours.build)) {
        fs_connection_refuse(s, c, "the manager is of firesteel %s (protocol %d), the worker of %s (%u)", ours.build,
                             FS_PROTOCOL, theirs.build, theirs.protocol);
        return;
    }
    c->greeted = 1;
    fs_connection_send(s, c, FS_PACKET_WELCOME, 0, &ours, sizeof ours);
}

static void queue_ask(fs_server *s, fs_connection *c, fs_packet *p) {
    fs_queued_ask *q = NULL;
    if (c->open_asks >= FS_OPEN_ASKS) {
        fs_connection_refuse(s, c, "%d asks at a time are enough", FS_OPEN_ASKS);
        return;
    }
    fs_status st = fs_alloc(&q, 1, sizeof *q);
    if (st == FS_OK) st = fs_alloc(&q->ask.body, 1, p->body_bytes + 1);
    if (st == FS_OK) st = fs_alloc(&q->ask.fds, (size_t)p->fd_count, sizeof *q->ask.fds);
    if (st != FS_OK) {
        if (q) fs_ask_free(&q->ask);
        fs_connection_refuse(s, c, "%s", fs_error_text());
        return;
    }
    memcpy(q->ask.body, p->body, p->body_bytes);
    memcpy(q->ask.fds, p->fds, (size_t)p->fd_count * sizeof *p->fds);
    q->ask.bytes = p->body_bytes, q->ask.fd_count = p->fd_count;
    q->ask.connection = c->id, q->ask.serial = p->head.id;
    p->fd_count = 0;
    c->open_asks++;
    STAILQ_INSERT_TAIL(&s->asks, q, link);
    pthread_cond_signal(&s->asked);
}

fs_segment *fs_connection_segment(fs_connection *c, uint64_t id) {
    for (int i = 0; i < c->segment_count; i++)
        if (c->segments[i].id == id) return &c->segments[i].memory;
    return NULL;
}

static void add_segment(fs_server *s, fs_connection *c, const fs_packet *p) {
    uint64_t bytes = 0;
    if (p->body_bytes == sizeof bytes) memcpy(&bytes, p->body, sizeof bytes);
    if (p->fd_count != 1 || fs_connection_segment(c, p->head.id) || c->segment_count == FS_SEGMENTS) {
        fs_connection_refuse(s, c, "segment %llu came with %d descriptors, is known, or is one too many",
                             (unsigned long long)p->head.id, p->fd_count);
        return;
    }
    fs_status st = FS_OK;
    if (c->segment_count == c->segment_room) {
        int room = c->segment_room ? 2 * c->segment_room : 8;
        st = fs_realloc(&c->segments, (size_t)room, sizeof *c->segments);
        if (st == FS_OK) c->segment_room = room;
    }
    fs_known_segment *to = st == FS_OK ? &c->segments[c->segment_count] : NULL;
    if (to) st = fs_segment_map(&to->memory, p->fds[0], bytes);
    if (st == FS_OK) to->id = p->head.id, c->segment_count++;
    else fs_connection_refuse(s, c, "%s", fs_error_text());
}

static void drop_segment(fs_server *s, fs_connection *c, uint64_t id) {
    fs_segment *memory = fs_connection_segment(c, id);
    if (!memory) {
        fs_connection_refuse(s, c, "segment %llu is not known", (unsigned long long)id);
        return;
    }
    fs_segment_close(memory);
    fs_known_segment *gap = &c->segments[0];
    while (gap->id != id) gap++;
    *gap = c->segments[--c->segment_count];
}

static void submit(fs_server *s, fs_connection *c, const fs_packet *p) {
    fs_submit q;
    if (p->body_bytes != sizeof q) {
        fs_connection_refuse(s, c, "a SUBMIT has %zu bytes, not %zu", p->body_bytes, sizeof q);
        return;
    }
    memcpy(&q, p->body, sizeof q);
    fs_asked_submit(s, c, p->head.id, &q);
}

static void handle(fs_server *s, fs_connection *c, fs_packet *p) {
    if (!c->greeted && p->head.kind != FS_PACKET_HELLO) {
        fs_connection_refuse(s, c, "the first packet is %s; HELLO belongs there", fs_packet_name(p->head.kind));
        return;
    }
    switch ((fs_packet_kind)p->head.kind) {
    case FS_PACKET_HELLO: greet(s, c, p); break;
    case FS_PACKET_ASK: queue_ask(s, c, p); break;
    case FS_PACKET_SEGMENT: add_segment(s, c, p); break;
    case FS_PACKET_DROP: drop_segment(s, c, p->head.id); break;
    case FS_PACKET_SUBMIT: submit(s, c, p); break;
    case FS_PACKET_CANCEL: fs_asked_cancel(s, c, p->head.id); break;
    case FS_PACKET_PING: fs_connection_send(s, c, FS_PACKET_PONG, p->head.id, NULL, 0); break;
    default: fs_connection_refuse(s, c, "workers do not send %s", fs_packet_name(p->head.kind));
    }
}

void fs_connection_read(fs_server *s, fs_connection *c) {
    for (int i = 0; i < PACKETS_A_TURN && !c->gone && c->watched & EPOLLIN; i++) {
        fs_received got = fs_packet_receive(c->fd, &s->packet);
        if (got == FS_NOTHING_THERE) return;
        if (got == FS_HUNG_UP) c->gone = 1;
        if (got == FS_MALFORMED) fs_connection_refuse(s, c, "a packet is not of the form that protocol.h draws");
        if (got != FS_RECEIVED) return;
        handle(s, c, &s->packet);
        fs_packet_close_fds(&s->packet);
        fs_connection_watch(s, c);
    }
}
