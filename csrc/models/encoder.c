#include "models/encoder.h"

const fs_weight_row fs_bert_layer_weights[] = {
    FS_ENCODER_LAYER_ROWS("attention.self.query", "attention.self.key", "attention.self.value",
                          "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense",
                          "output.LayerNorm"),
    { 0 },
};

fs_status fs_encoder_layer_run(fs_step *s, const fs_settings *set, const fs_encoder_layer *w, fs_carry *carry,
                               const fs_mask *mask) {
    fs_view sum;
    FS_TRY(fs_carry_in(s, set, carry));
    size_t mark = fs_arena_mark(s->arena);
    FS_TRY(fs_scratch(s, FS_F32, carry->x.rows, set->D, &sum));
    FS_TRY(fs_self_attention(s, set, &w->attention, sum, carry, mask));
    FS_TRY(fs_norm_carry(s, set, carry, sum, &w->attention_gamma, &w->attention_beta));
    FS_TRY(fs_mlp(s, set, &w->mlp, sum, carry));
    FS_TRY(fs_norm_carry(s, set, carry, sum, &w->mlp_gamma, &w->mlp_beta));
    fs_arena_reset(s->arena, mark); /* later work of this queue runs after what reads `sum` */
    return FS_OK;
}

fs_status fs_encoder_layer_plain(fs_step *s, const fs_settings *set, const void *ends, const void *layer,
                                 fs_carry *carry) {
    const fs_mask mask = fs_full_mask(set);
    (void)ends;
    return fs_encoder_layer_run(s, set, layer, carry, &mask);
}

fs_status fs_encoder_open(fs_step *s, const fs_settings *set, fs_carry *carry) {
    *carry = (fs_carry){ 0 };
    FS_TRY(fs_keep(s, FS_F32, s->rows->T, set->D, &carry->x));
    carry->in = carry->x;
    return set->dtype == FS_F32 ? FS_OK : fs_keep(s, set->dtype, s->rows->T, set->D, &carry->in);
}

fs_status fs_encoder_begin(fs_step *s, const fs_settings *set, fs_carry *carry, const fs_gather *tables, int n,
                           const fs_weight *gamma, const fs_weight *beta) {
    FS_TRY(fs_encoder_open(s, set, carry));
    const fs_norm norm = { gamma, beta, set->eps, set->dtype == FS_F32 ? NULL : &carry->in };
    return s->ops->gather_norm(s, carry->x, tables, n, &norm);
}

fs_status fs_encoder_begin_narrow(fs_step *s, const fs_settings *set, fs_carry *carry, const fs_gather *tables, int n,
                                  const fs_weight *gamma, const fs_weight *beta, const fs_weight *project,
                                  const fs_weight *project_bias) {
    const fs_norm norm = { gamma, beta, set->eps, NULL };
    const fs_epilogue bias = { .bias = project_bias }, none = { 0 };
    fs_view sum;
    FS_TRY(fs_encoder_open(s, set, carry));
    size_t mark = fs_arena_mark(s->arena);
    FS_TRY(fs_scratch(s, set->dtype, s->rows->T, project->desc.K, &sum));
    FS_TRY(s->ops->gather_norm(s, sum, tables, n, &norm));
    FS_TRY(s->ops->matmul(s, carry->x, sum, project, &bias));
    fs_arena_reset(s->arena, mark);
    return set->dtype == FS_F32 ? FS_OK : s->ops->add(s, carry->in, carry->x, &none);
}
