/* budget.h - what a device's memory is spent on.
 *
 * One budget per device. Every device allocation is charged to it under a class; `limit` (max_memory, or what the device
 * has) bounds the sum, but for HOST: pinned host memory that stays, of which the device has none. Thread-safe. Models get names of their own when an engine holds several. */
#ifndef FS_BASE_BUDGET_H
#define FS_BASE_BUDGET_H

#include "base/status.h"

#include <pthread.h>
#include <stdint.h>

#define FS_CHARGES(X) X(WEIGHTS, "weights") X(WORKSPACE, "workspace") X(STAGING, "staging") X(HOST, "host")

typedef enum {
#define X(id, name) FS_##id,
    FS_CHARGES(X)
#undef X
        FS_CHARGE_COUNT
} fs_charge;

typedef struct {
    pthread_mutex_t lock;
    char device[32]; /* "cpu:0", for the sentence */
    char note[96];   /* "", or what belongs behind a sentence: "; 13.1 of 14.6 GiB are used by other processes" */
    size_t limit;    /* bytes; 0: no limit */
    size_t used[FS_CHARGE_COUNT], peak;
} fs_budget;

void fs_budget_init(fs_budget *b, const char *device, size_t limit);
void fs_budget_destroy(fs_budget *b);
/* FS_NO_MEMORY says how much is missing and what holds the rest. */
fs_status fs_budget_take(fs_budget *b, fs_charge charge, size_t bytes);
void fs_budget_give(fs_budget *b, fs_charge charge, size_t bytes);
size_t fs_budget_used(fs_budget *b, fs_charge charge);
size_t fs_budget_peak(fs_budget *b);
const char *fs_charge_name(fs_charge charge);

#endif
