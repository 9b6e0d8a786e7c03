#define _GNU_SOURCE
#include "manager/packet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

const char *fs_packet_name(uint32_t kind) {
    static const char *const names[] = { "none",
#define X(name) #name,
                                         FS_PACKET_KINDS(X)
#undef X
    };
    return kind < FS_PACKET_KIND_COUNT ? names[kind] : "of no known kind";
}

static int would_block(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS; }

fs_sent fs_packet_send(int socket, fs_packet_kind kind, uint64_t id, const void *body, size_t bytes, const int *fds,
                       int fd_count) {
    fs_packet_head head = { kind, (uint32_t)(sizeof head + bytes), id };
    struct iovec parts[] = { { &head, sizeof head }, { (void *)body, bytes } };
    char control[CMSG_SPACE(sizeof(int) * FS_PACKET_FDS)] __attribute__((aligned(8)));
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = bytes ? 2 : 1 };
    if (fd_count > 0) {
        memset(control, 0, sizeof control);
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)fd_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)fd_count);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)fd_count);
    }
    for (;;) {
        if (sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return FS_SENT;
        if (errno != EINTR) return would_block() ? FS_WOULD_BLOCK : FS_PEER_GONE;
    }
}

static int take_fds(struct msghdr *message, fs_packet *out) {
    int whole = !(message->msg_flags & MSG_CTRUNC);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        int there = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < there; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + (size_t)i * sizeof fd, sizeof fd);
            if (out->fd_count < FS_PACKET_FDS) out->fds[out->fd_count++] = fd;
            else close(fd), whole = 0;
        }
    }
    return whole;
}

fs_received fs_packet_receive(int socket, fs_packet *out) {
    struct iovec parts[] = { { &out->head, sizeof out->head }, { out->body, sizeof out->body - 1 } };
    char control[CMSG_SPACE(sizeof(int) * (FS_PACKET_FDS + 3))] __attribute__((aligned(8)));
    struct msghdr message = {
        .msg_iov = parts, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control
    };
    ssize_t got;
    out->fd_count = 0;
    do got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0) return would_block() ? FS_NOTHING_THERE : FS_HUNG_UP;
    int whole = take_fds(&message, out) && !(message.msg_flags & MSG_TRUNC);
    if (got == 0 && whole && out->fd_count == 0) return FS_HUNG_UP;
    whole = whole && got >= (ssize_t)sizeof out->head && (size_t)got == out->head.bytes &&
            out->head.kind > FS_PACKET_NONE && out->head.kind < FS_PACKET_KIND_COUNT;
    if (!whole) {
        fs_packet_close_fds(out);
        return FS_MALFORMED;
    }
    out->body_bytes = (size_t)got - sizeof out->head;
    out->body[out->body_bytes] = 0;
    return FS_RECEIVED;
}

void fs_packet_close_fds(fs_packet *p) {
    for (int i = 0; i < p->fd_count; i++) close(p->fds[i]);
    p->fd_count = 0;
}
