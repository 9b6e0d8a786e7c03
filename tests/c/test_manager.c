/* The manager's server and its client over a real socket, in one process: bits, the store, cancelling, ends of either
 * side, and what a peer may send that knows no manners. */
#define _GNU_SOURCE
#include "engine_kit.h"
#include "gate.h"

#include "manager/client.h"
#include "manager/packet.h"
#include "manager/segment.h"
#include "manager/server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MODEL = 7 };

typedef struct {
    int listening;
    struct sockaddr_un address;
    socklen_t length;
    fs_server *server;
    fs_engine *engine;
} manager;

/* An address that needs no file: the kernel picks a name. */
static void listen_anywhere(manager *m) {
    m->listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    memset(&m->address, 0, sizeof m->address);
    m->address.sun_family = AF_UNIX;
    bind(m->listening, (struct sockaddr *)&m->address, sizeof m->address.sun_family);
    m->length = sizeof m->address;
    getsockname(m->listening, (struct sockaddr *)&m->address, &m->length);
    CHECK_INT(listen(m->listening, 64), 0);
}

static void manager_open(manager *m, const setup *s, size_t store_bytes) {
    memset(m, 0, sizeof *m);
    start();
    listen_anywhere(m);
    m->engine = opened(&model, s);
    CHECK_OK(fs_server_open(&m->server, m->listening, &(fs_server_options){ "test 1", store_bytes }));
    CHECK_OK(fs_server_serve(m->server, MODEL, m->engine));
}

static void manager_close(manager *m) {
    fs_server_close(m->server);
    fs_engine_close(m->engine);
    close(m->listening);
    end();
}

static int dial(const manager *m) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK_INT(connect(fd, (const struct sockaddr *)&m->address, m->length), 0);
    return fd;
}

static fs_client *patient_client_of(const manager *m, double patience) {
    fs_client *c = NULL;
    CHECK_OK(fs_client_new(&c, "test 1", patience));
    CHECK_OK(fs_client_connect(c, dial(m)));
    CHECK_INT(fs_client_manager_pid(c), getpid());
    return c;
}

static fs_client *client_of(const manager *m) { return patient_client_of(m, 20); }

typedef struct {
    fs_client_job *job;
    float *out;
    size_t bytes;
} sent;

static sent send_rows(fs_client *c, request *q, const fs_task *task) {
    sent s = { 0 };
    fs_request r = as_request(q, task);
    s.bytes = (size_t)r.out_floats * sizeof(float);
    CHECK_OK(fs_client_take(c, s.bytes, (void **)&s.out));
    r.out = s.out;
    CHECK_OK(fs_client_submit(c, MODEL, &r, &s.job));
    return s;
}

static void receive_rows(fs_client *c, sent *s, request *q) {
    int done = 0;
    CHECK_OK(fs_client_job_wait(s->job, 60, &done));
    CHECK_INT(done, 1);
    memcpy(q->out, s->out, s->bytes);
    fs_client_job_free(s->job);
    fs_client_give(c, s->out);
}

static void rows_come_right(fs_client *c, const char *when) {
    static request q;
    make_rows(&q, 5, ROWS);
    sent s = send_rows(c, &q, &MEAN);
    receive_rows(c, &s, &q);
    check_same(&q, &reference_rows, &MEAN, when);
}

static void results_have_the_engines_bits(void) {
    static request q;
    manager m;
    const fs_task *tasks[] = { &MEAN, &HIDDEN };
    const request *expected[] = { &reference_rows, &reference_hidden };
    manager_open(&m, &(setup){ .threads = 1 }, 0);
    fs_client *c = client_of(&m);
    for (int t = 0; t < 2; t++) {
        make_rows(&q, 5, ROWS);
        sent s = send_rows(c, &q, tasks[t]);
        receive_rows(c, &s, &q);
        check_same(&q, expected[t], tasks[t], "through a manager");
    }
    make_rows(&q, 5, 0);
    sent none = send_rows(c, &q, &HIDDEN);
    receive_rows(c, &none, &q);
    fs_client_free(c);
    manager_close(&m);
}

static void rows_that_come_again_are_known(void) {
    static request q, few;
    manager m;
    manager_open(&m, &(setup){ .threads = 1 }, 1 << 20);
    fs_client *c = client_of(&m);
    make_rows(&few, 5, ROWS / 2); /* the first half of the rows below */
    sent s = send_rows(c, &few, &MEAN);
    receive_rows(c, &s, &few);
    make_rows(&q, 5, ROWS);
    s = send_rows(c, &q, &MEAN);
    receive_rows(c, &s, &q);
    check_same(&q, &reference_rows, &MEAN, "half of the rows known");
    CHECK_INT(fs_server_stats_read(m.server).hits, ROWS / 2);
    for (int again = 0; again < 2; again++) {
        s = send_rows(c, &q, again ? &HIDDEN : &MEAN); /* another task is another result */
        receive_rows(c, &s, &q);
        check_same(&q, again ? &reference_hidden : &reference_rows, again ? &HIDDEN : &MEAN, "all of them known");
    }
    CHECK_INT(fs_server_stats_read(m.server).hits, ROWS / 2 + ROWS);
    CHECK_INT(fs_server_stats_read(m.server).waiting_rows, 0);
    CHECK_INT(fs_server_stats_read(m.server).running_rows, 0);
    CHECK_INT(fs_engine_stats_read(m.engine).rows, 2 * ROWS);
    CHECK(fs_server_stats_read(m.server).store_bytes > 0);
    fs_client_free(c);
    manager_close(&m);
}

static void a_wrong_row_is_told_whether_others_are_known_or_not(void) {
    static request q;
    manager m;
    manager_open(&m, &(setup){ .threads = 1 }, 1 << 20);
    fs_client *c = client_of(&m);
    for (int again = 0; again < 2; again++) {
        const fs_row_error *errors;
        int done;
        make_rows(&q, 5, ROWS);
        q.ids[q.offsets[3]] = 9999;
        sent s = send_rows(c, &q, &MEAN);
        CHECK_OK(fs_client_job_wait(s.job, 60, &done));
        CHECK_INT(fs_client_job_errors(s.job, &errors), 1);
        CHECK_INT(errors[0].row, 3);
        CHECK_INT(errors[0].code, FS_ROW_SCHEMA);
        CHECK(strstr(errors[0].text, "9999") != NULL);
        CHECK_INT(fs_client_job_hits(s.job), again ? ROWS - 1 : 0);
        CHECK(!memcmp(s.out + 5 * D, reference_rows.out + 5 * D, D * sizeof(float)));
        fs_client_job_free(s.job);
        fs_client_give(c, s.out);
    }
    fs_client_free(c);
    manager_close(&m);
}

static void wrong_requests_fail_alone(void) {
    static request q;
    manager m;
    fs_client_job *j;
    int done;
    float *out;
    manager_open(&m, &(setup){ .threads = 1 }, 0);
    fs_client *c = client_of(&m);
    make_rows(&q, 5, ROWS);
    fs_request r = as_request(&q, &MEAN);
    CHECK_FAILS(fs_client_submit(c, MODEL, &r, &j), FS_REQUEST, "out is no memory");
    CHECK_OK(fs_client_take(c, (size_t)r.out_floats * sizeof(float), (void **)&out));
    r.out = out;
    r.out_floats -= 1;
    CHECK_OK(fs_client_submit(c, MODEL, &r, &j));
    CHECK_FAILS(fs_client_job_wait(j, 60, &done), FS_REQUEST, "room for");
    fs_client_job_free(j);
    r.out_floats += 1;
    r.task.pooling_count = 0;
    CHECK_OK(fs_client_submit(c, MODEL, &r, &j));
    CHECK_FAILS(fs_client_job_wait(j, 60, &done), FS_REQUEST, "pooling");
    fs_client_job_free(j);
    r.task = MEAN;
    CHECK_OK(fs_client_submit(c, MODEL + 1, &r, &j));
    CHECK_FAILS(fs_client_job_wait(j, 60, &done), FS_MANAGER, "not open in the manager");
    fs_client_job_free(j);
    fs_client_give(c, out);
    rows_come_right(c, "behind wrong requests");
    fs_client_free(c);
    manager_close(&m);
}

typedef struct {
    const manager *m;
    uint64_t seed;
} worker;

/* Jobs of a few rows, some of them cancelled, results looked at whenever they come. */
static void *work(void *worker_) {
    worker *w = worker_;
    fs_client *c = client_of(w->m);
    for (int turn = 0; turn < 20; turn++) {
        request *q = calloc(3, sizeof *q);
        sent s[3];
        for (int i = 0; i < 3; i++) {
            int64_t first = random_between(&w->seed, 0, ROWS - 5);
            for (int64_t row = first; row < first + 5; row++)
                add_row(&q[i], reference_rows.ids + reference_rows.offsets[row],
                        reference_rows.offsets[row + 1] - reference_rows.offsets[row]);
            s[i] = send_rows(c, &q[i], &MEAN);
            s[i].bytes = (size_t)first; /* which rows */
        }
        for (int i = 2; i >= 0; i--) {
            int done = 0;
            if (random_between(&w->seed, 0, 3) == 0) fs_client_job_cancel(s[i].job);
            fs_status st = fs_client_job_wait(s[i].job, 60, &done);
            CHECK(done && (st == FS_OK || st == FS_CANCELLED));
            if (st == FS_OK)
                CHECK(!memcmp(s[i].out, reference_rows.out + (int64_t)s[i].bytes * D, 5 * D * sizeof(float)));
            fs_client_job_free(s[i].job);
            fs_client_give(c, s[i].out);
        }
        free(q);
    }
    fs_client_free(c);
    return NULL;
}

static void many_workers_get_their_own(void) {
    enum { WORKERS = 4 };
    pthread_t threads[WORKERS];
    worker workers[WORKERS];
    manager m;
    manager_open(&m, &(setup){ .devices = { "cpu:0", "cpu:1" }, .device_count = 2, .parallel = "replicate" }, 40000);
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = (worker){ &m, (uint64_t)i + 1 };
        pthread_create(&threads[i], NULL, work, &workers[i]);
    }
    for (int i = 0; i < WORKERS; i++) pthread_join(threads[i], NULL);
    CHECK(fs_server_stats_read(m.server).store_bytes <= 40000);
    CHECK_INT(fs_server_stats_read(m.server).refused, 0);
    manager_close(&m);
}

static void *answer_all(void *manager_) {
    manager *m = manager_;
    for (int i = 0; i < 3; i++) {
        fs_ask *a = NULL;
        while (!a) fs_server_take(m->server, 1, &a);
        char said[64];
        int n = snprintf(said, sizeof said, "%s, %d", a->body, a->fd_count);
        if (a->fd_count) n += snprintf(said + n, sizeof said - (size_t)n, ", %ld", (long)lseek(a->fds[0], 0, SEEK_END));
        CHECK_OK(fs_server_answer(m->server, a->connection, a->serial, said, (size_t)n));
        fs_ask_free(a);
    }
    return NULL;
}

static void asks_bring_files_and_get_answers(void) {
    manager m;
    pthread_t thread;
    char *answer;
    size_t bytes;
    fs_client_info who[2];
    manager_open(&m, &(setup){ .threads = 1 }, 0);
    pthread_create(&thread, NULL, answer_all, &m);
    fs_client *c = client_of(&m);
    int file = memfd_create("x", 0), fds[FS_PACKET_FDS];
    CHECK_INT(ftruncate(file, 4321), 0);
    CHECK_OK(fs_client_ask(c, "{}", 2, NULL, 0, &answer, &bytes));
    CHECK_TEXT(answer, "{}, 0");
    CHECK_INT(bytes, 5);
    fs_free(answer);
    CHECK_OK(fs_client_ask(c, "one", 3, &file, 1, &answer, &bytes));
    CHECK_TEXT(answer, "one, 1, 4321");
    fs_free(answer);
    for (int i = 0; i < FS_PACKET_FDS; i++) fds[i] = file;
    CHECK_OK(fs_client_ask(c, "many", 4, fds, FS_PACKET_FDS, &answer, &bytes));
    CHECK_TEXT(answer, "many, 250, 4321");
    fs_free(answer);
    pthread_join(thread, NULL);
    CHECK_INT(fs_server_clients(m.server, who, 2), 1);
    CHECK_INT(who[0].pid, getpid());
    close(file);
    fs_client_free(c);
    manager_close(&m);
}

static void a_client_outlives_its_manager(void) {
    static request q;
    manager m;
    int done;
    manager_open(&m, &(setup){ .threads = 1 }, 0);
    fs_client *c = client_of(&m);
    make_rows(&q, 5, ROWS);
    sent s = send_rows(c, &q, &MEAN);
    fs_server_close(m.server);
    fs_status st = fs_client_job_wait(s.job, 60, &done);
    CHECK(st == FS_OK || st == FS_MANAGER);
    fs_client_job_free(s.job);
    CHECK_FAILS(fs_client_submit(c, MODEL, &(fs_request){ .source = { .ids = q.ids, .offsets = q.offsets } }, &s.job),
                FS_MANAGER, "");
    CHECK_INT(fs_client_manager_pid(c), 0);
    CHECK_OK(fs_server_open(&m.server, m.listening, &(fs_server_options){ "test 1", 0 }));
    CHECK_OK(fs_server_serve(m.server, MODEL, m.engine));
    CHECK_OK(fs_client_connect(c, dial(&m)));
    fs_client_give(c, s.out);
    rows_come_right(c, "behind a new manager");
    fs_client_free(c);
    manager_close(&m);
}

static void a_released_model_says_so(void) {
    static request q;
    manager m;
    int done;
    manager_open(&m, &(setup){ .threads = 1 }, 0);
    fs_client *c = client_of(&m);
    make_rows(&q, 5, ROWS);
    sent s = send_rows(c, &q, &MEAN);
    fs_server_retire(m.server, MODEL);
    fs_status st = fs_client_job_wait(s.job, 60, &done);
    CHECK(st == FS_OK || (st == FS_MANAGER && strstr(fs_error_text(), "released")));
    fs_client_job_free(s.job);
    fs_client_give(c, s.out);
    CHECK_OK(fs_server_serve(m.server, MODEL, m.engine));
    rows_come_right(c, "of a model that was opened again");
    fs_client_free(c);
    manager_close(&m);
}

/* -- peers without manners ----------------------------------------------------------------------------------------- */

/* Sends; what comes back first: its kind, and the sentence of a REFUSED. -1: the connection ended, or nothing came. */
static int rude(int fd, fs_packet_kind kind, uint64_t id, const void *body, size_t bytes, const int *fds, int fd_count,
                char *text) {
    static fs_packet p;
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    fs_packet_send(fd, kind, id, body, bytes, fds, fd_count);
    poll(&ready, 1, 5000);
    if (fs_packet_receive(fd, &p) != FS_RECEIVED) return -1;
    snprintf(text, 1000, "%.999s", p.body);
    return (int)p.head.kind;
}

static int greeted(const manager *m) {
    char text[1000];
    int fd = dial(m);
    fs_hello hello = { .protocol = FS_PROTOCOL, .build = "test 1" };
    CHECK_INT(rude(fd, FS_PACKET_HELLO, 0, &hello, sizeof hello, NULL, 0, text), FS_PACKET_WELCOME);
    return fd;
}

#define CHECK_REFUSED(fd, kind, id, body, bytes, fds, fd_count, part)                                                  \
    do {                                                                                                               \
        char text_[1000] = "";                                                                                         \
        CHECK_INT(rude(fd, kind, id, body, bytes, fds, fd_count, text_), FS_PACKET_REFUSED);                           \
        if (!strstr(text_, part)) TEST_FAIL("refused with\n  %s\nwhich does not say\n  %s", text_, part);              \
        close(fd);                                                                                                     \
    } while (0)

static void who_breaks_the_rules_is_cut_off(void) {
    manager m;
    manager_open(&m, &(setup){ .threads = 1 }, 0);
    fs_hello hello = { .protocol = FS_PROTOCOL, .build = "test 2" };
    int fd = dial(&m);
    CHECK_REFUSED(fd, FS_PACKET_HELLO, 0, &hello, sizeof hello, NULL, 0, "of firesteel test 1");
    fd = dial(&m);
    CHECK_REFUSED(fd, FS_PACKET_PING, 0, NULL, 0, NULL, 0, "HELLO belongs there");
    fd = dial(&m);
    CHECK_REFUSED(fd, FS_PACKET_HELLO, 0, &hello, 3, NULL, 0, "3 bytes");
    fd = greeted(&m);
    CHECK_REFUSED(fd, FS_PACKET_DONE, 0, NULL, 0, NULL, 0, "workers do not send DONE");
    fd = greeted(&m);
    CHECK_REFUSED(fd, (fs_packet_kind)99, 0, NULL, 0, NULL, 0, "not of the form");
    fd = greeted(&m);
    CHECK_REFUSED(fd, FS_PACKET_DROP, 5, NULL, 0, NULL, 0, "segment 5 is not known");
    fd = greeted(&m);
    fs_submit q = { .model = MODEL, .count = 1, .tokens = 1, .result_floats = D, .target_tokens = -1 };
    CHECK_REFUSED(fd, FS_PACKET_SUBMIT, 5, &q, sizeof q, NULL, 0, "does not lie in the memory");
    CHECK_INT(fs_server_clients(m.server, NULL, 0), 0);
    CHECK_INT(fs_server_stats_read(m.server).refused, 7);
    manager_close(&m);
}

static void segments_are_believed_only_when_sealed(void) {
    manager m;
    uint64_t bytes = 4096, more = 8192;
    manager_open(&m, &(setup){ .threads = 1 }, 0);
    int fd = greeted(&m), memory = memfd_create("x", MFD_ALLOW_SEALING);
    CHECK_INT(ftruncate(memory, 4096), 0);
    CHECK_REFUSED(fd, FS_PACKET_SEGMENT, 1, &bytes, sizeof bytes, &memory, 1, "not sealed");
    CHECK_INT(fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    fd = greeted(&m);
    CHECK_REFUSED(fd, FS_PACKET_SEGMENT, 1, &more, sizeof more, &memory, 1, "has 4096 bytes, not the 8192");
    fd = greeted(&m);
    CHECK_REFUSED(fd, FS_PACKET_SEGMENT, 1, &bytes, sizeof bytes, NULL, 0, "came with 0 descriptors");
    int pipe_ends[2];
    CHECK_INT(pipe(pipe_ends), 0);
    fd = greeted(&m);
    CHECK_REFUSED(fd, FS_PACKET_SEGMENT, 1, &bytes, sizeof bytes, pipe_ends, 1, "not sealed");
    fd = greeted(&m);
    fs_packet_send(fd, FS_PACKET_SEGMENT, 1, &bytes, sizeof bytes, &memory, 1);
    CHECK_REFUSED(fd, FS_PACKET_SEGMENT, 1, &bytes, sizeof bytes, &memory, 1, "is known");
    close(pipe_ends[0]), close(pipe_ends[1]), close(memory);
    manager_close(&m);
}

/* Numbers that an attacker would try, in every field of a SUBMIT and in the offsets. */
static void hostile_numbers_crash_nothing(void) {
    static const int64_t numbers[] = { -1, 0, 1, 7, 4096, 1 << 20, INT32_MAX, INT64_MAX, INT64_MIN, 1ll << 40 };
    manager m;
    fs_segment memory;
    uint64_t seed = 9;
    manager_open(&m, &(setup){ .threads = 1 }, 1 << 16);
    CHECK_OK(fs_segment_make(&memory, 4096));
    for (int turn = 0; turn < 400; turn++) {
        int fd = greeted(&m);
        fs_submit q = { .model = MODEL, .count = 2, .tokens = 4, .target_tokens = -1, .pooling_count = 1 };
        uint64_t size = memory.bytes;
        int64_t *offsets = (int64_t *)(void *)memory.at;
        q.rows.segment = q.results.segment = 1, q.results.at = 1024, q.result_floats = 2 * D;
        q.pooling[0] = FS_POOL_MEAN;
        offsets[0] = 0, offsets[1] = 2, offsets[2] = 4;
        for (int change = 0; change < 2; change++) {
            int64_t number = numbers[random_between(&seed, 0, 9)];
            size_t place = (size_t)random_between(&seed, 0, (int64_t)(sizeof q / sizeof number) - 1);
            if (random_between(&seed, 0, 3) == 0) offsets[random_between(&seed, 0, 2)] = number;
            else memcpy((char *)&q + place * sizeof number, &number, sizeof number);
        }
        fs_packet_send(fd, FS_PACKET_SEGMENT, 1, &size, sizeof size, &memory.fd, 1);
        fs_packet_send(fd, FS_PACKET_SUBMIT, 1, &q, sizeof q, NULL, 0);
        if (turn % 3) { /* others hang up at once */
            struct pollfd ready = { .fd = fd, .events = POLLIN };
            CHECK_INT(poll(&ready, 1, 20000), 1); /* DONE, FAULTS or REFUSED */
        }
        close(fd);
    }
    fs_segment_close(&memory);
    fs_client *c = client_of(&m); /* nobody else has felt anything */
    rows_come_right(c, "behind hostile peers");
    fs_client_free(c);
    manager_close(&m);
}

static void a_manager_that_is_silent_is_given_up(void) {
    static request q;
    manager m;
    fs_client *c = NULL;
    memset(&m, 0, sizeof m);
    listen_anywhere(&m); /* nobody serves it */
    CHECK_OK(fs_client_new(&c, "test 1", 0.3));
    CHECK_FAILS(fs_client_connect(c, dial(&m)), FS_MANAGER, "has not answered");
    make_rows(&q, 5, 1);
    fs_client_free(c);
    close(m.listening);
}

static void who_has_sent_too_much_is_told_to_wait(void) {
    enum { JOBS = 4150 }; /* more than the manager holds of one worker: it no longer reads what this one sends */
    static request q;
    static sent s[JOBS];
    manager m;
    int done;
    manager_open(&m, &(setup){ .threads = 1 }, 0);
    fs_client *c = patient_client_of(&m, 1.5);
    gate_put(m.engine);
    make_rows(&q, 5, 1);
    for (int i = 0; i < JOBS; i++) s[i] = send_rows(c, &q, &MEAN);
    CHECK_OK(fs_client_job_wait(s[JOBS - 1].job, 4, &done));
    CHECK_INT(done, 0);
    gate_set(0);
    for (int i = 0; i < JOBS; i++) receive_rows(c, &s[i], &q);
    rows_come_right(c, "of a full connection");
    fs_client_free(c);
    manager_close(&m);
}

TESTS({ "results_have_the_engines_bits", results_have_the_engines_bits },
      { "rows_that_come_again_are_known", rows_that_come_again_are_known },
      { "a_wrong_row_is_told_whether_others_are_known_or_not", a_wrong_row_is_told_whether_others_are_known_or_not },
      { "wrong_requests_fail_alone", wrong_requests_fail_alone },
      { "many_workers_get_their_own", many_workers_get_their_own },
      { "asks_bring_files_and_get_answers", asks_bring_files_and_get_answers },
      { "a_client_outlives_its_manager", a_client_outlives_its_manager },
      { "a_released_model_says_so", a_released_model_says_so },
      { "who_breaks_the_rules_is_cut_off", who_breaks_the_rules_is_cut_off },
      { "segments_are_believed_only_when_sealed", segments_are_believed_only_when_sealed },
      { "hostile_numbers_crash_nothing", hostile_numbers_crash_nothing },
      { "a_manager_that_is_silent_is_given_up", a_manager_that_is_silent_is_given_up },
      { "who_has_sent_too_much_is_told_to_wait", who_has_sent_too_much_is_told_to_wait })
