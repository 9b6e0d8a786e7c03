/* weights_check.c - a checkpoint's tensors against the weight tables, all complaints in one sentence. */
#include "models/weights.h"

#include "base/alloc.h"
#include "models/listing.h"
#include "models/load.h"

#include <stdio.h>
#include <string.h>

const fs_weight_row *fs_weight_table(const fs_settings *set, int layer) {
    return layer == FS_OUTSIDE ? set->outside : fs_kind_of(set, layer)->weights;
}

int fs_weight_there(const fs_settings *set, const fs_weight_row *row) {
    return !row->when || *(const int *)((const char *)set + row->when);
}

void fs_weight_name(char out[FS_NAME_BYTES], const fs_settings *set, int layer, const char *name) {
    const char *kind = layer == FS_OUTSIDE ? "" : fs_kind_of(set, layer)->prefix, *hole = strstr(kind, "%d");
    if (!hole) {
        snprintf(out, FS_NAME_BYTES, "%s%s%s", set->prefix, kind, name);
        return;
    }
    snprintf(out, FS_NAME_BYTES, "%s%.*s%d%s%s", set->prefix, (int)(hole - kind), kind, fs_number_of(set, layer),
             hole + 2, name);
}

/* Behind the parents of "model.encoder.": "model." and "". */
static const fs_tensor *find_above(const fs_tensor_names *names, const char *prefix, const char *name) {
    char whole[FS_NAME_BYTES];
    const fs_tensor *t = NULL;
    for (size_t length = strlen(prefix); length > 0 && !t;) {
        length--;
        while (length > 0 && prefix[length - 1] != '.') length--;
        snprintf(whole, sizeof whole, "%.*s%s", (int)length, prefix, name);
        t = fs_tensor_find(names, whole);
    }
    return t;
}

const fs_tensor *fs_weight_tensor(const fs_tensor_names *names, const fs_settings *set, int layer,
                                  const fs_weight_row *row) {
    char name[FS_NAME_BYTES];
    fs_weight_name(name, set, layer, row->name);
    const fs_tensor *t = fs_tensor_find(names, name);
    if (!t && row->also) {
        fs_weight_name(name, set, layer, row->also);
        t = fs_tensor_find(names, name);
    }
    return !t && row->flags & FS_ABOVE ? find_above(names, set->prefix, row->name) : t;
}

/* ---- the prefix ---- */

/* `name` behind "encoder.layer.17.", for any number; NULL when it does not start so. */
static const char *behind_layer_prefix(const char *layer_prefix, const char *name) {
    const char *hole = strstr(layer_prefix, "%d");
    if (!hole) return strncmp(name, layer_prefix, strlen(layer_prefix)) ? NULL : name + strlen(layer_prefix);
    size_t before = (size_t)(hole - layer_prefix), after = strlen(hole + 2);
    if (strncmp(name, layer_prefix, before)) return NULL;
    const char *at = name + before;
    size_t digits = strspn(at, "0123456789");
    if (!digits || strncmp(at + digits, hole + 2, after)) return NULL;
    return at + digits + after;
}

int fs_table_names(const fs_weight_row *table, const char *name) {
    for (const fs_weight_row *row = table; row->name; row++)
        if (!strcmp(row->name, name) || (row->also && !strcmp(row->also, name))) return 1;
    return 0;
}

int fs_kind_names(const fs_layer_kind *kind, const char *name) {
    const char *rest = behind_layer_prefix(kind->prefix, name);
    return rest && fs_table_names(kind->weights, rest);
}

/* Where a weight of the kind begins in a tensor's name: at its start or behind a dot. -1: nowhere. */
static int64_t prefix_of(const fs_layer_kind *kind, const char *name) {
    for (const char *at = name; at; at = strchr(at, '.')) {
        at += *at == '.';
        if (fs_kind_names(kind, at)) return at - name;
    }
    return -1;
}

/* Few prefixes can be there: one a copy of the model. Those beyond the table have no vote. */
void fs_weight_find_prefix(fs_settings *set, const fs_checkpoint *c) {
    struct {
        const char *name;
        int64_t length;
        int votes;
    } found[16];
    const int room = sizeof found / sizeof *found;
    int count = 0, best = 0;
    for (int i = 0; i < c->tensor_count; i++) {
        const char *name = c->tensors[i].name;
        const int64_t length = prefix_of(fs_kind_of(set, 0), name);
        int at = 0;
        if (length < 0 || length >= (int64_t)sizeof set->prefix) continue;
        while (at < count && (found[at].length != length || memcmp(found[at].name, name, (size_t)length))) at++;
        if (at == room) continue;
        if (at == count) found[count].name = name, found[count].length = length, found[count++].votes = 0;
        found[at].votes++;
    }
    for (int i = 1; i < count; i++)
        if (found[i].votes > found[best].votes ||
            (found[i].votes == found[best].votes && found[i].length < found[best].length))
            best = i;
    set->prefix[0] = 0;
    if (!count) return;
    memcpy(set->prefix, found[best].name, (size_t)found[best].length);
    set->prefix[found[best].length] = 0;
}

/* What is wrong, by kind. */
typedef struct {
    fs_listing missing, extra, misshapen, mistyped;
} complaints;

static void show_shape(char *out, size_t bytes, const int64_t *shape, int rank) {
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (int i = 0; i < rank && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (used < bytes) snprintf(out + used, bytes - used, "]");
}

static void check_one(complaints *bad, const fs_settings *set, const fs_weight_row *row, const fs_tensor *t) {
    int64_t want[2] = { fs_dim_of(set, row->N), fs_dim_of(set, row->K) };
    int rank = row->kind == FS_VECTOR ? 1 : 2;
    want[rank == 1] *= row->parts ? row->parts : 1;
    if (row->flags & FS_TRANSPOSED) {
        const int64_t N = want[0];
        want[0] = want[1], want[1] = N;
    }
    const int64_t *shape = rank == 1 ? want + 1 : want;
    char has[120], means[120];
    int fits = t->rank == rank;
    for (int i = 0; i < rank && fits; i++) fits = t->shape[i] == shape[i];
    if (!fits) {
        show_shape(has, sizeof has, t->shape, t->rank);
        show_shape(means, sizeof means, shape, rank);
        fs_listing_add(&bad->misshapen, "%.100s is %s where config.json means %s", t->name, has, means);
    }
    if (t->dtype != FS_F32 && t->dtype != FS_F16 && t->dtype != FS_BF16)
        fs_listing_add(&bad->mistyped, "%.100s is %.20s", t->name, t->dtype_text);
}

static int is_unused(const fs_arch *a, const char *name) {
    for (const char *const *u = a->unused; *u; u++)
        if (fs_pattern_matches(*u, name)) return 1;
    return 0;
}

/* Behind the prefix, or where the class that saved it has its heads: before the architecture's own part of that. */
static int may_be_there(const fs_settings *set, const char *name) {
    const size_t length = strlen(set->prefix), base = strlen(set->arch->base);
    if (!strncmp(name, set->prefix, length) && is_unused(set->arch, name + length)) return 1;
    if (length < base || strcmp(set->prefix + length - base, set->arch->base)) return 0;
    return !strncmp(name, set->prefix, length - base) && is_unused(set->arch, name + length - base);
}

static fs_status compare(complaints *bad, const fs_checkpoint *c, const fs_settings *set,
                         const fs_tensor_names *names) {
    char name[FS_NAME_BYTES];
    unsigned char *used;
    FS_TRY(fs_alloc(&used, (size_t)c->tensor_count, 1));
    for (int layer = FS_OUTSIDE; layer < set->L; layer++)
        for (const fs_weight_row *row = fs_weight_table(set, layer); row->name; row++) {
            if (row->part > 0 || !fs_weight_there(set, row)) continue;
            const fs_tensor *t = fs_weight_tensor(names, set, layer, row);
            if (t) {
                used[t - c->tensors] = 1;
                check_one(bad, set, row, t);
            } else {
                fs_weight_name(name, set, layer, row->name);
                fs_listing_add(&bad->missing, "%s", name);
            }
        }
    for (int i = 0; i < c->tensor_count; i++)
        if (!used[i] && !may_be_there(set, c->tensors[i].name))
            fs_listing_add(&bad->extra, "%.100s", c->tensors[i].name);
    fs_free(used);
    return FS_OK;
}

/* "; the names look like distilbert (100 % of them are known there, 5 % here)", or nothing. */
static void name_nearest(char *out, size_t bytes, const fs_checkpoint *c, const fs_settings *set) {
    double there, here = fs_arch_share(set->arch, c);
    const fs_arch *nearest = fs_arch_nearest(fs_archs, c, &there);
    out[0] = 0;
    if (nearest && nearest != set->arch && there > here)
        snprintf(out, bytes, "; the names look like %.30s (%d %% of them are known there, %d %% here)",
                 nearest->model_type, (int)(100 * there), (int)(100 * here));
    else if (here < 0.5)
        snprintf(out, bytes, "; only %d %% of the tensor names are known to any architecture here", (int)(100 * here));
}

fs_status fs_weights_check(const fs_checkpoint *c, const fs_settings *set) {
    fs_status st = FS_OK;
    fs_tensor_names names = { 0 };
    complaints *bad = NULL;
    static const char *const titles[] = { "missing", "not part of it", "of the wrong shape",
                                          "of a type we do not read" };
    char text[720] = "", nearest[120];
    size_t used = 0;
    FS_GO(fs_alloc(&bad, 1, sizeof *bad));
    FS_GO(fs_tensor_names_open(&names, c));
    /* Twice: first to see how many kinds of complaint share the sentence, then with room for each. */
    FS_GO(compare(bad, c, set, &names));
    fs_listing *const lists[] = { &bad->missing, &bad->extra, &bad->misshapen, &bad->mistyped };
    size_t kinds = 0;
    for (int i = 0; i < 4; i++) kinds += lists[i]->count > 0;
    if (!kinds) goto done;
    memset(bad, 0, sizeof *bad);
    for (int i = 0; i < 4; i++) lists[i]->room = 540 / kinds;
    FS_GO(compare(bad, c, set, &names));
    for (int i = 0; i < 4; i++)
        if (lists[i]->count)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%d %s: %s", used ? "; " : "", lists[i]->count,
                                     titles[i], fs_listing_end(lists[i]));
    name_nearest(nearest, sizeof nearest, c, set);
    st = fs_fail(FS_CHECKPOINT, "%.100s does not hold the tensors of the %s model its config.json describes: %s%s",
                 c->name, set->arch->model_type, text, nearest);
done:
    fs_tensor_names_close(&names);
    fs_free(bad);
    return st;
}
