/* tail.c - what stands behind the layers and works on vectors, not tokens: a classifier's head, or the modules behind
 * pooling of a sentence-transformers folder. Both are a few steps; their weights lie behind the architecture's own
 * outside the layers, on the last stage, whole on every rank of a tensor group (they are small).
 *
 *   ends:  | the architecture's struct | head step 0 | head step 1 | chain step 0 | ...
 *
 * A head is there when config.json names a *ForSequenceClassification class and the last of its weights is in the files:
 * how many labels there are, that weight's shape says. */
#include "models/weights.h"

#include <string.h>

/* A module's weights are named by Python, which reads them from the modules' own folders (model/sentence.py). */
#define CHAIN(n) { "modules." #n ".weight", "modules." #n ".bias" }
static const char *const chain_names[FS_TAIL_MOST][2] = { CHAIN(0), CHAIN(1), CHAIN(2), CHAIN(3),
                                                          CHAIN(4), CHAIN(5), CHAIN(6), CHAIN(7) };
#undef CHAIN

static size_t behind_own(const fs_settings *set) { return (set->arch->ends_bytes + 63) / 64 * 64; }

size_t fs_ends_bytes(const fs_settings *set) {
    return behind_own(set) + (size_t)(set->head.count + set->chain.count) * sizeof(fs_tail_weights);
}

const fs_tail_weights *fs_head_weights(const fs_settings *set, const void *ends) {
    return (const fs_tail_weights *)((const char *)ends + behind_own(set));
}

const fs_tail_weights *fs_chain_weights(const fs_settings *set, const void *ends) {
    return fs_head_weights(set, ends) + set->head.count;
}

/* ---- what there is ---- */

static int says_sequence_classifier(const fs_checkpoint *c) {
    const fs_config_key *k = fs_checkpoint_key(c, "architectures");
    return k && k->kind == FS_JSON && strstr(k->text, "ForSequenceClassification") != NULL;
}

static void find_head(fs_settings *set, const fs_checkpoint *c, const fs_tensor_names *names) {
    const fs_head_row *row = set->arch->head;
    int64_t K = set->D;
    if (!row || !says_sequence_classifier(c)) return;
    for (; row->weight; row++) {
        const fs_weight_row one = { .name = row->weight, .kind = FS_MATRIX, .flags = FS_ABOVE };
        const fs_tensor *t = fs_weight_tensor(names, set, FS_OUTSIDE, &one);
        const int last = !row[1].weight;
        if (last && (!t || t->rank != 2 || t->shape[0] < 1)) {
            set->head.count = 0;
            return;
        }
        set->head.steps[set->head.count++] =
            (fs_tail_step){ .kind = FS_TAIL_DENSE,
                            .activation = row->configured ? set->activation : row->activation,
                            .bias = 1,
                            .N = last ? t->shape[0] : K,
                            .K = K };
    }
}

/* The widths come from the tensors: a step takes what the one before makes, and check_one says where it does not. */
static fs_status take_chain(fs_settings *set, const fs_checkpoint *c, const fs_tensor_names *names) {
    int64_t width = 0; /* of the pooled vector, as the first dense step says */
    if (c->chain_count > FS_TAIL_MOST)
        return fs_fail(FS_CONFIG, "%.300s has %d modules behind pooling; at most %d are read", c->name, c->chain_count,
                       FS_TAIL_MOST);
    for (int i = 0; i < c->chain_count; i++) {
        const fs_chain_step *from = &c->chain[i];
        fs_tail_step *to = &set->chain.steps[set->chain.count++];
        const fs_tensor *weight = fs_tensor_find(names, chain_names[i][0]);
        *to = (fs_tail_step){ .kind = from->kind == FS_CHAIN_DENSE  ? FS_TAIL_DENSE
                                      : from->kind == FS_CHAIN_NORM ? FS_TAIL_NORM
                                                                    : FS_TAIL_UNIT,
                              .eps = from->eps,
                              .bias = fs_tensor_find(names, chain_names[i][1]) != NULL };
        FS_TRY(fs_activation_find(&to->activation, from->activation));
        to->K = to->N = width ? width : set->D;
        if (to->kind == FS_TAIL_DENSE && weight && weight->rank == 2) {
            to->N = weight->shape[0];
            if (!width) to->K = weight->shape[1];
        } else if (to->kind == FS_TAIL_NORM && weight && weight->rank == 1 && !width) {
            to->K = to->N = weight->shape[0];
        }
        if (to->kind == FS_TAIL_UNIT) continue;
        for (int before = 0; before < i && !width; before++) /* those only scale: they are as wide as this one */
            set->chain.steps[before].K = set->chain.steps[before].N = to->K;
        width = to->N;
    }
    return FS_OK;
}

static void add_rows(fs_settings *set, int *count, const fs_tail_step *step, size_t dims, size_t slot,
                     const char *weight, const char *bias) {
    const fs_dim N = dims + offsetof(fs_tail_step, N), K = dims + offsetof(fs_tail_step, K);
    const size_t when = step->kind == FS_TAIL_DENSE ? dims + offsetof(fs_tail_step, bias) : 0;
    if (step->kind == FS_TAIL_UNIT) return;
    const int dense = step->kind == FS_TAIL_DENSE;
    set->outside[(*count)++] = (fs_weight_row){ .name = weight,
                                                .slot = slot + offsetof(fs_tail_weights, weight),
                                                .kind = dense ? FS_MATRIX : FS_VECTOR,
                                                .N = dense ? N : FS_DIM_ONE,
                                                .K = K,
                                                .at = FS_AT_LAST,
                                                .flags = FS_ABOVE };
    set->outside[(*count)++] = (fs_weight_row){ .name = bias,
                                                .slot = slot + offsetof(fs_tail_weights, bias),
                                                .kind = FS_VECTOR,
                                                .K = dense ? N : K,
                                                .when = when,
                                                .at = FS_AT_LAST,
                                                .flags = FS_ABOVE };
}

static void list_rows(fs_settings *set) {
    int count = 0;
    size_t slot = behind_own(set);
    const size_t step = sizeof(fs_tail_step);
    for (const fs_weight_row *row = set->arch->ends; row->name; row++) set->outside[count++] = *row;
    for (int i = 0; i < set->head.count; i++, slot += sizeof(fs_tail_weights))
        add_rows(set, &count, &set->head.steps[i], FS_SET(head.steps) + (size_t)i * step, slot,
                 set->arch->head[i].weight, set->arch->head[i].bias);
    for (int i = 0; i < set->chain.count; i++, slot += sizeof(fs_tail_weights))
        add_rows(set, &count, &set->chain.steps[i], FS_SET(chain.steps) + (size_t)i * step, slot, chain_names[i][0],
                 chain_names[i][1]);
    set->outside[count] = (fs_weight_row){ 0 };
}

fs_status fs_tail_settle(fs_settings *set, const fs_checkpoint *c) {
    fs_status st = FS_OK;
    fs_tensor_names names = { 0 };
    FS_GO(fs_tensor_names_open(&names, c));
    find_head(set, c, &names);
    FS_GO(take_chain(set, c, &names));
    list_rows(set);
done:
    fs_tensor_names_close(&names);
    return st;
}

/* ---- what it does ---- */

static fs_status run_step(fs_step *s, const fs_tail_step *step, const fs_tail_weights *w, fs_view x, fs_view *out) {
    const fs_norm norm = { &w->weight, &w->bias, step->eps, NULL };
    const fs_epilogue dense = { .bias = fs_given(&w->bias), .activation = step->activation };
    *out = x;
    if (step->kind == FS_TAIL_UNIT) return s->ops->l2_normalize(s, x);
    if (step->kind == FS_TAIL_NORM) return s->ops->layer_norm(s, x, x, &norm);
    FS_TRY(fs_scratch(s, FS_F32, x.rows, step->N, out));
    return s->ops->matmul(s, *out, x, &w->weight, &dense);
}

fs_status fs_tail_run(fs_step *s, const fs_tail *tail, const fs_tail_weights *weights, fs_view x, fs_view *out) {
    *out = x;
    for (int i = 0; i < tail->count; i++) FS_TRY(run_step(s, &tail->steps[i], &weights[i], *out, out));
    return FS_OK;
}
