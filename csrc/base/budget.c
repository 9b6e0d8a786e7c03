#include "base/budget.h"

#include <stdio.h>
#include <string.h>

#define MB(bytes) ((double)(bytes) / 1e6)

const char *fs_charge_name(fs_charge charge) {
    static const char *const names[] = {
#define X(id, name) name,
        FS_CHARGES(X)
#undef X
    };
    return charge < FS_CHARGE_COUNT ? names[charge] : "";
}

void fs_budget_init(fs_budget *b, const char *device, size_t limit) {
    memset(b, 0, sizeof *b);
    pthread_mutex_init(&b->lock, NULL);
    snprintf(b->device, sizeof b->device, "%s", device);
    b->limit = limit;
}

void fs_budget_destroy(fs_budget *b) { pthread_mutex_destroy(&b->lock); }

static size_t total(const fs_budget *b) {
    size_t sum = 0;
    for (int c = 0; c < FS_CHARGE_COUNT; c++) sum += c == FS_HOST ? 0 : b->used[c];
    return sum;
}

fs_status fs_budget_take(fs_budget *b, fs_charge charge, size_t bytes) {
    pthread_mutex_lock(&b->lock);
    size_t before = total(b);
    size_t room = b->limit == 0 || charge == FS_HOST ? SIZE_MAX - before : b->limit > before ? b->limit - before : 0;
    if (bytes <= room) {
        b->used[charge] += bytes;
        if (total(b) > b->peak) b->peak = total(b);
    }
    pthread_mutex_unlock(&b->lock);
    if (bytes <= room) return FS_OK;
    return fs_fail(FS_NO_MEMORY,
                   "%s: %s need %.1f MB more, of a budget of %.1f MB %.1f MB are left, %.1f MB are missing; raise "
                   "max_memory or free memory on the device%s",
                   b->device, fs_charge_name(charge), MB(bytes), MB(b->limit), MB(room), MB(bytes - room), b->note);
}

void fs_budget_give(fs_budget *b, fs_charge charge, size_t bytes) {
    pthread_mutex_lock(&b->lock);
    b->used[charge] -= bytes;
    pthread_mutex_unlock(&b->lock);
}

size_t fs_budget_used(fs_budget *b, fs_charge charge) {
    pthread_mutex_lock(&b->lock);
    size_t bytes = b->used[charge];
    pthread_mutex_unlock(&b->lock);
    return bytes;
}

size_t fs_budget_peak(fs_budget *b) {
    pthread_mutex_lock(&b->lock);
    size_t bytes = b->peak;
    pthread_mutex_unlock(&b->lock);
    return bytes;
}
