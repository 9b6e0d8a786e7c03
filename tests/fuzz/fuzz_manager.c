/* fuzz_manager.c - a manager's server and a worker that sends anything, in any order, with any descriptors, and changes
 * memory that both see at any time.
 *
 * Nothing may crash, leak, hang or write past an end; whoever breaks a rule is told and cut off; and a worker with
 * manners, who is there all the time, gets the bits that it always gets. A libFuzzer entry; driver.c calls the same. */
#define _GNU_SOURCE
#include "packets.h"

#include "base/alloc.h"
#include "manager/client.h"
#include "manager/packet.h"
#include "manager/segment.h"
#include "manager/server.h"
#include "tiny_bert.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FILES = 5, GOOD_EVERY = 16, PATIENCE_MS = 10000, D = 8 };

static struct sockaddr_un address;
static socklen_t address_bytes = sizeof address;
static fs_server *server;
static fs_segment shared;
static int files[FILES]; /* 1: the shared memory; others that are not what they should be */
static fs_client *good;
static float *good_out, first_out[2 * D];

static void must(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fuzz_manager: %s (%s)\n", what, fs_error_text());
    abort();
}

static int dial(void) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    must(fd >= 0 && !connect(fd, (struct sockaddr *)&address, address_bytes), "a worker can connect");
    return fd;
}

/* Answers every ask with what it said. */
static void *answer(void *unused) {
    (void)unused;
    for (;;) {
        fs_ask *a = NULL;
        fs_server_take(server, 3600, &a);
        if (a) fs_server_answer(server, a->connection, a->serial, a->body, a->bytes);
        fs_ask_free(a);
    }
    return NULL;
}

static void open_server(void) {
    static tiny_bert t;
    static const tiny_shape shape = { .L = 1, .D = D, .H = 2, .F = 12, .V = 10, .P = 40, .prefix = "", .files = 1 };
    static fs_engine *engine;
    pthread_t thread;
    int listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    address.sun_family = AF_UNIX;
    must(!bind(listening, (struct sockaddr *)&address, sizeof address.sun_family), "a name can be had");
    getsockname(listening, (struct sockaddr *)&address, &address_bytes);
    must(!listen(listening, 64), "a socket can listen");
    tiny_open(&t, &shape);
    must(fs_engine_open(&engine, &t.c, &(fs_engine_options){ .threads = 1 }) == FS_OK, "an engine opens");
    must(fs_server_open(&server, listening, &(fs_server_options){ "fuzz", 1 << 14 }) == FS_OK, "a server opens");
    must(fs_server_serve(server, FUZZ_MODEL, engine) == FS_OK, "a model is served");
    must(!pthread_create(&thread, NULL, answer, NULL), "a thread starts");
}

static void open_once(void) {
    int ends[2];
    if (server) return;
    open_server();
    must(fs_segment_make(&shared, FUZZ_MEMORY) == FS_OK && !pipe2(ends, O_CLOEXEC), "memory and a pipe can be had");
    files[1] = shared.fd, files[2] = ends[0], files[3] = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    files[4] = open("/dev/null", O_RDWR | O_CLOEXEC);
    must(!ftruncate(files[3], FUZZ_MEMORY), "a file can grow");
    must(fs_client_new(&good, "fuzz", 20) == FS_OK && fs_client_connect(good, dial()) == FS_OK,
         "a good worker connects");
    must(fs_client_take(good, sizeof first_out, (void **)&good_out) == FS_OK, "it gets memory");
}

/* The worker with manners: the same two rows, the same bits. */
static void be_good(void) {
    static const int64_t offsets[] = { 0, 2, 5 };
    static const int32_t ids[] = { 1, 2, 3, 4, 5 };
    static int times;
    fs_client_job *job;
    int done;
    fs_request r = { .source = { .ids = ids, .offsets = offsets }, .rows = 2, .out = good_out, .out_floats = 2 * D };
    r.task = (fs_task){ .pooling_count = 1, .pooling = { FS_POOL_MEAN } };
    memset(good_out, 0, sizeof first_out);
    must(fs_client_submit(good, FUZZ_MODEL, &r, &job) == FS_OK, "a good worker sends");
    must(fs_client_job_wait(job, -1, &done) == FS_OK, "a good worker is answered");
    fs_client_job_free(job);
    if (times++ == 0) memcpy(first_out, good_out, sizeof first_out);
    must(!memcmp(first_out, good_out, sizeof first_out), "a good worker gets other bits");
}

/* Reads what has come; 0: the connection has ended. */
static int drain(int fd) {
    static fs_packet p;
    for (;;) {
        fs_received got = fs_packet_receive(fd, &p);
        if (got == FS_NOTHING_THERE) return 1;
        if (got == FS_HUNG_UP || p.head.kind == FS_PACKET_REFUSED) return 0;
        must(got == FS_RECEIVED, "the manager sends whole packets");
        if (p.head.kind == FS_PACKET_PONG && p.head.id == UINT64_MAX) return 0;
    }
}

static const uint8_t *send_one(int fd, const uint8_t *at, const uint8_t *end) {
    uint16_t length;
    if (end - at < 5) return end;
    memcpy(&length, at + 3, sizeof length);
    const int file = at[2] % FILES, count = file ? 1 + at[2] / 64 : 0;
    const int fds[] = { files[file], files[file], files[1], files[file] };
    const uint8_t *body = at + 5;
    if (length > end - body) length = (uint16_t)(end - body);
    if (length > FS_PACKET_BYTES - sizeof(fs_packet_head)) length = FS_PACKET_BYTES - sizeof(fs_packet_head);
    fs_packet_send(fd, (fs_packet_kind)at[0], at[1], body, length, fds, count);
    return body + length;
}

static const uint8_t *change_memory(const uint8_t *at, const uint8_t *end) {
    uint16_t place;
    if (end - at < 3) return end;
    memcpy(&place, at, sizeof place);
    uint8_t count = at[2];
    at += 3;
    if (count > end - at) count = (uint8_t)(end - at);
    place %= FUZZ_MEMORY - UINT8_MAX;
    memcpy(shared.at + place, at, count);
    return at + count;
}

/* Until all that was sent has been looked at: the answer to a PING, or the end of the connection. */
static void settle(int fd) {
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    fs_packet_send(fd, FS_PACKET_PING, UINT64_MAX, NULL, 0, NULL, 0);
    do must(poll(&ready, 1, PATIENCE_MS) == 1, "the manager answers or hangs up");
    while (drain(fd));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int inputs;
    const uint8_t *at = data, *end = data + size;
    open_once();
    int fd = dial();
    while (at < end) {
        switch (*at++) {
        case 'P': at = send_one(fd, at, end); break;
        case 'M': at = change_memory(at, end); break;
        case 'R':
            close(fd);
            fd = dial();
            break;
        default: break;
        }
    }
    settle(fd);
    close(fd);
    if (inputs++ % GOOD_EVERY == 0) be_good();
    return 0;
}
