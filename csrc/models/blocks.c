/* blocks.c - the parts of a transformer layer that several architectures share.
 *
 * Written for a tensor group of any size. Where a weight is cut along its columns, a rank's product is a partial sum:
 *
 *   one rank:    y = context . out + bias + x                 (all in the product's epilogue)
 *   more ranks:  y = context . out,  y = sum over ranks y,  y = y + bias + x      (bias and x once, behind the sum)
 *
 * so every rank ends with the same bits. What only products and attention read (normed x, qkv, context, inner) has the
 * type of the products; sums, and x on its way past the blocks, are fp32:
 *
 *   carry.in -> qkv -> context --.              carry.in -> inner --.
 *   carry.x --------------------(+)-> y -norm-> carry.x ----------(+)-> y -norm-> carry.x, carry.in
 *
 * Scratch is given back at once: later work of the same queue runs after the ops
 * that still read it. */
#include "models/arch.h"

static fs_status push(fs_step *s, fs_arena *arena, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out) {
    FS_TRY(fs_arena_view(arena, dtype, rows, cols, out));
    return s->device->backend->poison(s->queue, out->at, (size_t)(rows * cols) * fs_dtype_bytes(dtype));
}

fs_status fs_keep(fs_step *s, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out) {
    return push(s, s->kept, dtype, rows, cols, out);
}

fs_status fs_scratch(fs_step *s, fs_dtype dtype, int64_t rows, int64_t cols, fs_view *out) {
    return push(s, s->arena, dtype, rows, cols, out);
}

fs_status fs_carry_in(fs_step *s, const fs_settings *set, fs_carry *carry) {
    const fs_epilogue none = { 0 };
    const fs_view x = carry->x;
    if (carry->in.at) return FS_OK;
    if (set->dtype == FS_F32) {
        carry->in = x;
        return FS_OK;
    }
    FS_TRY(fs_keep(s, set->dtype, x.rows, x.cols, &carry->in));
    return s->ops->add(s, carry->in, x, &none);
}

fs_status fs_norm_carry(fs_step *s, const fs_settings *set, fs_carry *carry, fs_view x, const fs_weight *gamma,
                        const fs_weight *beta) {
    const fs_norm norm = { gamma, beta, set->eps, set->dtype == FS_F32 ? NULL : &carry->in };
    return s->ops->layer_norm(s, carry->x, x, &norm);
}

/* y = x . w + bias + residual, where w holds this rank's columns; y may be the residual. */
static fs_status product_of_parts(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_weight *bias,
                                  const fs_view *residual) {
    const fs_epilogue none = { 0 }, rest = { .bias = fs_given(bias), .residual = residual };
    size_t mark = fs_arena_mark(s->arena);
    fs_view sum = y;
    if (s->ranks <= 1) return s->ops->matmul(s, y, x, w, &rest);
    if (y.at == residual->at) FS_TRY(fs_scratch(s, FS_F32, y.rows, y.cols, &sum));
    FS_TRY(s->ops->matmul(s, sum, x, w, &none));
    FS_TRY(s->ops->all_reduce(s, sum));
    FS_TRY(s->ops->add(s, y, sum, &rest));
    fs_arena_reset(s->arena, mark);
    return FS_OK;
}

fs_status fs_self_attention(fs_step *s, const fs_settings *set, const fs_attention_weights *w, fs_view y,
                            const fs_carry *carry, const fs_mask *mask) {
    size_t mark = fs_arena_mark(s->arena);
    int heads = (int)(set->H / s->ranks);
    const int64_t HE = set->HE / s->ranks, KE = set->KE / s->ranks; /* of this rank */
    const fs_epilogue bias = { .bias = fs_given(&w->qkv_bias) };
    fs_view qkv, context;
    FS_TRY(fs_scratch(s, set->dtype, y.rows, HE + 2 * KE, &qkv));
    FS_TRY(fs_scratch(s, set->dtype, y.rows, HE, &context));
    FS_TRY(s->ops->matmul(s, qkv, carry->in, &w->qkv, &bias));
    FS_TRY(s->ops->attention(s, context, fs_view_cols(qkv, 0, HE), fs_view_cols(qkv, HE, KE),
                             fs_view_cols(qkv, HE + KE, KE), heads, mask));
    FS_TRY(product_of_parts(s, y, context, &w->out, &w->out_bias, &carry->x));
    fs_arena_reset(s->arena, mark);
    return FS_OK;
}

fs_status fs_cross_attention(fs_step *s, const fs_settings *set, const fs_cross_weights *w, fs_view y,
                             const fs_carry *carry, const fs_rows *keys) {
    size_t mark = fs_arena_mark(s->arena);
    int heads = (int)(set->H / s->ranks);
    int64_t HE = heads * set->E; /* of this rank */
    const fs_epilogue q_bias = { .bias = fs_given(&w->q_bias) }, kv_bias = { .bias = fs_given(&w->kv_bias) };
    fs_mask mask = fs_full_mask(set);
    mask.keys = keys;
    fs_view q, kv, context;
    FS_TRY(fs_scratch(s, set->dtype, y.rows, HE, &q));
    FS_TRY(fs_scratch(s, set->dtype, keys->T, 2 * HE, &kv));
    FS_TRY(fs_scratch(s, set->dtype, y.rows, HE, &context));
    FS_TRY(s->ops->matmul(s, q, carry->in, &w->q, &q_bias));
    FS_TRY(s->ops->matmul(s, kv, carry->other, &w->kv, &kv_bias));
    FS_TRY(s->ops->attention(s, context, q, fs_view_cols(kv, 0, HE), fs_view_cols(kv, HE, HE), heads, &mask));
    FS_TRY(product_of_parts(s, y, context, &w->out, &w->out_bias, &carry->x));
    fs_arena_reset(s->arena, mark);
    return FS_OK;
}

fs_status fs_mlp(fs_step *s, const fs_settings *set, const fs_mlp_weights *w, fs_view y, const fs_carry *carry) {
    size_t mark = fs_arena_mark(s->arena);
    const fs_epilogue up = { .bias = fs_given(&w->up_bias), .activation = set->activation };
    fs_view inner; /* [T, F of this rank] */
    FS_TRY(fs_scratch(s, set->dtype, y.rows, set->F / s->ranks, &inner));
    FS_TRY(s->ops->matmul(s, inner, carry->in, &w->up, &up));
    FS_TRY(product_of_parts(s, y, inner, &w->down, &w->down_bias, &carry->x));
    fs_arena_reset(s->arena, mark);
    return FS_OK;
}
