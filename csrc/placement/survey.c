#include "placement/survey.h"

#include "base/alloc.h"

static fs_status open_outlines(fs_survey *s, const fs_survey_options *o) {
    static const char *const preset[] = { "auto" };
    fs_device_choice choices[FS_DEVICES_MAX];
    const fs_device_options common = { .threads = 1, .path = o->cpu_path, .outline = 1 };
    int count;
    FS_TRY(fs_devices_resolve(o->devices ? o->devices : preset, o->devices ? o->device_count : 1, &common, choices,
                              &count));
    if (o->memory_count > 1 && o->memory_count != count)
        return fs_fail(FS_CONFIG, "memory gives %d sizes for %d devices; give one for all, or one each",
                       o->memory_count, count);
    for (; s->device_count < count; s->device_count++) {
        fs_device_choice *c = &choices[s->device_count];
        if (o->memory_count) c->options.max_memory = o->memory[o->memory_count > 1 ? s->device_count : 0];
        if (!c->backend->one_memory && c->options.max_memory == 0)
            return fs_fail(FS_CONFIG,
                           "plan() opens no device, so it does not know the memory of %s:%d; say it, as in "
                           "memory=\"24GB\"",
                           c->backend->name, c->options.index);
        FS_TRY(c->backend->open(&s->devices[s->device_count], &c->options));
    }
    return FS_OK;
}

/* Of each stage: the dearest of its ranks is rank 0, which has all that the others have. */
static fs_status stage_costs(fs_survey *s) {
    fs_status st = FS_OK;
    fs_layer_load *loads = NULL;
    int ranks = 0;
    FS_GO(fs_alloc(&s->stage_cost, (size_t)s->plan.stage_count, sizeof *s->stage_cost));
    FS_GO(fs_alloc(&loads, (size_t)s->set.L, sizeof *loads));
    for (int i = 0; i < s->plan.stage_count; i++) {
        const fs_stage_plan *stage = &s->plan.stages[i];
        if (stage->ranks != ranks) FS_GO(fs_layer_loads(loads, &s->set, &s->capacity, stage->ranks, s->devices[0]));
        ranks = stage->ranks;
        for (int l = stage->first_layer; l < stage->last_layer; l++) s->stage_cost[i] += loads[l].cost;
    }
done:
    fs_free(loads);
    return st;
}

fs_status fs_survey_open(fs_survey *out, const fs_checkpoint *c, const fs_survey_options *o) {
    *out = (fs_survey){ 0 };
    FS_TRY(fs_settings_read(&out->set, c, o->dtype ? o->dtype : "auto"));
    FS_TRY(open_outlines(out, o));
    FS_TRY(fs_settings_choose_dtype(&out->set, c, out->devices, out->device_count));
    FS_TRY(fs_capacity_read(&out->capacity, &out->set));
    FS_TRY(fs_plan_choose(&out->plan, &out->choice, &out->set, &out->capacity, out->devices, out->device_count,
                          o->parallel));
    FS_TRY(fs_plan_needs(out->needs, &out->plan, &out->set, &out->capacity, out->devices, out->device_count));
    const fs_shard_plan all = { .last_layer = (int)out->set.L, .ranks = 1 };
    out->whole = fs_shard_bytes(&out->set, &all, out->devices[0]);
    return stage_costs(out);
}

void fs_survey_close(fs_survey *s) {
    fs_free(s->stage_cost);
    fs_plan_free(&s->plan);
    for (int d = 0; d < s->device_count; d++) s->devices[d]->backend->close(s->devices[d]);
    *s = (fs_survey){ 0 };
}
