/* load.c - a shard: memory for all its slabs, then what the files hold (reading.h). */
#include "models/load.h"

#include "base/alloc.h"
#include "models/reading.h"
#include "models/weights.h"

fs_status fs_shard_check(const fs_settings *set, int ranks) {
    const char *what = NULL;
    int64_t size = 0;
    if (ranks < 1) return fs_fail(FS_CONFIG, "a tensor group of %d devices cannot be; it has 1 or more", ranks);
    if (set->F % ranks) what = "inner width", size = set->F;
    if (set->KV % ranks) what = "heads of keys and values", size = set->KV;
    if (set->H % ranks) what = "attention heads", size = set->H;
    if (what)
        return fs_fail(FS_CONFIG, "the model's %s (%lld) cannot be shared evenly by a tensor group of %d devices", what,
                       (long long)size, ranks);
    return FS_OK;
}

static int layers_of(const fs_shard_plan *plan) { return plan->last_layer - plan->first_layer - plan->streamed; }

/* Where in the shard the weights of its layer i lie: elsewhere than at i where an earlier one has the same. */
static int place_of(const fs_settings *set, const fs_shard_plan *plan, int i) {
    for (int other = 0; set->arch->kind_of && other < i; other++)
        if (fs_layer_like(set, plan->first_layer + other) == fs_layer_like(set, plan->first_layer + i)) return other;
    return i;
}

size_t fs_shard_bytes(const fs_settings *set, const fs_shard_plan *plan, fs_device *device) {
    size_t bytes = fs_slab_bytes(set, plan, FS_OUTSIDE, device);
    for (int i = 0; i < layers_of(plan); i++)
        if (place_of(set, plan, i) == i) bytes += fs_slab_bytes(set, plan, plan->first_layer + i, device);
    return bytes;
}

size_t fs_shard_slab_bytes(const fs_settings *set, const fs_shard_plan *plan, fs_device *device) {
    size_t most = 0;
    for (int layer = plan->last_layer - plan->streamed; layer < plan->last_layer; layer++) {
        size_t bytes = fs_slab_bytes(set, plan, layer, device);
        if (bytes > most) most = bytes;
    }
    return most;
}

static fs_status slab_open(fs_memory *memory, fs_slab *slab, const fs_settings *set, const fs_shard_plan *plan,
                           int layer, void *slots, fs_device *d) {
    size_t bytes = fs_slab_bytes(set, plan, layer, d);
    if (bytes > 0) FS_TRY(d->backend->alloc(d, FS_WEIGHTS, bytes, memory));
    *slab = (fs_slab){ layer, slots, memory->at };
    return FS_OK;
}

/* Memory for all slabs, and which they are; slabs has room for one more than there are layers. */
static fs_status shard_open(fs_shard *out, fs_slab *slabs, int *count, const fs_settings *set,
                            const fs_shard_plan *plan, fs_device *d) {
    int layers = layers_of(plan);
    size_t all = fs_shard_bytes(set, plan, d);
    *out = (fs_shard){ .plan = *plan, .device = d };
    /* All of it at once, so that the sentence says what the whole shard lacks and not its last layer. */
    FS_TRY(fs_budget_take(&d->budget, FS_WEIGHTS, all));
    fs_budget_give(&d->budget, FS_WEIGHTS, all);
    FS_TRY(fs_alloc(&out->layers, (size_t)layers, sizeof *out->layers));
    FS_TRY(fs_alloc(&out->layer_slabs, (size_t)layers, sizeof *out->layer_slabs));
    for (int i = 0; i < layers; i++) {
        int layer = plan->first_layer + i, place = place_of(set, plan, i);
        if (place < i) {
            out->layers[i] = out->layers[place];
            continue;
        }
        FS_TRY(fs_alloc(&out->layers[i], 1, fs_kind_of(set, layer)->bytes));
        FS_TRY(slab_open(&out->layer_slabs[i], &slabs[(*count)++], set, plan, layer, out->layers[i], d));
    }
    FS_TRY(fs_alloc(&out->ends, 1, fs_ends_bytes(set)));
    return slab_open(&out->ends_slab, &slabs[(*count)++], set, plan, FS_OUTSIDE, out->ends, d);
}

/* Without a checkpoint only the shapes are made. */
static fs_status make_shard(fs_shard *out, const fs_checkpoint *c, const fs_settings *set, const fs_shard_plan *plan,
                            fs_device *device, int readers) {
    fs_status st = FS_OK;
    fs_slab *slabs = NULL;
    fs_reading reading = { 0 };
    int count = 0;
    *out = (fs_shard){ 0 };
    FS_GO(fs_shard_check(set, plan->ranks));
    FS_GO(fs_alloc(&slabs, (size_t)layers_of(plan) + 1, sizeof *slabs));
    FS_GO(shard_open(out, slabs, &count, set, plan, device));
    if (c) {
        FS_GO(fs_reading_open(&reading, c, set, plan, device, readers));
        FS_GO(fs_reading_slabs(&reading, slabs, count));
    }
    for (int i = 0; !c && i < count; i++) FS_GO(fs_slab_shape(&slabs[i], set, plan, device));
done:
    fs_reading_close(&reading);
    fs_free(slabs);
    if (st != FS_OK) fs_shard_release(out);
    return st;
}

fs_status fs_shard_load(fs_shard *out, const fs_checkpoint *c, const fs_settings *set, const fs_shard_plan *plan,
                        fs_device *device, int readers) {
    return make_shard(out, c, set, plan, device, readers);
}

fs_status fs_shard_shape(fs_shard *out, const fs_settings *set, const fs_shard_plan *plan, fs_device *device) {
    return make_shard(out, NULL, set, plan, device, 0);
}

void fs_shard_release(fs_shard *s) {
    for (int i = layers_of(&s->plan) - 1; i >= 0; i--) {
        int shared = 0; /* with an earlier one, which will be freed */
        if (s->layer_slabs) s->device->backend->release(s->device, &s->layer_slabs[i]);
        for (int other = 0; s->layers && other < i; other++) shared |= s->layers[other] == s->layers[i];
        if (s->layers && !shared) fs_free(s->layers[i]);
    }
    if (s->device) s->device->backend->release(s->device, &s->ends_slab);
    fs_free(s->layer_slabs);
    fs_free(s->layers);
    fs_free(s->ends);
    *s = (fs_shard){ 0 };
}
