/* registry.c - the architectures there are, and which one a checkpoint's tensor names look like. */
#include "models/weights.h"

#include <stdio.h>
#include <string.h>

extern const fs_arch fs_albert, fs_bert, fs_camembert, fs_distilbert, fs_electra, fs_ernie, fs_mpnet, fs_roberta,
    fs_torch_transformer, fs_xlm_roberta;

const fs_arch *const fs_archs[] = {
    &fs_bert,  &fs_albert,  &fs_camembert,   &fs_distilbert,        &fs_electra, &fs_ernie,
    &fs_mpnet, &fs_roberta, &fs_xlm_roberta, &fs_torch_transformer, NULL,
};

int fs_pattern_matches(const char *pattern, const char *name) {
    size_t length = strlen(pattern);
    if (length && pattern[length - 1] == '*') return !strncmp(pattern, name, length - 1);
    return !strcmp(pattern, name);
}

static int knows(const fs_arch *a, const char *name) {
    for (const fs_layer_kind *kind = a->kinds; kind->prefix; kind++)
        if (fs_kind_names(kind, name)) return 1;
    if (fs_table_names(a->ends, name)) return 1;
    for (const char *const *p = a->unused; *p; p++)
        if (fs_pattern_matches(*p, name)) return 1;
    return 0;
}

/* Whatever stands before it: the whole name, and what stands behind each of its dots. */
static int knows_prefixed(const fs_arch *a, const char *name) {
    for (const char *at = name; at; at = strchr(at, '.'))
        if (knows(a, at += *at == '.')) return 1;
    return 0;
}

double fs_arch_share(const fs_arch *a, const fs_checkpoint *c) {
    int known = 0;
    for (int i = 0; i < c->tensor_count; i++) known += knows_prefixed(a, c->tensors[i].name);
    return c->tensor_count ? (double)known / c->tensor_count : 0;
}

const fs_arch *fs_arch_nearest(const fs_arch *const *among, const fs_checkpoint *c, double *share) {
    const fs_arch *best = NULL;
    *share = 0;
    for (; *among; among++) {
        double s = fs_arch_share(*among, c);
        if (s > *share) *share = s, best = *among;
    }
    return best;
}
