/* models: what bad checkpoints get, config keys and their settings, tensors and their tables, tasks. */
#include "tiny_bert.h"

#include "models/listing.h"
#include "models/load.h"
#include "test.h"

static fs_status read_all(tiny_bert *t, fs_settings *set) {
    FS_TRY(fs_checkpoint_check(&t->c));
    FS_TRY(fs_settings_read(set, &t->c, "auto"));
    return fs_weights_check(&t->c, set);
}

/* ---- checkpoint ---- */

static void at_end(tiny_bert *t) { t->tensors[0].offset = t->file_bytes[0] - 8; }
static void negative_offset(tiny_bert *t) { t->tensors[0].offset = -4; }
static void negative_bytes(tiny_bert *t) { t->tensors[0].bytes = -4; }
static void huge_end(tiny_bert *t) { t->tensors[0].offset = INT64_MAX, t->tensors[0].bytes = 8; }
static void negative_dim(tiny_bert *t) { t->tensors[0].shape[1] = -16; }
static void huge_shape(tiny_bert *t) { t->tensors[0].shape[0] = t->tensors[0].shape[1] = INT64_C(1) << 40; }
static void huge_bytes(tiny_bert *t) { t->tensors[0].shape[0] = INT64_C(1) << 61, t->tensors[0].shape[1] = 2; }
static void short_shape(tiny_bert *t) { t->tensors[0].shape[0] = 3; }
static void deep(tiny_bert *t) { t->tensors[0].rank = 9; }
static void negative_rank(tiny_bert *t) { t->tensors[0].rank = -1; }
static void wrong_file(tiny_bert *t) { t->tensors[0].file = 7; }
static void negative_file(tiny_bert *t) { t->tensors[0].file = -1; }
static void overlap(tiny_bert *t) { t->tensors[1].offset = t->tensors[0].offset + 4; }
static void same_place(tiny_bert *t) { t->tensors[4].offset = t->tensors[3].offset; }
static void twice(tiny_bert *t) { t->tensors[5].name = t->tensors[2].name; }
static void lost(tiny_bert *t) { t->files[0] = "/nowhere/model.safetensors"; }
static void folder(tiny_bert *t) { t->files[0] = "/tmp"; }
static void device_file(tiny_bert *t) { t->files[0] = "/dev/null"; }
static void none(tiny_bert *t) { t->c.tensor_count = 0; }

static void bad_tables_are_refused_by_name(void) {
    static const struct {
        const char *name;
        void (*spoil)(tiny_bert *);
        const char *part;
    } cases[] = {
        { "at_end", at_end, "embeddings.word_embeddings.weight ends at byte" },
        { "negative_offset", negative_offset, "at byte -4" },
        { "negative_bytes", negative_bytes, "has -4 bytes" },
        { "huge_end", huge_end, "which no file can hold" },
        { "negative_dim", negative_dim, "negative" },
        { "huge_shape", huge_shape, "beyond 2^63" },
        { "huge_bytes", huge_bytes, "elements of F32 in 1536 bytes" },
        { "short_shape", short_shape, "48 elements of F32 in 1536 bytes" },
        { "deep", deep, "9 dimensions where at most 8" },
        { "negative_rank", negative_rank, "-1 dimensions" },
        { "wrong_file", wrong_file, "file 7 of 1" },
        { "negative_file", negative_file, "file -1 of 1" },
        { "overlap", overlap, "overlap" },
        { "same_place", same_place, "overlap" },
        { "twice", twice, "two tensors named embeddings.token_type_embeddings.weight" },
        { "lost", lost, "/nowhere/model.safetensors cannot be opened" },
        { "folder", folder, "/tmp is not a regular file" },
        { "device_file", device_file, "/dev/null is not a regular file" },
        { "none", none, "holds no tensors" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_bert t;
        tiny_open(&t, &TINY);
        CHECK_OK(fs_checkpoint_check(&t.c));
        cases[i].spoil(&t);
        CHECK_FAILS(fs_checkpoint_check(&t.c), FS_CHECKPOINT, cases[i].part);
        tiny_close(&t);
    }
}

static void unknown_types_and_empty_tensors_do_no_harm(void) {
    tiny_bert t;
    tiny_open(&t, &TINY);
    int n = t.c.tensor_count;
    t.tensors[n] = (fs_tensor){ .name = "pooler.odd",
                                .dtype = FS_DTYPE_COUNT,
                                .dtype_text = "F8_E4M3",
                                .rank = 1,
                                .shape = { 5 },
                                .offset = 0,
                                .bytes = 5 };
    t.tensors[n + 1] = (fs_tensor){ .name = "pooler.empty",
                                    .dtype = FS_F32,
                                    .dtype_text = "F32",
                                    .rank = 2,
                                    .shape = { 0, 7 },
                                    .offset = 20,
                                    .bytes = 0 };
    t.tensors[n + 2] =
        (fs_tensor){ .name = "pooler.scalar", .dtype = FS_F16, .dtype_text = "F16", .offset = 5, .bytes = 2 };
    t.c.tensor_count += 3;
    CHECK_OK(fs_checkpoint_check(&t.c));
    tiny_close(&t);
}

/* ---- settings ---- */

static void keys_reach_their_settings(void) {
    static const struct {
        const char *key;
        size_t slot;
        int64_t value;
    } sizes[] = {
        { "num_hidden_layers", offsetof(fs_settings, L), 4096 },
        { "hidden_size", offsetof(fs_settings, D), 1001 },
        { "num_attention_heads", offsetof(fs_settings, H), 7 },
        { "intermediate_size", offsetof(fs_settings, F), 3 },
        { "vocab_size", offsetof(fs_settings, V), 1 << 24 },
        { "type_vocab_size", offsetof(fs_settings, types), 1 },
        { "max_position_embeddings", offsetof(fs_settings, P), 5 },
    };
    const size_t n = sizeof sizes / sizeof *sizes;
    tiny_bert t;
    fs_settings set, unset;
    tiny_open(&t, &TINY);
    for (size_t i = 0; i < n; i++) tiny_int(&t, sizes[i].key, sizes[i].value);
    CHECK_OK(fs_settings_read(&set, &t.c, NULL));
    for (size_t i = 0; i < n; i++) CHECK_INT(*(int64_t *)((char *)&set + sizes[i].slot), sizes[i].value);
    CHECK_INT(set.E, 143);
    for (size_t i = 0; i < n; i++) {
        for (int kind = 0; kind < 6; kind++) {
            if (kind == 0) tiny_int(&t, sizes[i].key, 0);
            if (kind == 1) tiny_int(&t, sizes[i].key, -7);
            if (kind == 2) tiny_int(&t, sizes[i].key, INT64_MAX);
            if (kind == 3) tiny_text(&t, sizes[i].key, "64");
            if (kind == 4) tiny_bool(&t, sizes[i].key, 1);
            if (kind == 5) tiny_number(&t, sizes[i].key, 64.0);
            CHECK_FAILS(fs_settings_read(&unset, &t.c, "auto"), FS_CONFIG, sizes[i].key);
            CHECK_FAILS(fs_settings_read(&unset, &t.c, "auto"), FS_CONFIG, "a whole number from 1 to");
        }
        tiny_int(&t, sizes[i].key, sizes[i].value);
    }
    tiny_close(&t);
}

static void what_is_absent_is_as_in_transformers(void) {
    tiny_bert t;
    fs_settings set;
    tiny_open(&t, &TINY);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    CHECK_INT(set.types, 2);
    CHECK(set.eps == 1e-12f);
    CHECK_INT(set.activation, FS_ACT_GELU);
    CHECK_INT(set.dtype, FS_F32);
    tiny_number(&t, "layer_norm_eps", 1e-5);
    tiny_null(&t, "type_vocab_size");
    tiny_null(&t, "pruned_heads");
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    CHECK(set.eps == 1e-5f);
    CHECK_INT(set.types, 2);
    tiny_drop_key(&t, "hidden_size");
    CHECK_FAILS(fs_settings_read(&set, &t.c, "auto"), FS_CONFIG, "lacks hidden_size");
    tiny_close(&t);
}

static void activations_have_many_names(void) {
    static const struct {
        const char *name;
        fs_activation activation;
    } cases[] = {
        { "gelu", FS_ACT_GELU },           { "gelu_python", FS_ACT_GELU }, { "gelu_new", FS_ACT_GELU_TANH },
        { "gelu_fast", FS_ACT_GELU_TANH }, { "relu", FS_ACT_RELU },        { "gelu_pytorch_tanh", FS_ACT_GELU_TANH },
        { "silu", FS_ACT_SILU },           { "swish", FS_ACT_SILU },       { "tanh", FS_ACT_TANH },
        { "linear", FS_ACT_NONE },
    };
    tiny_bert t;
    fs_settings set;
    tiny_open(&t, &TINY);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_text(&t, "hidden_act", cases[i].name);
        CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
        CHECK_INT(set.activation, cases[i].activation);
    }
    tiny_text(&t, "hidden_act", "quick_gelu");
    CHECK_FAILS(fs_settings_read(&set, &t.c, "auto"), FS_CONFIG, "hidden_act = \"quick_gelu\"; it must be");
    CHECK_FAILS(fs_settings_read(&set, &t.c, "auto"), FS_CONFIG, "gelu_pytorch_tanh");
    tiny_int(&t, "hidden_act", 3);
    CHECK_FAILS(fs_settings_read(&set, &t.c, "auto"), FS_CONFIG, "hidden_act = 3; it must be");
    tiny_close(&t);
}

static void mathematics_that_is_not_ours_is_refused(tiny_bert *t, const char *part) {
    fs_settings set;
    CHECK_FAILS(fs_settings_read(&set, &t->c, "auto"), FS_CONFIG, part);
}

static void keys_that_change_the_mathematics_are_all_named(void) {
    tiny_bert t;
    fs_settings set;
    tiny_open(&t, &TINY);
    tiny_text(&t, "position_embedding_type", "absolute");
    tiny_bool(&t, "is_decoder", 0);
    tiny_json(&t, "pruned_heads", "{}");
    tiny_json(&t, "id2label", "{\"0\": \"A\"}");
    tiny_text(&t, "_attn_implementation_autoset", "x");
    tiny_number(&t, "hidden_dropout_prob", 0.1);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    tiny_text(&t, "position_embedding_type", "relative_key");
    tiny_bool(&t, "is_decoder", 1);
    tiny_json(&t, "pruned_heads", "{\"0\": [1]}");
    tiny_json(&t, "quantization_config", "{\"bits\": 4, \"something\": \"that is much too long to be shown whole\"}");
    tiny_int(&t, "embedding_size", 128);
    mathematics_that_is_not_ours_is_refused(&t, "position_embedding_type = \"relative_key\" (only absolute)");
    mathematics_that_is_not_ours_is_refused(&t, "is_decoder = true (only false)");
    mathematics_that_is_not_ours_is_refused(&t, "pruned_heads = {\"0\": [1]} (only {})");
    mathematics_that_is_not_ours_is_refused(&t, "quantization_config = {\"bits\": 4, ");
    mathematics_that_is_not_ours_is_refused(&t, "embedding_size = 128");
    mathematics_that_is_not_ours_is_refused(&t, "FIRESTEEL_IGNORE_KEYS");
    setenv("FIRESTEEL_IGNORE_KEYS", "position_embedding_type, is_decoder,pruned_heads quantization_config", 1);
    mathematics_that_is_not_ours_is_refused(&t, "compute: embedding_size = 128;");
    setenv("FIRESTEEL_IGNORE_KEYS",
           "position_embedding_type,is_decoder,pruned_heads,quantization_config,embedding_size", 1);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    unsetenv("FIRESTEEL_IGNORE_KEYS");
    tiny_close(&t);
}

static void model_types_and_classes(void) {
    static const struct {
        const char *architectures, *part; /* part NULL: is read */
    } cases[] = {
        { "[]", NULL },
        { "[\"BertForMaskedLM\"]", NULL },
        { "[\"BertForSequenceClassification\"]", NULL },
        { "[\"BertModel\", \"BertForMaskedLM\"]", NULL },
        { "[\"BertLMHeadModel\"]", "names BertLMHeadModel" },
        { "[\"BertModel\", \"RobertaModel\"]", "names RobertaModel" },
        { "[\"", "names ;" },
        { "{}", "a list of class names" },
        { "[\"\\\"", "Bert*" },
    };
    tiny_bert t;
    fs_settings set;
    tiny_open(&t, &TINY);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_json(&t, "architectures", cases[i].architectures);
        if (cases[i].part) CHECK_FAILS(fs_settings_read(&set, &t.c, "auto"), FS_CONFIG, cases[i].part);
        else CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    }
    tiny_null(&t, "architectures");
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    tiny_text(&t, "model_type", "gpt2");
    char known[400];
    size_t used = (size_t)snprintf(known, sizeof known, "model_type \"gpt2\" is not known; known are: ");
    for (int i = 0; fs_archs[i]; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", fs_archs[i]->model_type);
    snprintf(known + used, sizeof known - used, "; its tensor names look like bert");
    mathematics_that_is_not_ours_is_refused(&t, known);
    tiny_int(&t, "model_type", 2);
    mathematics_that_is_not_ours_is_refused(&t, "model_type 2 is not known");
    tiny_drop_key(&t, "model_type");
    mathematics_that_is_not_ours_is_refused(&t, "names no model_type");
    tiny_close(&t);
}

static void other_combinations(void) {
    static const char *const refused[] = { "int8", "int4", "fp8" };
    tiny_bert t;
    fs_settings set;
    tiny_open(&t, &TINY);
    for (int i = 0; i < 3; i++)
        CHECK_FAILS(fs_settings_read(&set, &t.c, refused[i]), FS_CONFIG, "there are fp32, fp16 and bf16");
    CHECK_FAILS(fs_settings_read(&set, &t.c, "float32"), FS_CONFIG, "dtype \"float32\" is not known");
    tiny_int(&t, "num_attention_heads", 5);
    mathematics_that_is_not_ours_is_refused(&t, "hidden_size = 16 cannot be cut into num_attention_heads = 5 heads");
    tiny_int(&t, "num_attention_heads", 1);
    tiny_int(&t, "hidden_size", 256);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    tiny_int(&t, "hidden_size", 257);
    mathematics_that_is_not_ours_is_refused(&t, "hidden_size / num_attention_heads = 257; heads of at most 256");
    tiny_int(&t, "hidden_size", 16);
    tiny_int(&t, "num_attention_heads", 4);
    tiny_number(&t, "layer_norm_eps", 0);
    mathematics_that_is_not_ours_is_refused(&t, "layer_norm_eps = 0; it must be a number above 0");
    tiny_number(&t, "layer_norm_eps", 1e300);
    mathematics_that_is_not_ours_is_refused(&t, "layer_norm_eps = 1e+300");
    tiny_number(&t, "layer_norm_eps", 0.0 / 0.0);
    mathematics_that_is_not_ours_is_refused(&t, "layer_norm_eps = ");
    tiny_text(&t, "layer_norm_eps", "1e-12");
    mathematics_that_is_not_ours_is_refused(&t, "layer_norm_eps = \"1e-12\"");
    tiny_close(&t);
}

/* ---- weights against the tables ---- */

/* The CPU backend has fp32 only, the measure backend all. */
static void the_devices_decide_the_type(void) {
    static const struct {
        fs_dtype saved;
        const char *wanted;
        int with_cpu;
        fs_dtype expected;
    } cases[] = {
        { FS_F32, "auto", 0, FS_F32 },  { FS_F16, "auto", 0, FS_F16 }, { FS_BF16, "auto", 0, FS_BF16 },
        { FS_BF16, "auto", 1, FS_F32 }, { FS_F16, "fp32", 0, FS_F32 }, { FS_F32, "bf16", 0, FS_BF16 },
        { FS_F32, "fp16", 0, FS_F16 },  { FS_BF16, NULL, 0, FS_BF16 },
    };
    fs_device *devices[2];
    CHECK_OK(fs_measure_backend.open(&devices[0], &(fs_device_options){ 0 }));
    CHECK_OK(fs_cpu_backend.open(&devices[1], &(fs_device_options){ .threads = 1 }));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_bert t;
        tiny_shape shape = TINY;
        fs_settings set;
        shape.dtype = cases[i].saved;
        tiny_open(&t, &shape);
        CHECK_OK(fs_settings_read(&set, &t.c, cases[i].wanted));
        CHECK_OK(fs_settings_choose_dtype(&set, &t.c, devices, 1 + cases[i].with_cpu));
        CHECK_INT(set.dtype, cases[i].expected);
        if (set.dtype != FS_F32 && !set.any_dtype)
            CHECK_FAILS(fs_settings_choose_dtype(&set, &t.c, devices, 2), FS_CONFIG,
                        "is not computed on cpu:0; there is fp32, and");
        tiny_close(&t);
    }
    for (int i = 0; i < 2; i++) devices[i]->backend->close(devices[i]);
}

static void tensors_find_their_places(void) {
    static const tiny_shape shapes[] = {
        { .L = 2, .D = 16, .H = 4, .F = 32, .V = 24, .P = 16, .prefix = "", .files = 1 },
        { .L = 1, .D = 12, .H = 1, .F = 20, .V = 9, .P = 3, .prefix = "bert.", .files = 3, .dtype = FS_F16 },
        { .L = 3, .D = 6, .H = 3, .F = 7, .V = 5, .P = 4, .prefix = "bert.", .files = 2, .dtype = FS_BF16, .gamma = 1 },
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        tiny_bert t;
        fs_settings set;
        tiny_open(&t, &shapes[i]);
        tiny_tensor(&t, "pooler.dense.weight", 2, 5, 5);
        tiny_tensor(&t, "embeddings.position_ids", 1, 1, 5);
        t.shape.prefix = "";
        tiny_tensor(&t, "cls.predictions.bias", 1, 1, 3);
        tiny_tensor(&t, "classifier.bias", 1, 1, 3);
        CHECK_OK(read_all(&t, &set));
        tiny_close(&t);
    }
}

static void all_complaints_in_one_sentence(void) {
    tiny_bert t;
    fs_settings set;
    tiny_open(&t, &TINY);
    tiny_find(&t, "encoder.layer.1.output.dense.bias")->name = "encoder.layer.1.output.dense.offset";
    tiny_find(&t, "encoder.layer.0.attention.self.key.weight")->shape[1] = 8;
    tiny_find(&t, "encoder.layer.0.attention.self.key.weight")->bytes /= 2;
    tiny_find(&t, "embeddings.LayerNorm.weight")->dtype = FS_I32;
    tiny_find(&t, "embeddings.LayerNorm.weight")->dtype_text = "I32";
    CHECK_OK(fs_checkpoint_check(&t.c));
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    CHECK_FAILS(
        fs_weights_check(&t.c, &set), FS_CHECKPOINT,
        "tiny does not hold the tensors of the bert model its config.json describes: "
        "1 missing: encoder.layer.1.output.dense.bias; 1 not part of it: encoder.layer.1.output.dense.offset; "
        "1 of the wrong shape: encoder.layer.0.attention.self.key.weight is [16, 8] where config.json means [16, "
        "16]; 1 of a type we do not read: embeddings.LayerNorm.weight is I32");
    tiny_find(&t, "embeddings.LayerNorm.bias")->rank = 0;
    CHECK_FAILS(fs_weights_check(&t.c, &set), FS_CHECKPOINT,
                "embeddings.LayerNorm.bias is [] where config.json means [16]");
    tiny_int(&t, "num_hidden_layers", 4096);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    CHECK_FAILS(fs_weights_check(&t.c, &set), FS_CHECKPOINT, "65505 missing: encoder.layer.1.output.dense.bias, ");
    CHECK(strlen(fs_error_text()) < 990); /* the whole sentence is there */
    tiny_close(&t);
}

static void nearest_architecture(void) {
    static const fs_weight_row other_layer[] = { { .name = "attention.self.query.weight" }, { 0 } };
    static const fs_weight_row other_ends[] = { { .name = "wte.weight" }, { 0 } };
    static const fs_layer_kind other_kinds[] = { { .prefix = "h.%d.", .weights = other_layer }, { 0 } };
    static const char *const unused[] = { "lm_head.*", NULL };
    static const fs_arch other = {
        .model_type = "other", .base = "transformer.", .unused = unused, .kinds = other_kinds, .ends = other_ends
    };
    const fs_arch *const among[] = { fs_archs[0], &other, NULL };
    double share;
    tiny_bert t;
    tiny_open(&t, &TINY);
    CHECK(fs_arch_nearest(among, &t.c, &share) == fs_archs[0]);
    CHECK(share == 1);
    t.c.tensor_count = 4;
    t.tensors[0].name = "transformer.h.31.attention.self.query.weight";
    t.tensors[1].name = "wte.weight";
    t.tensors[2].name = "lm_head.weight";
    CHECK(fs_arch_nearest(among, &t.c, &share) == &other);
    CHECK(share == 0.75);
    CHECK(fs_arch_share(fs_archs[0], &t.c) == 0.25);
    t.tensors[0].name = "h.x.attention.self.query.weight";
    t.tensors[1].name = t.tensors[2].name = t.tensors[3].name = "h.1";
    CHECK(fs_arch_nearest(among, &t.c, &share) == NULL);
    fs_settings set;
    tiny_close(&t);
    tiny_open(&t, &TINY);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    for (int i = 0; i < t.c.tensor_count; i++) memcpy(t.names[i], "decoder.", 8);
    CHECK_FAILS(fs_weights_check(&t.c, &set), FS_CHECKPOINT, "only 0 % of the tensor names are known");
    tiny_close(&t);
}

/* ---- tasks ---- */

static void tasks_are_checked(void) {
    static const struct {
        fs_task task;
        const char *part; /* NULL: is legal */
        int64_t width;
    } cases[] = {
        { { FS_TASK_EMBED, 1, { FS_POOL_CLS }, 0, 0 }, NULL, 16 },
        { { FS_TASK_EMBED, 2, { FS_POOL_CLS, FS_POOL_MEAN }, 1, 0 }, NULL, 32 },
        { { FS_TASK_EMBED, 2, { FS_POOL_CLS, FS_POOL_MEAN }, 1, 20 }, NULL, 20 },
        { { FS_TASK_EMBED, 1, { FS_POOL_LAST }, 1, 16 }, NULL, 16 },
        { { FS_TASK_HIDDEN_STATES, 0, { 0 }, 0, 0 }, NULL, 16 },
        { { FS_TASK_EMBED, 1, { FS_POOL_CLS }, 0, 17 }, "dimensions = 17; the model's vectors have 16", 0 },
        { { FS_TASK_EMBED, 1, { FS_POOL_CLS }, 0, -1 }, "dimensions = -1", 0 },
        { { FS_TASK_EMBED, 0, { 0 }, 0, 0 }, "1 to 6 poolings, not 0", 0 },
        { { FS_TASK_EMBED, 9, { 0 }, 0, 0 }, "1 to 6 poolings, not 9", 0 },
        { { FS_TASK_EMBED, 2, { FS_POOL_MAX, FS_POOL_MAX }, 0, 0 }, "pooling max is named twice", 0 },
        { { FS_TASK_EMBED, 1, { (fs_pooling)77 }, 0, 0 }, "pooling 77 is not known", 0 },
        { { FS_TASK_EMBED, 1, { FS_POOL_MAX }, 2, 0 }, "normalize = 2", 0 },
        { { (fs_task_kind)9, 1, { FS_POOL_MAX }, 0, 0 }, "task 9 is not known", 0 },
        { { FS_TASK_HIDDEN_STATES, 0, { 0 }, 1, 0 }, "hidden states are neither pooled", 0 },
    };
    tiny_bert t;
    fs_settings set;
    tiny_open(&t, &TINY);
    CHECK_OK(fs_settings_read(&set, &t.c, "auto"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].part) {
            CHECK_FAILS(fs_task_check(&cases[i].task, &set), FS_REQUEST, cases[i].part);
        } else {
            CHECK_OK(fs_task_check(&cases[i].task, &set));
            CHECK_INT(fs_task_width(&cases[i].task, &set), cases[i].width);
        }
    }
    tiny_close(&t);
}

static void listings_stay_short(void) {
    fs_listing l = { 0 };
    for (int i = 0; i < 100; i++) fs_listing_add(&l, "%d", i);
    CHECK_TEXT(fs_listing_end(&l), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 88 more");
    char long_name[1000];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    for (size_t room = 1; room < 700; room++) {
        fs_listing s = { .room = room };
        for (int i = 0; i < 20; i++) fs_listing_add(&s, "%s", i % 3 ? long_name : "short");
        size_t length = strlen(fs_listing_end(&s));
        CHECK(length < sizeof s.text && (room < 40 || length < room));
        CHECK_INT(s.count, 20);
    }
    fs_listing one = { 0 };
    fs_listing_add(&one, "a");
    CHECK_TEXT(fs_listing_end(&one), "a");
}

static void patterns(void) {
    CHECK(fs_pattern_matches("cls.*", "cls.predictions.bias"));
    CHECK(fs_pattern_matches("cls.*", "cls."));
    CHECK(!fs_pattern_matches("cls.*", "cls"));
    CHECK(fs_pattern_matches("cls", "cls"));
    CHECK(!fs_pattern_matches("cls", "cls."));
    CHECK(!fs_pattern_matches("", "cls"));
}

static void rows_keep_their_rules(const fs_weight_row *table, size_t bytes) {
    for (const fs_weight_row *row = table; row->name; row++) {
        CHECK(row->slot % sizeof(void *) == 0 && row->slot + sizeof(fs_weight) <= bytes);
        CHECK(row->when < sizeof(fs_settings) && row->part >= 0 && row->part < (row->parts ? row->parts : 1));
        CHECK(row->kind != FS_VECTOR || row->N == FS_DIM_ONE);
        CHECK(row->kind != FS_VECTOR || row->cut != FS_CUT_COLS);
        CHECK(row->kind != FS_TABLE || row->cut == FS_CUT_NONE);
        for (const fs_weight_row *other = table; other < row; other++) {
            /* The parts of one tensor follow one another. */
            if (!strcmp(other->name, row->name))
                CHECK(row[-1].part == row->part - 1 && !strcmp(row[-1].name, row->name) && other->parts == row->parts);
            if (other->slot != row->slot) continue;
            CHECK(other->kind == row->kind && other->cut == row->cut && other->when == row->when);
            CHECK(row->kind == FS_VECTOR || other->K == row->K);
            for (const fs_weight_row *between = other; between < row; between++) CHECK(between->slot == row->slot);
        }
    }
}

/* What every table must keep to, whichever architecture it belongs to. */
static void tables_keep_their_rules(void) {
    for (const fs_arch *const *a = fs_archs; *a; a++) {
        rows_keep_their_rules((*a)->ends, (*a)->ends_bytes);
        for (const fs_layer_kind *kind = (*a)->kinds; kind->prefix; kind++)
            rows_keep_their_rules(kind->weights, kind->bytes);
    }
}

TESTS({ "bad_tables_are_refused_by_name", bad_tables_are_refused_by_name },
      { "unknown_types_and_empty_tensors_do_no_harm", unknown_types_and_empty_tensors_do_no_harm },
      { "keys_reach_their_settings", keys_reach_their_settings },
      { "what_is_absent_is_as_in_transformers", what_is_absent_is_as_in_transformers },
      { "activations_have_many_names", activations_have_many_names },
      { "keys_that_change_the_mathematics_are_all_named", keys_that_change_the_mathematics_are_all_named },
      { "model_types_and_classes", model_types_and_classes }, { "other_combinations", other_combinations },
      { "the_devices_decide_the_type", the_devices_decide_the_type },
      { "tensors_find_their_places", tensors_find_their_places },
      { "all_complaints_in_one_sentence", all_complaints_in_one_sentence },
      { "nearest_architecture", nearest_architecture }, { "tasks_are_checked", tasks_are_checked },
      { "listings_stay_short", listings_stay_short }, { "patterns", patterns },
      { "tables_keep_their_rules", tables_keep_their_rules })
