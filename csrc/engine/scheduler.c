/* scheduler.c - the scheduler's thread: as soon as a replica has a free slot and a row waits, a batch goes out.
 *
 * Rows of a large job are admitted some at a time, so the first batch leaves before the last row has been looked at.
 *
 * How large a batch is matters little on a CPU, whose kernels do not care about T: MiniLM's shape, lognormal rows of
 * about 40 tokens, Zen 3, 2 cores: 7116, 7236, 7183, 7370 tokens/s with 512, 1024, 2048, 4096 tokens a batch; with one
 * slot for two 7180.
 * Where several devices take turns, the last batches get smaller (half of an even share of what is left), so that no
 * device stands still while another has a full batch to go; and through stages go batches that are just large enough,
 * so that the stages fill and drain quickly.
 *
 * A row alone through an idle engine costs 20 to 85 us beyond its ops: three wake-ups (scheduler, driver, caller). */
#include "engine/internal.h"

#include <sys/prctl.h>

#define FS_ADMIT 512 /* rows admitted between two looks at the slots */

static int has_work(const fs_engine *e) { return e->listed > 0 && e->broken.status == FS_OK; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t batch_tokens(const fs_engine *e, const fs_replica *replica) {
    int64_t lanes = 0, left = 0, most = e->capacity.batch_tokens;
    int64_t enough = least(most, e->drivers[0].device->backend->enough_tokens);
    for (int i = 0; i < e->replica_count; i++) lanes += e->replicas[i].broken ? 0 : e->replicas[i].stage_count;
    if (replica->streams) return most; /* a layer that has come goes over as much as can be */
    if (replica->stage_count > 1) most = enough;
    if (lanes < 2 || !TAILQ_EMPTY(&e->inbox) || !TAILQ_EMPTY(&e->queue)) return most; /* more is to come */
    for (int64_t i = 0; i < e->listed; i++) left += e->pending[i].tokens;
    int64_t share = left / (2 * lanes);
    return least(most, share > enough / 2 ? share : enough / 2 + 1);
}

void *fs_scheduler_main(void *engine) {
    fs_engine *e = engine;
    prctl(PR_SET_NAME, "fs-scheduler");
    pthread_mutex_lock(&e->lock);
    while (!e->stopping) {
        fs_rows_list(e);
        fs_replica *replica = has_work(e) ? fs_replica_with_room(e) : NULL;
        if (replica) {
            fs_batch *b = STAILQ_FIRST(&replica->free);
            STAILQ_REMOVE_HEAD(&replica->free, link);
            e->limits.max_tokens = batch_tokens(e, replica);
            fs_rows_take(e, b);
            fs_batch_start(replica, b);
        } else if (!TAILQ_EMPTY(&e->inbox)) {
            fs_rows_admit(e, FS_ADMIT);
            /* Let drivers and callers in between. */
            pthread_mutex_unlock(&e->lock);
            pthread_mutex_lock(&e->lock);
        } else {
            pthread_cond_wait(&e->work, &e->lock);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}
