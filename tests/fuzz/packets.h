/* packets.h - what a rude worker does, as a string of bytes, so that a fuzzer can change all of it.
 *
 *   'P' u8 kind, u8 id, u8 descriptors, u16 length, body     sends a packet; descriptors: 0 none, else file n of the fuzzer's
 *   'M' u16 at, u8 length, bytes                             writes to the memory that it shares with the manager
 *   'R'                                                      hangs up and connects again
 *
 * Other bytes are passed over; what is cut short ends the string. */
#ifndef FUZZ_PACKETS_H
#define FUZZ_PACKETS_H

#include "manager/protocol.h"

#include <string.h>

enum { FUZZ_MODEL = 1, FUZZ_MEMORY = 4096 };

static inline uint8_t *put_packet(uint8_t *to, fs_packet_kind kind, uint8_t id, uint8_t file, const void *body,
                                  uint16_t bytes) {
    const uint8_t head[] = { 'P', (uint8_t)kind, id, file };
    memcpy(to, head, sizeof head);
    memcpy(to + sizeof head, &bytes, sizeof bytes);
    if (bytes) memcpy(to + sizeof head + sizeof bytes, body, bytes);
    return to + sizeof head + sizeof bytes + bytes;
}

static inline uint8_t *put_memory(uint8_t *to, uint16_t at, const void *bytes, uint8_t count) {
    *to++ = 'M';
    memcpy(to, &at, sizeof at);
    to[2] = count;
    memcpy(to + 3, bytes, count);
    return to + 3 + count;
}

/* A worker with manners: says hello, shares memory, has two rows computed, asks, takes a job back, leaves. */
static inline size_t put_session(uint8_t *out, int task) {
    const fs_hello hello = { .protocol = FS_PROTOCOL, .build = "fuzz" };
    const int64_t offsets[] = { 0, 2, 3 };
    const int32_t ids[] = { 1, 2, 3 };
    const uint64_t memory = FUZZ_MEMORY;
    fs_submit q;
    uint8_t *to = out;
    memset(&q, 0, sizeof q);
    q.model = FUZZ_MODEL, q.count = 2, q.tokens = 3, q.target_tokens = -1, q.task = task;
    q.rows.segment = q.results.segment = 1, q.results.at = 1024, q.result_floats = 64;
    if (task == FS_TASK_EMBED) q.pooling_count = 1, q.normalize = 1;
    to = put_packet(to, FS_PACKET_HELLO, 0, 0, &hello, sizeof hello);
    to = put_packet(to, FS_PACKET_SEGMENT, 1, 1, &memory, sizeof memory);
    to = put_memory(to, 0, offsets, sizeof offsets);
    to = put_memory(to, sizeof offsets, ids, sizeof ids);
    to = put_packet(to, FS_PACKET_SUBMIT, 2, 0, &q, sizeof q);
    to = put_packet(to, FS_PACKET_ASK, 3, 2, "{\"ask\": \"stats\"}", 16);
    to = put_packet(to, FS_PACKET_SUBMIT, 4, 0, &q, sizeof q);
    to = put_packet(to, FS_PACKET_CANCEL, 4, 0, NULL, 0);
    to = put_packet(to, FS_PACKET_PING, 5, 0, NULL, 0);
    to = put_packet(to, FS_PACKET_DROP, 1, 0, NULL, 0);
    *to++ = 'R';
    return (size_t)(to - out);
}

#endif
