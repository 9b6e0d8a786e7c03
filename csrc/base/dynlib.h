/* dynlib.h - shared libraries that may or may not be there, opened at run time.
 *
 * A list of places is tried in order; what each one answered is kept, so that a failure can tell all of it. Libraries
 * are never closed: their threads and handlers may outlive whoever asked. */
#ifndef FS_BASE_DYNLIB_H
#define FS_BASE_DYNLIB_H

#include "base/status.h"

typedef struct {
    void *handle;
    char tried[600]; /* "libcuda.so.1: cannot open ...; /usr/lib/...: ..." */
} fs_library;

/* The first of `names` (NULL at the end) that opens. FS_DEVICE, without a sentence of its own: the caller has `tried`. */
fs_status fs_library_open(fs_library *out, const char *const *names);

/* The file `path` beside the folder of the module that this code is in (site-packages, when it is installed): where wheels
 * put theirs. 0 when that is not known or too long. */
int fs_library_beside(char *out, size_t bytes, const char *path);

/* NULL when the library has no such symbol. */
void *fs_library_symbol(const fs_library *l, const char *name);
/* The file that what lies at `symbol` was loaded from; "" when that is not known. Lives as long as the library. */
const char *fs_library_file(const void *symbol);

#endif
