/* registry.c - the architectures there are, and which one a checkpoint's tensor names look like. */
#include "models/arch.h"

#include <stdio.h>
#include <string.h>

extern const fs_arch fs_bert, fs_torch_transformer;

const fs_arch *const fs_archs[] = { &fs_bert, &fs_torch_transformer, NULL };

int fs_pattern_matches(const char *pattern, const char *name) {
    size_t length = strlen(pattern);
    if (length && pattern[length - 1] == '*') return !strncmp(pattern, name, length - 1);
    return !strcmp(pattern, name);
}

static int in_table(const fs_weight_row *table, const char *name) {
    for (const fs_weight_row *row = table; row->name; row++)
        if (!strcmp(row->name, name) || (row->also && !strcmp(row->also, name))) return 1;
    return 0;
}

/* `name` behind "encoder.layer.17.", for any number; NULL when it does not start so. */
static const char *behind_layer_prefix(const char *layer_prefix, const char *name) {
    const char *hole = strstr(layer_prefix, "%d");
    if (!hole) return name;
    size_t before = (size_t)(hole - layer_prefix), after = strlen(hole + 2);
    if (strncmp(name, layer_prefix, before)) return NULL;
    const char *at = name + before;
    size_t digits = strspn(at, "0123456789");
    if (!digits || strncmp(at + digits, hole + 2, after)) return NULL;
    return at + digits + after;
}

static int knows(const fs_arch *a, const char *name) {
    for (const fs_layer_kind *kind = a->kinds; kind->prefix; kind++) {
        const char *rest = behind_layer_prefix(kind->prefix, name);
        if (rest && in_table(kind->weights, rest)) return 1;
    }
    if (in_table(a->ends, name)) return 1;
    for (const char *const *p = a->unused; *p; p++)
        if (fs_pattern_matches(*p, name)) return 1;
    return 0;
}

static int knows_prefixed(const fs_arch *a, const char *name) {
    for (const char *const *p = a->prefixes; p && *p; p++) {
        size_t length = strlen(*p);
        if (!strncmp(name, *p, length) && knows(a, name + length)) return 1;
    }
    /* Any prefix: the whole name, and what stands behind each of its dots. */
    for (const char *at = a->prefixes ? NULL : name; at; at = strchr(at, '.'))
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
