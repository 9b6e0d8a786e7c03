#include "models/forward.h"

const fs_layer_kind *fs_kind_of(const fs_settings *set, int layer) {
    int number;
    return set->arch->kind_of ? set->arch->kind_of(set, layer, &number) : set->arch->kinds;
}

int fs_number_of(const fs_settings *set, int layer) {
    int number = layer;
    if (set->arch->kind_of) set->arch->kind_of(set, layer, &number);
    return number;
}

int fs_layer_like(const fs_settings *set, int layer) {
    if (!set->arch->kind_of) return layer;
    for (int other = 0; other < layer; other++)
        if (fs_number_of(set, other) == fs_number_of(set, layer) && fs_kind_of(set, other) == fs_kind_of(set, layer))
            return other;
    return layer;
}

fs_status fs_forward_begin(fs_step *s, const fs_settings *set, const void *ends, int first_layer, fs_carry *carry) {
    return first_layer == 0 ? set->arch->begin(s, set, ends, carry) : FS_OK;
}

fs_status fs_forward_layer(fs_step *s, const fs_settings *set, const void *ends, int layer, const void *weights,
                           fs_carry *carry) {
    const fs_layer_kind *kind = fs_kind_of(set, layer);
    FS_TRY(kind->run(s, set, ends, weights, carry));
    if (kind->end && (layer + 1 == set->L || fs_kind_of(set, layer + 1) != kind)) return kind->end(s, set, ends, carry);
    return FS_OK;
}

fs_status fs_forward(fs_step *s, const fs_settings *set, const fs_shard *shard, fs_carry *carry) {
    const fs_shard_plan *plan = &shard->plan;
    FS_TRY(fs_forward_begin(s, set, shard->ends, plan->first_layer, carry));
    for (int l = plan->first_layer; l < plan->last_layer; l++)
        FS_TRY(fs_forward_layer(s, set, shard->ends, l, shard->layers[l - plan->first_layer], carry));
    return FS_OK;
}

fs_status fs_carry_push(fs_step *s, const fs_settings *set, int layer, fs_carry *carry) {
    const int decodes = fs_decodes(set, layer);
    *carry = (fs_carry){ 0 };
    FS_TRY(fs_keep(s, FS_F32, decodes ? s->targets->T : s->rows->T, set->D, &carry->x));
    if (set->targets == FS_NOTHING) return FS_OK;
    if (decodes) return fs_keep(s, set->dtype, s->rows->T, set->D, &carry->other);
    return fs_keep(s, FS_F32, s->targets->T, set->D, &carry->other);
}
