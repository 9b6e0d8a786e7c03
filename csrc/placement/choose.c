/* choose.c - parallel= and devices -> a plan.
 *
 *   auto: replicas where one device holds the model; else stages, as few as it takes, and replicas of these; else layers
 *   are streamed; never a tensor group, whose degree would change the bits.
 *
 * What does not fit is planned all the same, as if devices had no limit: the sentence then says what is missing, and
 * plan() shows where. */
#include "backends/devices.h"
#include "base/alloc.h"
#include "placement/plan.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const fs_settings *set;
    const fs_capacity *capacity;
    fs_device *const *devices;
    int count;
    fs_layer_load *loads; /* [L] for groups of `ranks`; 0: not read yet */
    int ranks;
    fs_need *needs; /* [count] of the plan made last */
} task;

/* What is left of a device; a device without a limit has room for anything. */
static size_t room_of(fs_device *d) {
    size_t held = 0;
    for (int c = 0; c < FS_CHARGE_COUNT; c++) held += fs_budget_used(&d->budget, (fs_charge)c);
    if (d->budget.limit == 0) return SIZE_MAX;
    return d->budget.limit > held ? d->budget.limit - held : 0;
}

static fs_status read_loads(task *t, int ranks) {
    if (t->ranks == ranks) return FS_OK;
    t->ranks = 0;
    FS_TRY(fs_layer_loads(t->loads, t->set, t->capacity, ranks, t->devices[0]));
    t->ranks = ranks;
    return FS_OK;
}

/* The cuts of a replica that begins at `devices`; where none fits, as if there were room. */
static fs_status cut(task *t, int *cuts, const fs_parallel *p, fs_device *const *devices) {
    size_t rooms[FS_DEVICES_MAX];
    int found;
    for (int s = 0; s < p->split; s++) {
        rooms[s] = SIZE_MAX;
        for (int r = 0; r < p->tensor; r++) {
            size_t room = room_of(devices[s * p->tensor + r]);
            if (room < rooms[s]) rooms[s] = room;
        }
    }
    FS_TRY(fs_balance(cuts, &found, t->loads, (int)t->set->L, rooms, p->split));
    return found ? FS_OK : fs_balance(cuts, &found, t->loads, (int)t->set->L, NULL, p->split);
}

/* As many layers as the device has room for beside what a pass takes; all where they fit without one. */
static fs_status choose_window(task *t, fs_stage_plan *s) {
    fs_device *d = t->devices[s->devices[0]];
    const int layers = s->last_layer - s->first_layer;
    const size_t room = room_of(d);
    const fs_shard_plan whole = { .first_layer = s->first_layer, .last_layer = s->last_layer, .ranks = 1 };
    const fs_shard_plan streamed = { s->first_layer, s->last_layer, .ranks = 1, .streamed = layers };
    fs_part_bytes b;
    FS_TRY(fs_part_bytes_read(&b, t->set, &whole, 0, t->capacity, d));
    if (fs_part_total(&b) <= room || layers == 1) return FS_OK;
    FS_TRY(fs_part_bytes_read(&b, t->set, &streamed, 1, t->capacity, d));
    const size_t least = fs_part_total(&b);
    s->window = 1;
    if (least >= room) return FS_OK;
    const size_t more = (room - least) / b.slabs;
    s->window += more < (size_t)layers - 2 ? (int)more : layers - 2;
    return FS_OK;
}

/* The plan of these numbers, and what it needs. */
static fs_status build(fs_plan *out, task *t, const fs_parallel *p) {
    fs_status st = FS_OK;
    fs_stage_plan *stages = NULL;
    int cuts[FS_DEVICES_MAX + 1] = { 0, (int)t->set->L }, count = p->replicate * p->split;
    *out = (fs_plan){ 0 };
    FS_GO(fs_alloc(&stages, (size_t)count, sizeof *stages));
    if (p->split > 1) FS_GO(read_loads(t, p->tensor));
    for (int i = 0; i < count; i++) {
        int stage = i % p->split, first = i * p->tensor;
        /* Where devices share their memory all replicas are cut alike, and load their weights once. */
        if (stage == 0 && p->split > 1 && (i == 0 || !t->devices[0]->backend->one_memory))
            FS_GO(cut(t, cuts, p, t->devices + first));
        stages[i] = (fs_stage_plan){ cuts[stage], cuts[stage + 1], .ranks = p->tensor };
        for (int r = 0; r < p->tensor; r++) stages[i].devices[r] = first + r;
        if (p->stream) FS_GO(choose_window(t, &stages[i]));
    }
    FS_GO(fs_plan_from_stages(out, t->set, stages, count, t->count));
    FS_GO(fs_plan_needs(t->needs, out, t->set, t->capacity, t->devices, t->count));
done:
    if (st != FS_OK) fs_plan_free(out);
    fs_free(stages);
    return st;
}

static int fits(const task *t) {
    for (int d = 0; d < t->count; d++) {
        size_t limit = t->devices[d]->budget.limit;
        if (limit && t->needs[d].weights + t->needs[d].workspace + t->needs[d].staging > limit) return 0;
    }
    return 1;
}

static int divides(const fs_settings *set, int degree) { return set->H % degree == 0 && set->F % degree == 0; }

/* Degrees of tensor groups that the model takes: "2, 3, 4"; empty: none. */
static void degrees_text(const fs_settings *set, char *out, size_t room) {
    size_t used = 0;
    *out = 0;
    for (int d = 2; d <= FS_MAX_GROUP; d++)
        if (divides(set, d) && used < room)
            used += (size_t)snprintf(out + used, room - used, "%s%d", used ? ", " : "", d);
}

fs_status fs_plan_check(const fs_parallel *p, const fs_settings *set) {
    char text[FS_PARALLEL_TEXT], degrees[40];
    const char *said = fs_parallel_text(p, text);
    if (p->tensor > 1 && (p->tensor > FS_MAX_GROUP || !divides(set, p->tensor))) {
        degrees_text(set, degrees, sizeof degrees);
        return fs_fail(
            FS_CONFIG,
            "parallel='%s': %d devices cannot share the model's %lld attention heads and inner width of %lld "
            "evenly; %s%s would do as a tensor degree, \"replicate\" and \"split\" need none",
            said, p->tensor, (long long)set->H, (long long)set->F, *degrees ? "" : "none from 2 to 8", degrees);
    }
    if (p->split <= set->L) return FS_OK;
    fs_parallel other = { .split = (int)set->L, .tensor = p->tensor };
    while (p->replicate * p->split % other.split) other.split--;
    other.replicate = p->replicate * p->split / other.split;
    char text_of_other[FS_PARALLEL_TEXT];
    return fs_fail(FS_CONFIG,
                   "parallel='%s' cuts the model's %lld layers into %d stages, which hold one layer at least; name "
                   "fewer devices, or write \"%s\"",
                   said, (long long)set->L, p->split, fs_parallel_text(&other, text_of_other));
}

/* The first way, in the order of auto, by which the model fits on all of the devices; then with tensor groups. */
static fs_status find_fitting(fs_plan *out, fs_parallel *p, int *found, task *t, int with_tensor) {
    *found = 0;
    for (int tensor = 1; tensor <= (with_tensor ? FS_MAX_GROUP : 1); tensor++) {
        if (t->count % tensor || !divides(t->set, tensor)) continue;
        for (int split = 1; split <= t->count / tensor && split <= t->set->L && split <= FS_DEVICES_MAX; split++) {
            if (t->count / tensor % split) continue;
            *p = (fs_parallel){ .replicate = t->count / tensor / split, .split = split, .tensor = tensor };
            FS_TRY(build(out, t, p));
            if ((*found = fits(t))) return FS_OK;
            fs_plan_free(out);
        }
    }
    return FS_OK;
}

/* The most stages that divide the devices. */
static int most_stages(const task *t) {
    int split = 1;
    for (int s = 1; s <= t->count && s <= t->set->L; s++)
        if (t->count % s == 0) split = s;
    return split;
}

/* Stages that stream what they have no room for. */
static fs_status find_streaming(fs_plan *out, fs_parallel *p, int *found, task *t) {
    int split = most_stages(t);
    *p = (fs_parallel){ .replicate = t->count / split, .split = split, .tensor = 1, .stream = 1 };
    FS_TRY(build(out, t, p));
    *found = fits(t);
    if (!*found) fs_plan_free(out);
    return FS_OK;
}

/* How many devices like the largest it would take, as stages; 0: no number of them. */
static fs_status stages_needed(int *out, task *t) {
    size_t rooms[FS_DEVICES_MAX], room = 0;
    int cuts[FS_DEVICES_MAX + 1], found = 0;
    *out = 0;
    FS_TRY(read_loads(t, 1));
    for (int d = 0; d < t->count; d++)
        if (room_of(t->devices[d]) > room) room = room_of(t->devices[d]);
    for (int n = 1; n <= t->set->L && n <= FS_DEVICES_MAX; n++) {
        rooms[n - 1] = room;
        FS_TRY(fs_balance(cuts, &found, t->loads, (int)t->set->L, rooms, n));
        if (!found) continue;
        *out = n;
        return FS_OK;
    }
    return FS_OK;
}

/* What is missing, and what would fit. */
static fs_status explain(fs_choice *choice, task *t) {
    char text[FS_PARALLEL_TEXT];
    fs_error missing;
    fs_plan other;
    fs_parallel p;
    int found, stages = 0;
    fs_error_take(&missing, fs_plan_fits(t->needs, t->capacity, t->devices, t->count));
    FS_TRY(find_fitting(&other, &p, &found, t, 1));
    if (!found) FS_TRY(find_streaming(&other, &p, &found, t));
    if (found) {
        fs_plan_free(&other);
        snprintf(choice->why, sizeof choice->why, "%.700s; parallel=\"%s\" would fit", missing.text,
                 fs_parallel_text(&p, text));
        return FS_OK;
    }
    /* Parts of one host have no more memory than the host. */
    if (!t->devices[0]->backend->one_memory) FS_TRY(stages_needed(&stages, t));
    if (stages > t->count)
        snprintf(choice->why, sizeof choice->why, "%.700s; parallel=\"split\" over %d such devices would fit",
                 missing.text, stages);
    else snprintf(choice->why, sizeof choice->why, "%.700s", missing.text);
    return FS_OK;
}

/* The numbers of auto, and why. A model that fits in no way is shown in as many stages as it takes devices. */
static fs_status choose_auto(fs_plan *out, fs_choice *choice, task *t) {
    fs_parallel *p = &choice->parallel;
    FS_TRY(find_fitting(out, p, &choice->fits, t, 0));
    if (!choice->fits) FS_TRY(find_streaming(out, p, &choice->fits, t));
    if (!choice->fits) {
        int split = most_stages(t);
        *p = (fs_parallel){ .replicate = t->count / split, .split = split, .tensor = 1 };
        FS_TRY(build(out, t, p));
        return explain(choice, t);
    }
    if (p->stream)
        snprintf(choice->why, sizeof choice->why,
                 "the model does not fit on %s, so layers come again for each pass of up to %d batches",
                 t->count > 1 ? "the devices" : "the device", t->capacity->pass_slots);
    else if (p->split > 1)
        snprintf(choice->why, sizeof choice->why, "the model fits on no device alone, but on %d", p->split);
    else snprintf(choice->why, sizeof choice->why, "the model fits on %s device", t->count > 1 ? "each" : "the one");
    return FS_OK;
}

fs_status fs_plan_choose(fs_plan *out, fs_choice *choice, const fs_settings *set, const fs_capacity *c,
                         fs_device *const devices[], int n, const char *parallel) {
    fs_status st = FS_OK;
    task t = { .set = set, .capacity = c, .devices = devices, .count = n };
    *out = (fs_plan){ 0 };
    *choice = (fs_choice){ 0 };
    FS_TRY(fs_parallel_read(&choice->parallel, parallel, n));
    if (!choice->parallel.is_auto) FS_TRY(fs_plan_check(&choice->parallel, set));
    FS_GO(fs_alloc(&t.needs, (size_t)n, sizeof *t.needs));
    FS_GO(fs_alloc(&t.loads, (size_t)set->L, sizeof *t.loads));
    if (choice->parallel.is_auto) {
        FS_GO(choose_auto(out, choice, &t));
    } else {
        FS_GO(build(out, &t, &choice->parallel));
        choice->fits = fits(&t);
        if (choice->fits) snprintf(choice->why, sizeof choice->why, "as asked for");
        else FS_GO(explain(choice, &t));
    }
done:
    if (st != FS_OK) fs_plan_free(out);
    fs_free(t.loads);
    fs_free(t.needs);
    return st;
}
