/* models: what arch.h's tables can say that no single architecture here needs: alternatives of a slot, transposed and tied
 * tensors, layers that share weights, weights on every stage; and what is found: prefixes, heads, chains. */
#include "plain_device.h"

#include "models/reading.h"
#include "models/weights.h"

/* ---- an architecture with a bit of everything ---- */

typedef struct {
    fs_weight fused, down, bias; /* [2 * D, D] or [D, D]; [D, F]; [1, D] */
} layer;

typedef struct {
    fs_weight words, tied, bias_everywhere; /* [V, D], [V, D], [V, H] */
} ends;

typedef struct {
    int wide, narrow, groups;
} own;

#define WHEN(n, field, part, parts, when)                                                                              \
    { n,     offsetof(layer, field), FS_MATRIX,   FS_DIM_D, FS_DIM_D, FS_CUT_ROWS, NULL, part,                         \
      parts, FS_OWN(own, when),      FS_AT_FIRST, 0 }

static const fs_weight_row layer_weights[] = {
    WHEN("wide.weight", fused, 0, 2, wide),
    WHEN("wide.weight", fused, 1, 2, wide),
    WHEN("narrow.weight", fused, 0, 0, narrow),
    { "down.weight", offsetof(layer, down), FS_MATRIX, FS_DIM_D, FS_DIM_F, FS_CUT_COLS, NULL, 0, 0, 0, FS_AT_FIRST,
      FS_TRANSPOSED },
    { "wide.bias", offsetof(layer, bias), FS_VECTOR, FS_DIM_ONE, FS_DIM_D, FS_CUT_NONE, NULL, 0, 0, FS_OWN(own, wide),
      FS_AT_FIRST, 0 },
    { "narrow.bias", offsetof(layer, bias), FS_VECTOR, FS_DIM_ONE, FS_DIM_D, FS_CUT_NONE, NULL, 0, 0,
      FS_OWN(own, narrow), FS_AT_FIRST, 0 },
    { 0 },
};

static const fs_weight_row end_weights[] = {
    { "words.weight", offsetof(ends, words), FS_TABLE, FS_DIM_V, FS_DIM_D, FS_CUT_NONE, NULL, 0, 0, 0, FS_AT_FIRST, 0 },
    { "words.weight", offsetof(ends, tied), FS_MATRIX, FS_DIM_V, FS_DIM_D, FS_CUT_NONE, NULL, 0, 0, 0, FS_AT_LAST, 0 },
    { "distances.weight", offsetof(ends, bias_everywhere), FS_TABLE, FS_DIM_V, FS_SET(H), FS_CUT_NONE, NULL, 0, 0, 0,
      FS_AT_EVERY, 0 },
    { 0 },
};

static const fs_layer_kind kinds[] = { { .prefix = "h.%d.", .weights = layer_weights, .bytes = sizeof(layer) }, { 0 } };

/* Layers of one group have the same weights. */
static const fs_layer_kind *kind_of(const fs_settings *set, int l, int *number) {
    *number = l % ((const own *)fs_own(set))->groups;
    return kinds;
}

static const fs_head_row head[] = { { "pooler.weight", "pooler.bias", FS_ACT_TANH, 0 },
                                    { "classifier.weight", "classifier.bias", FS_ACT_NONE, 0 },
                                    { 0 } };
static const char *const unused[] = { "lm_head.*", NULL };

static const fs_arch odd = { .model_type = "odd",
                             .base = "odd.",
                             .unused = unused,
                             .kinds = kinds,
                             .kind_of = kind_of,
                             .ends = end_weights,
                             .ends_bytes = sizeof(ends),
                             .head = head };

enum { L = 5, D = 8, F = 70, V = 6, H = 2 };

static fs_settings settings(int wide, int groups) {
    fs_settings set = {
        .arch = &odd, .L = L, .D = D, .F = F, .V = V, .H = H, .KV = H, .E = D / H, .HE = D, .KE = D, .dtype = FS_F32
    };
    *(own *)set.own = (own){ wide, !wide, groups };
    return set;
}

/* Every tensor of it, and those of `more`, behind the prefix. */
static void odd_open(tiny_bert *t, const char *prefix, int wide, int groups) {
    tiny_shape shape = TINY;
    shape.prefix = prefix;
    tiny_files(t, &shape);
    tiny_tensor(t, "words.weight", 2, V, D);
    tiny_tensor(t, "distances.weight", 2, V, H);
    for (int l = 0; l < groups; l++) {
        char name[60];
        snprintf(name, sizeof name, "h.%d.%s.weight", l, wide ? "wide" : "narrow");
        tiny_tensor(t, name, 2, wide ? 2 * D : D, D);
        snprintf(name, sizeof name, "h.%d.%s.bias", l, wide ? "wide" : "narrow");
        tiny_tensor(t, name, 1, 1, D);
        snprintf(name, sizeof name, "h.%d.down.weight", l);
        tiny_tensor(t, name, 2, F, D);
    }
}

static fs_status settle(fs_settings *set, const tiny_bert *t) {
    FS_TRY(fs_checkpoint_check(&t->c));
    fs_weight_find_prefix(set, &t->c);
    FS_TRY(fs_tail_settle(set, &t->c));
    return fs_weights_check(&t->c, set);
}

static float at(const fs_weight *w, int64_t n, int64_t k) { return ((const float *)w->at)[n * w->desc.K + k]; }

static void alternatives_of_a_slot_are_not_summed(void) {
    for (int wide = 0; wide <= 1; wide++) {
        tiny_bert t;
        fs_device device;
        fs_shard s;
        fs_settings set = settings(wide, L);
        odd_open(&t, "", wide, L);
        plain_open(&device, 0);
        CHECK_OK(settle(&set, &t));
        const fs_shard_plan plan = { .last_layer = L, .ranks = 1 };
        CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 2));
        const layer *w = s.layers[3];
        CHECK_INT(w->fused.desc.N, wide ? 2 * D : D);
        CHECK_INT(w->bias.desc.K, D);
        for (int64_t i = 0; i < w->fused.desc.N * D; i++)
            CHECK(((const float *)w->fused.at)[i] == tiny_value(wide ? "h.3.wide.weight" : "h.3.narrow.weight", i));
        for (int64_t i = 0; i < D; i++)
            CHECK(((const float *)w->bias.at)[i] == tiny_value(wide ? "h.3.wide.bias" : "h.3.narrow.bias", i));
        fs_shard_release(&s);
        fs_budget_destroy(&device.budget);
        tiny_close(&t);
    }
}

static void transposed_tensors_are_turned_round(void) {
    tiny_bert t;
    fs_device device;
    fs_settings set = settings(0, L);
    odd_open(&t, "", 0, L);
    plain_open(&device, 0);
    CHECK_OK(settle(&set, &t));
    for (int ranks = 1; ranks <= 2; ranks++)
        for (int rank = 0; rank < ranks; rank++) {
            const fs_shard_plan plan = { .last_layer = L, .rank = rank, .ranks = ranks };
            fs_shard s;
            CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 1));
            const fs_weight *w = &((const layer *)s.layers[1])->down;
            CHECK_INT(w->desc.N, D);
            CHECK_INT(w->desc.K, F / ranks);
            for (int64_t n = 0; n < D; n++)
                for (int64_t k = 0; k < F / ranks; k++)
                    CHECK(at(w, n, k) == tiny_value("h.1.down.weight", (rank * F / ranks + k) * D + n));
            fs_shard_release(&s);
        }
    tiny_find(&t, "h.1.down.weight")->shape[0] = D;
    tiny_find(&t, "h.1.down.weight")->shape[1] = F;
    CHECK_FAILS(fs_weights_check(&t.c, &set), FS_CHECKPOINT,
                "h.1.down.weight is [8, 70] where config.json means [70, 8]");
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void tied_tensors_fill_both_slots(void) {
    tiny_bert t;
    fs_device device;
    fs_shard s;
    fs_settings set = settings(0, L);
    odd_open(&t, "", 0, L);
    plain_open(&device, 0);
    CHECK_OK(settle(&set, &t));
    const fs_shard_plan plan = { .last_layer = L, .ranks = 1 };
    CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 1));
    const ends *e = s.ends;
    CHECK(e->words.at != e->tied.at);
    CHECK(!memcmp(e->words.at, e->tied.at, V * D * sizeof(float)));
    fs_shard_release(&s);
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void layers_that_share_weights_hold_them_once(void) {
    tiny_bert t;
    fs_device device;
    fs_settings set = settings(0, 2), apart = settings(0, L);
    odd_open(&t, "", 0, 2);
    plain_open(&device, 0);
    CHECK_OK(settle(&set, &t));
    CHECK_OK(fs_tail_settle(&apart, &t.c));
    const fs_shard_plan all = { .last_layer = L, .ranks = 1 }, end = { .first_layer = 2, .last_layer = L, .ranks = 1 };
    const size_t one = fs_slab_bytes(&set, &all, 0, &device), outside = fs_slab_bytes(&set, &all, FS_OUTSIDE, &device);
    CHECK_INT(fs_shard_bytes(&set, &all, &device), outside + 2 * one);
    CHECK_INT(fs_shard_bytes(&apart, &all, &device), outside + L * one);
    const fs_shard_plan *const plans[] = { &all, &end };
    for (int i = 0; i < 2; i++) {
        fs_shard s;
        CHECK_OK(fs_shard_load(&s, &t.c, &set, plans[i], &device, 2));
        CHECK(s.layers[0] == s.layers[2] && s.layers[0] != s.layers[1]);
        CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), fs_shard_bytes(&set, plans[i], &device));
        for (int l = plans[i]->first_layer; l < L; l++) {
            char name[60];
            const layer *w = s.layers[l - plans[i]->first_layer];
            snprintf(name, sizeof name, "h.%d.narrow.weight", l % 2);
            CHECK(at(&w->fused, 1, 1) == tiny_value(name, D + 1));
        }
        fs_shard_release(&s);
        CHECK_INT(fs_budget_used(&device.budget, FS_WEIGHTS), 0);
    }
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void weights_live_where_the_table_says(void) {
    tiny_bert t;
    fs_device device;
    fs_settings set = settings(0, L);
    odd_open(&t, "", 0, L);
    plain_open(&device, 0);
    CHECK_OK(settle(&set, &t));
    for (int first = 0; first < L; first++) {
        const fs_shard_plan plan = { .first_layer = first, .last_layer = first + 1, .ranks = 1 };
        fs_shard s;
        CHECK_OK(fs_shard_load(&s, &t.c, &set, &plan, &device, 1));
        const ends *e = s.ends;
        CHECK((e->words.at != NULL) == (first == 0));
        CHECK((e->tied.at != NULL) == (first == L - 1));
        CHECK(e->bias_everywhere.at != NULL);
        CHECK(at(&e->bias_everywhere, 2, 1) == tiny_value("distances.weight", 2 * H + 1));
        fs_shard_release(&s);
    }
    fs_budget_destroy(&device.budget);
    tiny_close(&t);
}

static void the_prefix_is_what_most_layers_have(void) {
    static const char *const prefixes[] = { "", "odd.", "module.odd.", "0.auto_model.", "_orig_mod.module.model." };
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        tiny_bert t;
        fs_settings set = settings(1, L);
        odd_open(&t, prefixes[i], 1, L);
        t.names[2][strlen(t.names[2]) - 1] = 'X'; /* one of its tensors is called otherwise */
        CHECK_FAILS(settle(&set, &t), FS_CHECKPOINT, "1 missing: ");
        CHECK(strstr(fs_error_text(), prefixes[i]) != NULL);
        CHECK(!strcmp(set.prefix, prefixes[i]));
        tiny_close(&t);
    }
}

/* What a class with a head has saved: base tensors behind "odd.", heads beside. */
static void heads_are_found_by_class_and_tensors(void) {
    tiny_bert t;
    fs_settings set = settings(0, L);
    odd_open(&t, "odd.", 0, L);
    t.shape.prefix = "odd.";
    tiny_linear(&t, "pooler", D, D);
    t.shape.prefix = "";
    tiny_linear(&t, "classifier", 3, D);
    tiny_tensor(&t, "lm_head.weight", 2, V, D);
    CHECK_FAILS(settle(&set, &t), FS_CHECKPOINT, "4 not part of it: odd.pooler.weight, odd.pooler.bias, classifier.");
    CHECK_INT(set.head.count, 0); /* config.json names no class */
    set = settings(0, L);
    tiny_json(&t, "architectures", "[\"OddForSequenceClassification\"]");
    CHECK_OK(settle(&set, &t));
    CHECK_INT(set.head.count, 2);
    CHECK_INT(set.head.steps[0].N, D);
    CHECK_INT(set.head.steps[1].N, 3);
    CHECK_INT(set.head.steps[0].activation, FS_ACT_TANH);
    const fs_task classify = { .kind = FS_TASK_CLASSIFY };
    CHECK_OK(fs_task_check(&classify, &set));
    CHECK_INT(fs_task_width(&classify, &set), 3);
    tiny_find(&t, "odd.pooler.bias")->name = "odd.pooler.offset";
    set = settings(0, L);
    CHECK_FAILS(settle(&set, &t), FS_CHECKPOINT, "1 missing: odd.pooler.bias; 1 not part of it: odd.pooler.offset");
    tiny_find(&t, "classifier.weight")->name = "lm_head.other";
    tiny_find(&t, "classifier.bias")->name = "lm_head.another";
    set = settings(0, L);
    CHECK_FAILS(settle(&set, &t), FS_CHECKPOINT, "2 not part of it: odd.pooler.weight, odd.pooler.offset");
    CHECK_FAILS(fs_task_check(&classify, &set), FS_REQUEST, "the model has no classifier");
    tiny_close(&t);
}

static void chains_take_their_widths_from_the_tensors(void) {
    static const fs_chain_step steps[] = { { FS_CHAIN_DENSE, "tanh", 0 },
                                           { FS_CHAIN_UNIT, NULL, 0 },
                                           { FS_CHAIN_NORM, NULL, 1e-5f } },
                               units[] = { { FS_CHAIN_UNIT, NULL, 0 },
                                           { FS_CHAIN_DENSE, "tanh", 0 },
                                           { FS_CHAIN_NORM, NULL, 1e-5f } };
    tiny_bert t;
    fs_settings set = settings(0, L);
    odd_open(&t, "", 0, L);
    t.c.chain = steps, t.c.chain_count = 3;
    tiny_tensor(&t, "modules.0.weight", 2, 5, 2 * D);
    tiny_tensor(&t, "modules.2.weight", 1, 1, 5);
    tiny_tensor(&t, "modules.2.bias", 1, 1, 5);
    CHECK_OK(settle(&set, &t));
    CHECK_INT(set.chain.count, 3);
    CHECK_INT(set.chain.steps[0].K, 2 * D);
    CHECK_INT(set.chain.steps[2].K, 5);
    fs_task embed = { .kind = FS_TASK_EMBED, .pooling_count = 2, .pooling = { FS_POOL_CLS, FS_POOL_MEAN } };
    CHECK_OK(fs_task_check(&embed, &set));
    CHECK_INT(fs_task_width(&embed, &set), 5);
    embed.pooling_count = 1;
    CHECK_FAILS(fs_task_check(&embed, &set), FS_REQUEST,
                "pooling makes vectors of 8, and the folder's module behind it takes 16");
    embed.pooling_count = 2, embed.dimensions = 6;
    CHECK_FAILS(fs_task_check(&embed, &set), FS_REQUEST, "dimensions = 6; the model's vectors have 5");
    t.c.chain = units, t.c.chain_count = 3, embed.dimensions = 0; /* what stands before the first dense step */
    tiny_find(&t, "modules.0.weight")->name = "modules.1.weight";
    set = settings(0, L);
    CHECK_OK(settle(&set, &t));
    CHECK_INT(set.chain.steps[0].K, 2 * D);
    CHECK_INT(set.chain.steps[0].N, 2 * D);
    CHECK_OK(fs_task_check(&embed, &set));
    CHECK_INT(fs_task_width(&embed, &set), 5);
    tiny_find(&t, "modules.1.weight")->name = "modules.0.weight";
    t.c.chain = steps;
    set = settings(0, L);
    tiny_find(&t, "modules.2.bias")->shape[0] = 4;
    tiny_find(&t, "modules.2.bias")->bytes = 16;
    CHECK_FAILS(settle(&set, &t), FS_CHECKPOINT, "modules.2.bias is [4] where config.json means [5]");
    t.c.chain_count = FS_TAIL_MOST + 1;
    CHECK_FAILS(fs_tail_settle(&set, &t.c), FS_CONFIG, "has 9 modules behind pooling; at most 8 are read");
    tiny_close(&t);
}

/* ---- nested keys ---- */

typedef struct {
    float theta;
    int kinds[4];
} nested;

static const char *const choices[] = { "full", "window", NULL };
static const fs_key_row nested_keys[] = {
    { "rope", FS_KEY_OPEN, 0, NULL, 0, NULL },
    { "rope.theta", FS_KEY_NUMBER, FS_OWN(nested, theta), "7", 0, NULL },
    { "rope.type", FS_KEY_MUST, 0, "default", 0, NULL },
    { "kinds", FS_KEY_OPEN, 0, NULL, 0, NULL },
    { "kinds.*", FS_KEY_CHOICE, FS_OWN(nested, kinds), NULL, 4, choices },
    { 0 },
};
static const fs_arch nests = { .model_type = "nests", .keys = nested_keys };

static void inside(tiny_bert *t, const char *key, const char *whole) { tiny_key(t, key)->inside = whole; }

static void members_of_lists_and_objects_have_rows(void) {
    tiny_bert t;
    fs_settings set = { .arch = &nests };
    const nested *found = fs_own(&set);
    tiny_files(&t, &TINY);
    CHECK_OK(fs_settings_read_keys(&set, &nests, &t.c));
    CHECK(found->theta == 7);
    tiny_json(&t, "rope", "{...}");
    tiny_number(&t, "rope.theta", 10000);
    inside(&t, "rope.theta", "rope");
    tiny_json(&t, "kinds", "[...]");
    tiny_text(&t, "kinds.0", "full");
    inside(&t, "kinds.0", "kinds");
    tiny_text(&t, "kinds.3", "window");
    inside(&t, "kinds.3", "kinds");
    tiny_json(&t, "id2label", "{...}"); /* harmless as a whole, and so is all that is in it */
    tiny_text(&t, "id2label.0", "A");
    inside(&t, "id2label.0", "id2label");
    CHECK_OK(fs_settings_read_keys(&set, &nests, &t.c));
    CHECK(found->theta == 10000);
    CHECK_INT(found->kinds[0], 0);
    CHECK_INT(found->kinds[3], 1);
    tiny_text(&t, "rope.type", "yarn");
    inside(&t, "rope.type", "rope");
    tiny_int(&t, "rope.factor", 4);
    inside(&t, "rope.factor", "rope");
    CHECK_FAILS(fs_settings_read_keys(&set, &nests, &t.c), FS_CONFIG,
                "does not compute: rope.type = \"yarn\" (only default), rope.factor = 4");
    tiny_drop_key(&t, "rope.factor");
    tiny_drop_key(&t, "rope.type");
    tiny_text(&t, "kinds.1", "sparse");
    inside(&t, "kinds.1", "kinds");
    CHECK_FAILS(fs_settings_read_keys(&set, &nests, &t.c), FS_CONFIG,
                "kinds.1 = \"sparse\"; it must be one of full, window");
    tiny_text(&t, "kinds.1", "full");
    tiny_text(&t, "kinds.4", "full");
    inside(&t, "kinds.4", "kinds");
    CHECK_FAILS(fs_settings_read_keys(&set, &nests, &t.c), FS_CONFIG,
                "kinds.4 is one too many; the list has 4 at most");
    tiny_drop_key(&t, "kinds.4");
    tiny_json(&t, "more", "[1]"); /* unknown: told as a whole, once */
    tiny_int(&t, "more.0", 1);
    inside(&t, "more.0", "more");
    CHECK_FAILS(fs_settings_read_keys(&set, &nests, &t.c), FS_CONFIG, "does not compute: more = [1];");
    tiny_close(&t);
}

TESTS({ "members_of_lists_and_objects_have_rows", members_of_lists_and_objects_have_rows },
      { "alternatives_of_a_slot_are_not_summed", alternatives_of_a_slot_are_not_summed },
      { "transposed_tensors_are_turned_round", transposed_tensors_are_turned_round },
      { "tied_tensors_fill_both_slots", tied_tensors_fill_both_slots },
      { "layers_that_share_weights_hold_them_once", layers_that_share_weights_hold_them_once },
      { "weights_live_where_the_table_says", weights_live_where_the_table_says },
      { "the_prefix_is_what_most_layers_have", the_prefix_is_what_most_layers_have },
      { "heads_are_found_by_class_and_tensors", heads_are_found_by_class_and_tensors },
      { "chains_take_their_widths_from_the_tensors", chains_take_their_widths_from_the_tensors })
