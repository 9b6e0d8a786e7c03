/* test.h - a test program is a table of functions: TESTS({ "name", function }, ...) at the end of the file.
 *
 * A check that fails says both sides and lets the test go on; the program's exit status is 1 when any failed. After
 * each test every block of base/alloc.h must have been given back. With arguments only the tests they name are run. */
#ifndef FS_TEST_H
#define FS_TEST_H

#include "base/alloc.h"
#include "base/status.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *name;
    void (*run)(void);
} fs_test;

static _Atomic int fs_test_failures;

#define TEST_FAIL(...)                                                                                                 \
    do {                                                                                                               \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fputc('\n', stderr);                                                                                           \
        fs_test_failures++;                                                                                            \
    } while (0)

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) TEST_FAIL("not true: %s", #what);                                                                 \
    } while (0)

#define CHECK_INT(got, expected)                                                                                       \
    do {                                                                                                               \
        int64_t got_ = (int64_t)(got), expected_ = (int64_t)(expected);                                                \
        if (got_ != expected_) TEST_FAIL("%s is %" PRId64 ", not %" PRId64, #got, got_, expected_);                    \
    } while (0)

#define CHECK_TEXT(got, expected)                                                                                      \
    do {                                                                                                               \
        const char *got_ = (got), *expected_ = (expected);                                                             \
        if (strcmp(got_, expected_)) TEST_FAIL("%s is\n  %s\nnot\n  %s", #got, got_, expected_);                       \
    } while (0)

#define CHECK_OK(call)                                                                                                 \
    do {                                                                                                               \
        fs_status got_ = (call);                                                                                       \
        if (got_ != FS_OK) TEST_FAIL("%s failed with %d: %s", #call, (int)got_, fs_error_text());                      \
    } while (0)

/* The call fails with this status and a sentence that holds `part`. */
#define CHECK_FAILS(call, expected, part)                                                                              \
    do {                                                                                                               \
        fs_status got_ = (call);                                                                                       \
        if (got_ != (expected))                                                                                        \
            TEST_FAIL("%s gave status %d, not %d (%s)", #call, (int)got_, (int)(expected), fs_error_text());           \
        else if (!strstr(fs_error_text(), (part)))                                                                     \
            TEST_FAIL("%s failed with\n  %s\nwhich does not say\n  %s", #call, fs_error_text(), (part));               \
    } while (0)

static inline int fs_test_main(const fs_test *tests, int n, int argc, char **argv) {
    int failed = 0;
    for (int i = 0; i < n; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted |= !strcmp(argv[a], tests[i].name);
        if (!wanted) continue;
        int before = fs_test_failures;
        int64_t live = fs_alloc_live();
        tests[i].run();
        if (fs_alloc_live() != live) TEST_FAIL("%" PRId64 " blocks were left behind", fs_alloc_live() - live);
        printf("%s %s\n", fs_test_failures == before ? "ok    " : "FAILED", tests[i].name);
        fflush(stdout);
        failed += fs_test_failures != before;
    }
    return failed != 0;
}

#define TESTS(...)                                                                                                     \
    int main(int argc, char **argv) {                                                                                  \
        static const fs_test tests[] = { __VA_ARGS__ };                                                                \
        return fs_test_main(tests, (int)(sizeof tests / sizeof *tests), argc, argv);                                   \
    }

#endif
