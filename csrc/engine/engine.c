/* engine.c - opening and closing, and what can be asked of an open engine.
 *
 *   open: check the files -> settings -> devices -> plan -> does it fit? -> slots -> threads (drivers load) -> ready
 *
 * close undoes it in reverse and also serves an open that failed half-way. */
#include "engine/engine.h"

#include "backends/devices.h"
#include "base/alloc.h"
#include "base/host.h"
#include "base/knobs.h"
#include "engine/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A few readers keep a volume busy; more only take cores from others. */
static fs_status choose_load_threads(fs_engine *e) {
    int64_t threads;
    FS_TRY(fs_knob_int(FS_KNOB_LOAD_THREADS, 0, 64, &threads));
    int cores = threads ? 0 : fs_host_read().cores;
    e->load_threads = threads ? (int)threads : cores < 4 ? cores : 4;
    return FS_OK;
}

static fs_status read_limits(fs_engine *e) {
    FS_TRY(choose_load_threads(e));
    FS_TRY(fs_capacity_read(&e->capacity, &e->set));
    if (e->set.any_length) e->set.P = e->capacity.batch_tokens;
    e->limits = (fs_limits){ .max_tokens = e->capacity.batch_tokens, .max_rows = e->capacity.rows };
    return FS_OK;
}

static fs_status open_devices(fs_engine *e, const fs_engine_options *o) {
    static const char *const preset[] = { "auto" };
    int64_t threads = o->threads;
    int count;
    fs_device_choice choices[FS_DEVICES_MAX];
    if (threads == 0) FS_TRY(fs_knob_int(FS_KNOB_THREADS, 0, INT32_MAX, &threads));
    if (threads == 0) threads = fs_host_read().cores;
    const fs_device_options common = { .threads = (int)threads, .max_memory = o->max_memory, .path = o->cpu_path };
    FS_TRY(fs_devices_resolve(o->devices ? o->devices : preset, o->devices ? o->device_count : 1, &common, choices,
                              &count));
    FS_TRY(fs_alloc(&e->drivers, (size_t)count, sizeof *e->drivers));
    for (; e->device_count < count; e->device_count++) {
        fs_driver *d = &e->drivers[e->device_count];
        const fs_device_choice *c = &choices[e->device_count];
        if (c->backend != choices[0].backend)
            return fs_fail(FS_CONFIG, "devices of one engine are of one kind, not %s and %s", choices[0].backend->name,
                           c->backend->name);
        FS_TRY(c->backend->open(&d->device, &c->options));
        d->engine = e;
        d->threads = c->options.threads;
        fs_cond_init(&d->wake);
    }
    return FS_OK;
}

static void list_devices(const fs_engine *e, fs_device *out[FS_DEVICES_MAX]) {
    for (int d = 0; d < e->device_count; d++) out[d] = e->drivers[d].device;
}

static fs_status plan_by_hand(fs_engine *e, const fs_engine_options *o, fs_device *const devices[]) {
    fs_need needs[FS_DEVICES_MAX];
    if (o->parallel && strcmp(o->parallel, "auto"))
        return fs_fail(FS_CONFIG, "parallel='%.60s' stands beside a plan written by hand; leave one of them out",
                       o->parallel);
    FS_TRY(fs_plan_from_stages(&e->plan, &e->set, o->stages, o->stage_count, e->device_count));
    FS_TRY(fs_plan_needs(needs, &e->plan, &e->set, &e->capacity, devices, e->device_count));
    return fs_plan_fits(needs, &e->capacity, devices, e->device_count);
}

/* Devices of two kinds of arithmetic may follow one another, but not take turns. */
static fs_status check_replicas(const fs_engine *e, fs_device *const devices[]) {
    for (int d = 1; d < e->device_count && e->plan.replica_count > 1; d++)
        if (strcmp(devices[0]->numerics, devices[d]->numerics))
            return fs_fail(FS_CONFIG,
                           "replicas on %s (%s) and %s (%s) would give a row different bits; use \"split\", or an "
                           "engine for each",
                           devices[0]->name, devices[0]->numerics, devices[d]->name, devices[d]->numerics);
    return FS_OK;
}

static fs_status make_plan(fs_engine *e, const fs_engine_options *o) {
    fs_device *devices[FS_DEVICES_MAX];
    fs_choice choice;
    list_devices(e, devices);
    if (o->stages) FS_TRY(plan_by_hand(e, o, devices));
    else {
        FS_TRY(fs_plan_choose(&e->plan, &choice, &e->set, &e->capacity, devices, e->device_count, o->parallel));
        if (!choice.fits) return fs_fail(FS_NO_MEMORY, "%s", choice.why);
        fs_parallel_text(&choice.parallel, e->parallel);
        memcpy(e->why, choice.why, sizeof e->why);
    }
    return check_replicas(e, devices);
}

static fs_status choose_dtype(fs_engine *e, const fs_checkpoint *c) {
    fs_device *devices[FS_DEVICES_MAX];
    list_devices(e, devices);
    return fs_settings_choose_dtype(&e->set, c, devices, e->device_count);
}

/* The device's own id; where devices differ, each; the type; and the degree of every tensor group, which orders sums. */
static void write_numerics(fs_engine *e) {
    char *at = e->numerics, *end = at + sizeof e->numerics;
    for (int d = 0; d < e->device_count; d++) {
        const char *id = e->drivers[d].device->numerics;
        if (!strstr(e->numerics, id)) at += snprintf(at, (size_t)(end - at), "%s%s", d ? " + " : "", id);
        if (at >= end) return;
    }
    at += snprintf(at, (size_t)(end - at), " %s", fs_dtype_name(e->set.dtype));
    const fs_replica_plan *p = &e->plan.replicas[0]; /* all share each layer alike */
    for (int i = 0, next; i < p->stage_count && at < end; i = next) {
        const fs_stage_plan *s = &p->stages[i];
        for (next = i + 1; next < p->stage_count && p->stages[next].ranks == s->ranks;) next++;
        if (s->ranks == 1) continue;
        at += snprintf(at, (size_t)(end - at), " tensor %d", s->ranks);
        if (next - i < p->stage_count && at < end)
            at += snprintf(at, (size_t)(end - at), " in %d-%d", s->first_layer, p->stages[next - 1].last_layer - 1);
    }
}

static fs_status works_open(fs_works *w, int room) {
    w->room = room;
    return fs_alloc(&w->items, (size_t)room, sizeof *w->items);
}

/* A slot of a part is in one of its driver's rings at most, so they cannot overflow. */
static fs_status open_rings(fs_engine *e) {
    for (int d = 0; d < e->device_count; d++) {
        int works = 1;
        for (int i = 0; i < e->plan.stage_count; i++) {
            const fs_stage_plan *s = &e->plan.stages[i];
            for (int r = 0; r < s->ranks; r++)
                works += s->devices[r] == d ? fs_stage_slots(&e->set, s, &e->capacity) : 0;
        }
        FS_TRY(works_open(&e->drivers[d].fifo, works));
        FS_TRY(works_open(&e->drivers[d].flight, works));
    }
    return FS_OK;
}

static fs_status open_replicas(fs_engine *e) {
    int64_t deadline;
    FS_TRY(fs_knob_int(FS_KNOB_COLLECTIVE_SECONDS, 1, 86400, &deadline));
    FS_TRY(fs_alloc(&e->replicas, (size_t)e->plan.replica_count, sizeof *e->replicas));
    while (e->replica_count < e->plan.replica_count) FS_TRY(fs_replica_open(e, e->replica_count++, (double)deadline));
    FS_TRY(open_rings(e));
    FS_TRY(fs_alloc(&e->buckets, FS_BUCKETS, sizeof *e->buckets));
    FS_TRY(fs_alloc(&e->pending, FS_WINDOW, sizeof *e->pending));
    FS_TRY(fs_alloc(&e->listed_rows, FS_WINDOW, sizeof *e->listed_rows));
    return fs_alloc(&e->picked, (size_t)e->limits.max_rows, sizeof *e->picked);
}

/* Each driver loads what its device holds, all at the same time. */
static fs_status start_threads(fs_engine *e, const fs_checkpoint *c) {
    fs_status st = FS_OK;
    for (int d = 0; d < e->device_count; d++) {
        e->drivers[d].loading = c;
        FS_TRY(fs_thread_start(&e->drivers[d].thread, fs_driver_main, &e->drivers[d]));
        e->drivers[d].started = 1;
    }
    for (int d = 0; d < e->device_count; d++) {
        pthread_mutex_lock(&e->lock);
        while (!e->drivers[d].loaded) pthread_cond_wait(&e->other, &e->lock);
        pthread_mutex_unlock(&e->lock);
        if (st == FS_OK && e->drivers[d].error.status != FS_OK) st = fs_error_raise(&e->drivers[d].error);
    }
    FS_TRY(st);
    FS_TRY(fs_thread_start(&e->scheduler, fs_scheduler_main, e));
    e->scheduler_started = 1;
    return FS_OK;
}

static fs_status engine_new(fs_engine **out) {
    fs_engine *e;
    FS_TRY(fs_alloc(&e, 1, sizeof *e));
    e->pid = getpid();
    e->fd = -1;
    atomic_init(&e->refs, 1);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work, NULL);
    pthread_cond_init(&e->room, NULL);
    pthread_cond_init(&e->other, NULL);
    TAILQ_INIT(&e->live);
    TAILQ_INIT(&e->inbox);
    TAILQ_INIT(&e->queue);
    *out = e;
    return FS_OK;
}

void fs_engine_unref(fs_engine *e) {
    if (atomic_fetch_sub(&e->refs, 1) > 1) return;
    pthread_cond_destroy(&e->other);
    pthread_cond_destroy(&e->room);
    pthread_cond_destroy(&e->work);
    pthread_mutex_destroy(&e->lock);
    fs_free(e);
}

/* Fails what is unfinished and waits until nobody is inside any more. */
static void stop(fs_engine *e) {
    fs_error error = { .status = FS_CANCELLED, .text = "the engine was closed before the request finished" };
    fs_job *j, *next;
    pthread_mutex_lock(&e->lock);
    e->stopping = 1;
    for (j = TAILQ_FIRST(&e->live); j; j = next) {
        next = TAILQ_NEXT(j, live_link);
        fs_job_fail(j, &error);
    }
    pthread_cond_broadcast(&e->work);
    pthread_cond_broadcast(&e->room);
    for (int d = 0; d < e->device_count; d++) fs_driver_call(&e->drivers[d]);
    while (e->visitors > 0) pthread_cond_wait(&e->other, &e->lock);
    pthread_mutex_unlock(&e->lock);
    if (e->scheduler_started) pthread_join(e->scheduler, NULL);
    for (int d = 0; d < e->device_count; d++)
        if (e->drivers[d].started) pthread_join(e->drivers[d].thread, NULL);
}

void fs_engine_close(fs_engine *e) {
    if (!e) return;
    if (e->pid != getpid()) {
        if (e->fd >= 0) close(e->fd); /* threads and locks stayed behind in the parent: the rest is left alone */
        return;
    }
    stop(e);
    for (int i = 0; i < e->replica_count; i++) fs_replica_close(&e->replicas[i]);
    fs_free(e->replicas);
    for (int d = 0; d < e->device_count; d++) {
        fs_driver *driver = &e->drivers[d];
        pthread_cond_destroy(&driver->wake);
        fs_free(driver->fifo.items);
        fs_free(driver->flight.items);
        driver->device->backend->close(driver->device);
    }
    fs_free(e->drivers);
    fs_plan_free(&e->plan);
    fs_free(e->buckets);
    fs_free(e->pending);
    fs_free(e->listed_rows);
    fs_free(e->picked);
    if (e->fd >= 0) close(e->fd);
    fs_engine_unref(e);
}

fs_status fs_engine_open(fs_engine **out, const fs_checkpoint *c, const fs_engine_options *options) {
    fs_status st = FS_OK;
    fs_engine *e = NULL;
    int64_t start = fs_now_ns();
    *out = NULL;
    FS_GO(fs_checkpoint_check(c));
    FS_GO(engine_new(&e));
    FS_GO(fs_settings_read(&e->set, c, options->dtype ? options->dtype : "auto"));
    FS_GO(fs_weights_check(c, &e->set));
    FS_GO(read_limits(e));
    FS_GO(open_devices(e, options));
    FS_GO(choose_dtype(e, c));
    FS_GO(make_plan(e, options));
    e->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (e->fd < 0)
        FS_GO(fs_fail(FS_DEVICE, "the host refused an eventfd (%s); raise the limit of open files", strerror(errno)));
    FS_GO(open_replicas(e));
    FS_GO(start_threads(e, c));
    write_numerics(e); /* devices have told all of theirs once they are loaded */
    e->stats.replicas = e->replica_count;
    e->stats.batch_tokens = e->limits.max_tokens;
    e->stats.open_seconds = (double)(fs_now_ns() - start) * 1e-9;
    *out = e;
    e = NULL;
done:
    if (e) {
        fs_error why;
        fs_error_take(&why, st); /* closing may fail at things of its own */
        fs_engine_close(e);
        fs_error_raise(&why);
    }
    return st;
}

int fs_engine_fd(const fs_engine *e) { return e->fd; }
const fs_settings *fs_engine_settings(const fs_engine *e) { return &e->set; }
const fs_plan *fs_engine_plan(const fs_engine *e) { return &e->plan; }
const char *fs_engine_parallel(const fs_engine *e) { return e->parallel; }
const char *fs_engine_plan_reason(const fs_engine *e) { return e->why; }
const char *fs_engine_numerics(const fs_engine *e) { return e->numerics; }
int fs_engine_device_count(const fs_engine *e) { return e->device_count; }

fs_engine_stats fs_engine_stats_read(fs_engine *e) {
    if (e->pid != getpid()) return e->stats;
    pthread_mutex_lock(&e->lock);
    fs_engine_stats stats = e->stats;
    pthread_mutex_unlock(&e->lock);
    return stats;
}

fs_status fs_engine_device_stats(fs_engine *e, int device, fs_device_stats *out) {
    if (e->pid != getpid())
        return fs_fail(FS_DEVICE, "this engine belongs to process %d, not to %d; open an engine here", (int)e->pid,
                       (int)getpid());
    if (device < 0 || device >= e->device_count)
        return fs_fail(FS_REQUEST, "device %d of %d was asked for", device, e->device_count);
    fs_driver *driver = &e->drivers[device];
    fs_device *d = driver->device;
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%s", d->name);
    snprintf(out->numerics, sizeof out->numerics, "%s", d->numerics);
    out->limit = d->budget.limit;
    out->peak = fs_budget_peak(&d->budget);
    for (int c = 0; c < FS_CHARGE_COUNT; c++) out->used[c] = fs_budget_used(&d->budget, (fs_charge)c);
    out->threads = driver->threads;
    pthread_mutex_lock(&e->lock);
    out->busy_seconds = (double)driver->busy_ns * 1e-9;
    pthread_mutex_unlock(&e->lock);
    return FS_OK;
}
