/* protocol.h - what worker and manager say to each other, byte by byte.
 *
 * A unix socket of packets (SOCK_SEQPACKET) on one host, so numbers are as the host has them. A packet is a head and a
 * body; rows and results are not in packets but in segments, memory that both sides have mapped (segment.h).
 *
 *     0         4         8                16
 *     | kind    | bytes   | id             | body, by kind                                  bytes: of the whole packet
 *
 *     kind      from     id        body                              descriptors
 *     HELLO     worker   0         fs_hello                          -           the first packet of a connection
 *     WELCOME   manager  0         fs_hello                          -           its answer
 *     ASK       worker   serial    JSON                              at most 250 files that the ask is about
 *     ANSWER    manager  serial    JSON                              -
 *     SEGMENT   worker   segment   u64 bytes                         the memory
 *     DROP      worker   segment   -                                 -
 *     SUBMIT    worker   job       fs_submit                         -
 *     CANCEL    worker   job       -                                 -           DONE says when it is out of the way
 *     FAULTS    manager  job       fs_fault [n]                      -           rows that were not computed; before DONE
 *     DONE      manager  job       fs_done                           -
 *     PING      worker   any       -                                 -
 *     PONG      manager  the same  -                                 -           0: unasked, while it has enough to do
 *     REFUSED   manager  0         a sentence                        -           the last packet: the manager hangs up
 *
 * ROWS of a job lie in a segment as
 *
 *     source                          targets, where the model has a decoder
 *     | int64 offsets [rows + 1] | int32 ids [T] or float32 features [T, width] | 0-7 bytes | offsets | ids or features |
 *
 * and its results come to another place of one, float32. The worker leaves both alone until DONE. What it changes all the
 * same changes nothing but its own results: the manager copies rows out before it looks at them, and copies results in.
 *
 * Ids are the worker's, and new each time. Whoever breaks a rule is told so (REFUSED) and cut off. */
#ifndef FS_MANAGER_PROTOCOL_H
#define FS_MANAGER_PROTOCOL_H

#include "engine/engine.h"

enum { FS_PROTOCOL = 1, FS_PACKET_BYTES = 48 << 10, FS_PACKET_FDS = 250, FS_BUILD_BYTES = 64 };

#define FS_PACKET_KINDS(X)                                                                                             \
    X(HELLO)                                                                                                           \
    X(WELCOME) X(ASK) X(ANSWER) X(SEGMENT) X(DROP) X(SUBMIT) X(CANCEL) X(FAULTS) X(DONE) X(PING) X(PONG) X(REFUSED)

typedef enum {
    FS_PACKET_NONE,
#define X(name) FS_PACKET_##name,
    FS_PACKET_KINDS(X)
#undef X
        FS_PACKET_KIND_COUNT
} fs_packet_kind;

typedef struct {
    uint32_t kind, bytes;
    uint64_t id;
} fs_packet_head;

typedef struct {
    uint32_t protocol, pid;
    char build[FS_BUILD_BYTES]; /* of the firesteel module; both sides have the same */
} fs_hello;

typedef struct {
    uint64_t segment, at; /* a byte of it, a multiple of 8 */
} fs_place;

typedef struct {
    uint64_t model; /* as the answer to the ask that opened it says */
    fs_place rows, results;
    int64_t result_floats;
    int64_t count, tokens, width;  /* rows; tokens of the source; features of a token, 0: token ids */
    int64_t target_tokens, target_width; /* target_tokens < 0: no targets */
    int32_t task, pooling_count, pooling[FS_POOL_COUNT], normalize;
    int64_t dimensions;
} fs_submit;

typedef struct {
    int64_t row;
    int32_t code; /* fs_row_code */
    char text[236];
} fs_fault;

typedef struct {
    int32_t status; /* fs_status */
    uint32_t hits, duplicates; /* rows whose result was still known; that were copied from an equal row */
    char text[996];
} fs_done;

/* Bytes of one side's offsets and tokens, and of what is between two sides. */
static inline uint64_t fs_side_bytes(int64_t rows, int64_t tokens, int64_t width) {
    uint64_t bytes = ((uint64_t)rows + 1) * sizeof(int64_t) + (uint64_t)tokens * (width ? (uint64_t)width : 1) * 4;
    return (bytes + 7) / 8 * 8;
}

#endif
