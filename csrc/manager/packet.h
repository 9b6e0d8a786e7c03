/* packet.h - packets over a socket, whole or not at all, with the descriptors that belong to them. */
#ifndef FS_MANAGER_PACKET_H
#define FS_MANAGER_PACKET_H

#include "manager/protocol.h"

typedef struct {
    fs_packet_head head;
    char body[FS_PACKET_BYTES - sizeof(fs_packet_head) + 1]; /* and a zero, so that text is a string */
    size_t body_bytes;
    int fds[FS_PACKET_FDS];
    int fd_count;
} fs_packet;

const char *fs_packet_name(uint32_t kind);

typedef enum { FS_SENT, FS_WOULD_BLOCK, FS_PEER_GONE } fs_sent;

/* Never blocks. */
fs_sent fs_packet_send(int socket, fs_packet_kind kind, uint64_t id, const void *body, size_t bytes, const int *fds,
                       int fd_count);

typedef enum { FS_RECEIVED, FS_NOTHING_THERE, FS_HUNG_UP, FS_MALFORMED } fs_received;

/* Never blocks. Descriptors are the caller's; in every case but FS_RECEIVED there are none. FS_MALFORMED: cut short, of a
 * length that it does not say itself, of no known kind, or with more descriptors than there can be. */
fs_received fs_packet_receive(int socket, fs_packet *out);
void fs_packet_close_fds(fs_packet *p);

#endif
