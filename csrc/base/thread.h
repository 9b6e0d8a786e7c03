/* thread.h - starting threads of our own inside somebody else's process. */
#ifndef FS_BASE_THREAD_H
#define FS_BASE_THREAD_H

#include "base/status.h"

#include <pthread.h>

typedef void *(*fs_thread_main)(void *);

/* Starts a thread that takes no signals. FS_NO_MEMORY when the host refuses one. */
fs_status fs_thread_start(pthread_t *out, fs_thread_main run, void *arg);

#endif
