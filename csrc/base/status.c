#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last[sizeof(((fs_error *)0)->text)];

const char *fs_row_code_name(fs_row_code code) {
    switch (code) {
#define X(name, meaning)                                                                                               \
    case FS_ROW_##name: return #name;
#include "base/row_codes.def"
#undef X
    default: return "";
    }
}

fs_status fs_fail(fs_status status, const char *format, ...) {
    /* An argument may point into the last sentence ("loading %s: <last>"), so write beside it first. */
    char text[sizeof last];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(last, text, sizeof last);
    return status;
}

const char *fs_error_text(void) { return last; }

void fs_error_take(fs_error *out, fs_status status) {
    out->status = status;
    memcpy(out->text, last, sizeof last);
    last[0] = 0;
}

fs_status fs_error_raise(const fs_error *error) {
    memcpy(last, error->text, sizeof last);
    return error->status;
}
