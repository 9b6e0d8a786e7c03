#include "base/thread.h"

#include <signal.h>
#include <string.h>

fs_status fs_thread_start(pthread_t *out, fs_thread_main run, void *arg) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(out, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        return fs_fail(FS_NO_MEMORY, "the host refused a thread (%s); raise the limit of processes or memory",
                       strerror(failed));
    return FS_OK;
}
