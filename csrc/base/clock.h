/* clock.h - time that only goes forward, and waiting until a moment of it. */
#ifndef FS_BASE_CLOCK_H
#define FS_BASE_CLOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

int64_t fs_now_ns(void);
/* So many seconds from now, for pthread_cond_timedwait; negative ones are none, and 30 years are the most. */
struct timespec fs_deadline(double seconds);
/* pthread_cond_init, for waits until such moments. */
void fs_cond_init(pthread_cond_t *c);

#endif
