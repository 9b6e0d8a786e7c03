/* status.h - a call either succeeds or says once, in one sentence, why not.
 *
 * A status is a small code; the sentence lies in a buffer of the thread that failed. fs_fail() writes it where
 * the fault is, callers only forward (FS_TRY, FS_GO). The buffer never crosses a thread: whoever hands a failure
 * to another thread takes the sentence out first, with fs_error_take(), and owns that value. */
#ifndef FS_BASE_STATUS_H
#define FS_BASE_STATUS_H

#include <stddef.h>

typedef enum {
    FS_OK = 0,
#define X(code, exception, meaning) code,
#include "base/codes.def"
#undef X
    FS_STATUS_COUNT
} fs_status;

typedef enum {
    FS_ROW_OK = 0,
#define X(name, meaning) FS_ROW_##name,
#include "base/row_codes.def"
#undef X
    FS_ROW_CODE_COUNT
} fs_row_code;

const char *fs_row_code_name(fs_row_code code);

/* A failure as a value: what a request, a queue or a replica owns. Zeroed means no error. */
typedef struct {
    fs_status status;
    char text[1000];
} fs_error;

/* Writes the sentence (thing, value, limit, way out) and returns `status`. */
fs_status fs_fail(fs_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The sentence of this thread's last failure; "" when there was none. */
const char *fs_error_text(void);
/* Moves this thread's last failure into `out`. */
void fs_error_take(fs_error *out, fs_status status);
/* Makes `error` this thread's last failure and returns its status. */
fs_status fs_error_raise(const fs_error *error);

#define FS_TRY(call)                                                                                                   \
    do {                                                                                                               \
        fs_status fs_try_status_ = (call);                                                                             \
        if (fs_try_status_ != FS_OK) return fs_try_status_;                                                            \
    } while (0)

/* For functions with `fs_status st` and one label `done` that undoes in reverse. */
#define FS_GO(call)                                                                                                    \
    do {                                                                                                               \
        st = (call);                                                                                                   \
        if (st != FS_OK) goto done;                                                                                    \
    } while (0)

#endif
