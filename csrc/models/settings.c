/* settings.c - config.json to settings: every key is understood, known to be harmless, or refused by name. */
#include "models/arch.h"

#include "base/knobs.h"
#include "models/listing.h"
#include "models/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const harmless[] = {
#define X(pattern) pattern,
#include "models/harmless_keys.def"
#undef X
    NULL
};

/* Names that transformers has for our activations; those in one group are the same function. */
static const struct {
    const char *name;
    fs_activation activation;
} activations[] = {
    { "gelu", FS_ACT_GELU },
    { "gelu_python", FS_ACT_GELU },
    { "gelu_new", FS_ACT_GELU_TANH },
    { "gelu_pytorch_tanh", FS_ACT_GELU_TANH },
    { "gelu_python_tanh", FS_ACT_GELU_TANH },
    { "gelu_accurate", FS_ACT_GELU_TANH },
    { "gelu_fast", FS_ACT_GELU_TANH }, /* sqrt(2/pi) written as 0.7978845608 */
    { "relu", FS_ACT_RELU },
    { "silu", FS_ACT_SILU },
    { "swish", FS_ACT_SILU },
    { "tanh", FS_ACT_TANH },
    { "linear", FS_ACT_NONE },
};

#define COUNT(array) ((int)(sizeof(array) / sizeof(array)[0]))

/* Whether FIRESTEEL_IGNORE_KEYS names the key. */
static int user_ignores(const char *key) {
    const char *at = fs_knob_text(FS_KNOB_IGNORE_KEYS);
    size_t length = strlen(key);
    while (*at) {
        at += strspn(at, ", \t");
        size_t item = strcspn(at, ", \t");
        if (item == length && !strncmp(at, key, length)) return 1;
        at += item;
    }
    return 0;
}

static int any_matches(const char *const *patterns, const char *name) {
    for (; *patterns; patterns++)
        if (fs_pattern_matches(*patterns, name)) return 1;
    return 0;
}

/* The key that fills a place of the settings. */
static const char *key_of(const fs_settings *set, size_t slot) {
    for (const fs_key_row *row = set->arch->keys; row->key; row++)
        if (row->slot == slot && row->kind != FS_KEY_MUST && row->kind != FS_KEY_IGNORED) return row->key;
    return "derived";
}

/* "layer_types.*" and "layer_types.17": the 17; -1 where the key is no member of that list. */
static int64_t member_of(const fs_key_row *row, const char *key) {
    const size_t length = strlen(row->key);
    if (length < 2 || strcmp(row->key + length - 2, ".*") || strncmp(row->key, key, length - 1)) return -1;
    const char *number = key + length - 1;
    const size_t digits = strspn(number, "0123456789");
    return digits && digits < 9 && !number[digits] ? strtoll(number, NULL, 10) : -1;
}

static const fs_key_row *row_of(const fs_arch *a, const char *key) {
    for (const fs_key_row *row = a->keys; row->key; row++)
        if (!strcmp(row->key, key) || member_of(row, key) >= 0) return row;
    return NULL;
}

/* A member of a list or object that the table has only as a whole, or not at all: told with that. */
static int is_told_by_its_whole(const fs_arch *a, const fs_config_key *k) {
    const fs_key_row *row = k->inside ? row_of(a, k->inside) : NULL;
    return k->inside && (!row || row->kind != FS_KEY_OPEN);
}

/* A key's value as a sentence shows it. */
static const char *show(const fs_config_key *k, char *out, size_t bytes) {
    switch (k->kind) {
    case FS_NULL: snprintf(out, bytes, "null"); break;
    case FS_BOOL: snprintf(out, bytes, "%s", k->i ? "true" : "false"); break;
    case FS_INT: snprintf(out, bytes, "%lld", (long long)k->i); break;
    case FS_FLOAT: snprintf(out, bytes, "%.9g", k->f); break;
    case FS_TEXT: snprintf(out, bytes, "\"%.40s\"", k->text); break;
    case FS_JSON: snprintf(out, bytes, "%.40s%s", k->text, strlen(k->text) > 40 ? "..." : ""); break;
    }
    return out;
}

fs_status fs_activation_find(fs_activation *out, const char *name) {
    *out = FS_ACT_NONE;
    for (int i = 0; name && i < COUNT(activations); i++)
        if (!strcmp(activations[i].name, name)) {
            *out = activations[i].activation;
            return FS_OK;
        }
    return name ? fs_fail(FS_CONFIG, "activation %.60s is not one we compute", name) : FS_OK;
}

static fs_status wrong(const fs_checkpoint *c, const fs_config_key *k, const char *meaning) {
    char value[80];
    return fs_fail(FS_CONFIG, "%.200s/config.json: %.60s = %s; it must be %.300s", c->name, k->key,
                   show(k, value, sizeof value), meaning);
}

static fs_status read_size(const fs_checkpoint *c, const fs_key_row *row, const fs_config_key *k, int64_t *out) {
    char meaning[80];
    *out = k ? k->i : strtoll(row->preset, NULL, 10);
    if (!k || (k->kind == FS_INT && k->i >= 1 && k->i <= row->most)) return FS_OK;
    snprintf(meaning, sizeof meaning, "a whole number from 1 to %lld", (long long)row->most);
    return wrong(c, k, meaning);
}

static fs_status read_count(const fs_checkpoint *c, const fs_key_row *row, const fs_config_key *k, int64_t *out) {
    char meaning[80];
    *out = k ? k->i : strtoll(row->preset, NULL, 10);
    if (!k || (k->kind == FS_INT && k->i >= 0 && k->i <= row->most)) return FS_OK;
    snprintf(meaning, sizeof meaning, "a whole number from 0 to %lld", (long long)row->most);
    return wrong(c, k, meaning);
}

static fs_status read_number(const fs_checkpoint *c, const fs_key_row *row, const fs_config_key *k, float *out) {
    if (k && k->kind != FS_INT && k->kind != FS_FLOAT) return wrong(c, k, "a number above 0");
    *out = (float)(k ? k->f : strtod(row->preset, NULL));
    return isfinite(*out) && *out > 0 ? FS_OK : wrong(c, k, "a number above 0 that fp32 can hold");
}

static fs_status read_activation(const fs_checkpoint *c, const fs_key_row *row, const fs_config_key *k,
                                 fs_activation *out) {
    const char *name = !k ? row->preset : k->kind == FS_TEXT ? k->text : "";
    fs_listing known = { 0 };
    for (int i = 0; i < COUNT(activations); i++) {
        if (!strcmp(activations[i].name, name)) {
            *out = activations[i].activation;
            return FS_OK;
        }
        fs_listing_add(&known, "%s", activations[i].name);
    }
    char meaning[300];
    snprintf(meaning, sizeof meaning, "an activation we compute: %.240s", fs_listing_end(&known));
    return wrong(c, k, meaning);
}

static fs_status read_flag(const fs_checkpoint *c, const fs_key_row *row, const fs_config_key *k, int *out) {
    *out = k ? k->i != 0 : !strcmp(row->preset, "true");
    return !k || k->kind == FS_BOOL ? FS_OK : wrong(c, k, "true or false");
}

static fs_status read_choice(const fs_checkpoint *c, const fs_key_row *row, const fs_config_key *k, int *out) {
    const char *name = !k ? row->preset : k->kind == FS_TEXT ? k->text : "";
    fs_listing known = { 0 };
    char meaning[300];
    for (*out = 0; row->choices[*out]; ++*out) {
        if (!strcmp(row->choices[*out], name)) return FS_OK;
        fs_listing_add(&known, "%s", row->choices[*out]);
    }
    snprintf(meaning, sizeof meaning, "one of %.280s", fs_listing_end(&known));
    return wrong(c, k, meaning);
}

/* A key that must have its preset value: anything else changes the mathematics. Empty lists and objects are one. */
static int as_preset(const fs_config_key *k, const char *preset) {
    char value[80];
    if (k->kind == FS_NULL) return 1;
    if (!preset) return 0;
    if (k->kind == FS_TEXT) return !strcmp(k->text, preset);
    if (k->kind == FS_JSON) return !strcmp(preset, "{}") && (!strcmp(k->text, "{}") || !strcmp(k->text, "[]"));
    return !strcmp(show(k, value, sizeof value), preset);
}

/* Names every key at once that is not understood or not as it must be. */
static fs_status check_keys(const fs_arch *a, const fs_checkpoint *c) {
    fs_listing refused = { 0 };
    char value[80];
    for (int i = 0; i < c->key_count; i++) {
        const fs_config_key *k = &c->keys[i];
        const fs_key_row *row = row_of(a, k->key);
        if (is_told_by_its_whole(a, k)) continue;
        if (row && row->kind == FS_KEY_MUST && !as_preset(k, row->preset) && !user_ignores(k->key))
            fs_listing_add(&refused, "%.60s = %s (only %s)", k->key, show(k, value, sizeof value),
                           row->preset ? row->preset : "null");
        if (!row && !any_matches(harmless, k->key) && !user_ignores(k->key))
            fs_listing_add(&refused, "%.60s = %s", k->key, show(k, value, sizeof value));
    }
    if (!refused.count) return FS_OK;
    return fs_fail(FS_CONFIG,
                   "%.200s/config.json asks for what %s here does not compute: %s; results could be wrong, so it is "
                   "refused (FIRESTEEL_IGNORE_KEYS=key,... lets keys pass that you know to be harmless)",
                   c->name, a->model_type, fs_listing_end(&refused));
}

/* One choice a member of a list. */
static fs_status read_members(int *out, const fs_checkpoint *c, const fs_key_row *row) {
    for (int i = 0; i < c->key_count; i++) {
        const int64_t at = member_of(row, c->keys[i].key);
        if (at < 0) continue;
        if (at >= row->most)
            return fs_fail(FS_CONFIG, "%.200s/config.json: %.60s is one too many; the list has %lld at most", c->name,
                           c->keys[i].key, (long long)row->most);
        FS_TRY(read_choice(c, row, &c->keys[i], &out[at]));
    }
    return FS_OK;
}

static fs_status read_keys(fs_settings *out, const fs_arch *a, const fs_checkpoint *c) {
    for (const fs_key_row *row = a->keys; row->key; row++) {
        void *slot = (char *)out + row->slot;
        const fs_config_key *k = fs_checkpoint_key(c, row->key);
        if (k && k->kind == FS_NULL) k = NULL;
        if (row->kind == FS_KEY_MUST || row->kind == FS_KEY_IGNORED || row->kind == FS_KEY_OPEN) continue;
        if (row->kind == FS_KEY_CHOICE && strstr(row->key, ".*")) {
            FS_TRY(read_members(slot, c, row));
            continue;
        }
        if (!k && !row->preset)
            return fs_fail(FS_CONFIG, "%.300s/config.json lacks %s, which a %s model needs", c->name, row->key,
                           a->model_type);
        if (row->kind == FS_KEY_SIZE) FS_TRY(read_size(c, row, k, slot));
        else if (row->kind == FS_KEY_COUNT) FS_TRY(read_count(c, row, k, slot));
        else if (row->kind == FS_KEY_NUMBER) FS_TRY(read_number(c, row, k, slot));
        else if (row->kind == FS_KEY_FLAG) FS_TRY(read_flag(c, row, k, slot));
        else if (row->kind == FS_KEY_CHOICE) FS_TRY(read_choice(c, row, k, slot));
        else FS_TRY(read_activation(c, row, k, slot));
    }
    return FS_OK;
}

fs_status fs_settings_read_keys(fs_settings *out, const fs_arch *a, const fs_checkpoint *c) {
    FS_TRY(check_keys(a, c));
    return read_keys(out, a, c);
}

static fs_status find_arch(const fs_checkpoint *c, const fs_arch **out) {
    const fs_config_key *k = fs_checkpoint_key(c, "model_type");
    fs_listing known = { 0 };
    char value[80], looks[80] = "";
    double share;
    for (const fs_arch *const *a = fs_archs; *a; a++) {
        fs_listing_add(&known, "%s", (*a)->model_type);
        if (k && k->kind == FS_TEXT && !strcmp(k->text, (*a)->model_type)) {
            *out = *a;
            return FS_OK;
        }
    }
    const fs_arch *nearest = fs_arch_nearest(fs_archs, c, &share);
    if (nearest && share >= 0.5)
        snprintf(looks, sizeof looks, "; its tensor names look like %.40s", nearest->model_type);
    if (!k)
        return fs_fail(FS_CONFIG, "%.300s/config.json names no model_type; known are: %s%s", c->name,
                       fs_listing_end(&known), looks);
    return fs_fail(FS_CONFIG, "%.300s/config.json: model_type %s is not known; known are: %s%s", c->name,
                   show(k, value, sizeof value), fs_listing_end(&known), looks);
}

static int reads_class(const fs_arch *a, const char *name) {
    return any_matches(a->names, name) && !any_matches(a->refused, name);
}

/* config.json's `architectures`, a list of class names, as its JSON text: ["BertModel"]. */
static fs_status check_classes(const fs_arch *a, const fs_checkpoint *c) {
    const fs_config_key *k = fs_checkpoint_key(c, "architectures");
    fs_listing read = { 0 };
    char name[80];
    if (!k || k->kind == FS_NULL || user_ignores("architectures")) return FS_OK;
    if (k->kind != FS_JSON || k->text[0] != '[') return wrong(c, k, "a list of class names");
    for (const char *const *p = a->names; *p; p++) fs_listing_add(&read, "%s", *p);
    for (const char *at = strchr(k->text, '"'); at; at = strchr(at, '"')) {
        size_t length = strcspn(++at, "\"");
        snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name), at);
        if (!reads_class(a, name))
            return fs_fail(FS_CONFIG,
                           "%.200s/config.json: architectures names %s; of %s models those named %s are read, decoders "
                           "excepted",
                           c->name, name, a->model_type, fs_listing_end(&read));
        at += length;
        if (*at) at++;
    }
    return FS_OK;
}

fs_status fs_settings_read_dtype(fs_settings *set, const char *dtype) {
    static const char *const later[] = { "int8", "int4", "fp8" };
    set->dtype = FS_F32;
    set->any_dtype = !dtype || !strcmp(dtype, "auto");
    if (set->any_dtype) return FS_OK;
    for (int t = FS_F32; t <= FS_BF16; t++)
        if (!strcmp(dtype, fs_dtype_name((fs_dtype)t))) {
            set->dtype = (fs_dtype)t;
            return FS_OK;
        }
    for (int i = 0; i < COUNT(later); i++)
        if (!strcmp(dtype, later[i]))
            return fs_fail(FS_CONFIG, "dtype %s is not computed on any device yet; there are fp32, fp16 and bf16",
                           dtype);
    return fs_fail(FS_CONFIG, "dtype \"%.40s\" is not known; there are \"auto\", \"fp32\", \"fp16\" and \"bf16\"",
                   dtype);
}

/* The type of the largest tensor: what the checkpoint was saved in, whatever its norms are. */
static fs_dtype saved_in(const fs_checkpoint *c) {
    fs_dtype type = FS_F32;
    int64_t largest = 0;
    for (int i = 0; i < c->tensor_count; i++) {
        const fs_tensor *t = &c->tensors[i];
        if (t->bytes <= largest || (t->dtype != FS_F32 && t->dtype != FS_F16 && t->dtype != FS_BF16)) continue;
        type = t->dtype, largest = t->bytes;
    }
    return type;
}

static const fs_device *lacks(fs_device *const devices[], int n, fs_dtype type) {
    for (int i = 0; i < n; i++)
        if (!devices[i]->backend->computes(devices[i], type)) return devices[i];
    return NULL;
}

fs_status fs_settings_check_dtype(const fs_settings *set, const fs_backend *kind, const char *device) {
    if (set->any_dtype || kind->computes(NULL, set->dtype)) return FS_OK;
    return fs_fail(FS_CONFIG, "dtype %s is not computed on %s; there is fp32%s, and \"auto\" takes the best it has",
                   fs_dtype_name(set->dtype), device, kind->computes(NULL, FS_F16) ? " and fp16" : "");
}

fs_status fs_settings_choose_dtype(fs_settings *set, const fs_checkpoint *c, fs_device *const devices[], int n) {
    const fs_device *d;
    if (set->any_dtype) {
        set->dtype = saved_in(c);
        if (set->dtype == FS_BF16 && lacks(devices, n, FS_BF16)) set->dtype = FS_F16;
        if (lacks(devices, n, set->dtype)) set->dtype = FS_F32;
        return FS_OK;
    }
    if (!(d = lacks(devices, n, set->dtype))) return FS_OK;
    FS_TRY(fs_settings_check_dtype(set, d->backend, d->name));
    return fs_fail(FS_CONFIG,
                   "dtype %s is not computed on %s (%s); there is fp32%s, and \"auto\" takes the best it has",
                   fs_dtype_name(set->dtype), d->name, d->numerics, d->backend->computes(d, FS_F16) ? " and fp16" : "");
}

/* The head width follows from D and H unless the architecture has said it. */
static fs_status settle_heads(fs_settings *set, const fs_checkpoint *c) {
    const char *D = key_of(set, FS_SET(D)), *H = key_of(set, FS_SET(H));
    if (!set->E && set->D % set->H)
        return fs_fail(FS_CONFIG, "%.200s/config.json: %s = %lld cannot be cut into %s = %lld heads", c->name, D,
                       (long long)set->D, H, (long long)set->H);
    if (!set->E) set->E = set->D / set->H;
    if (!set->KV) set->KV = set->H;
    if (set->E > FS_MAX_HEAD_WIDTH)
        return fs_fail(FS_CONFIG, "%.200s/config.json: %s / %s = %lld; heads of at most %d are read", c->name, D, H,
                       (long long)set->E, FS_MAX_HEAD_WIDTH);
    if (set->H % set->KV)
        return fs_fail(FS_CONFIG, "%.200s/config.json: %lld heads cannot share %lld heads of keys and values (%s)",
                       c->name, (long long)set->H, (long long)set->KV, key_of(set, FS_SET(KV)));
    set->HE = set->H * set->E;
    set->KE = set->KV * set->E;
    return FS_OK;
}

fs_status fs_settings_read(fs_settings *out, const fs_checkpoint *c, const char *dtype) {
    fs_settings set = { 0 };
    FS_TRY(fs_settings_read_dtype(&set, dtype));
    FS_TRY(find_arch(c, &set.arch));
    FS_TRY(check_classes(set.arch, c));
    FS_TRY(fs_settings_read_keys(&set, set.arch, c));
    set.rows = FS_IDS;
    set.skipped_id = -1;
    if (set.arch->settle) FS_TRY(set.arch->settle(&set));
    FS_TRY(settle_heads(&set, c));
    fs_weight_find_prefix(&set, c);
    if (set.arch->look) set.arch->look(&set, c);
    FS_TRY(fs_tail_settle(&set, c));
    *out = set;
    return FS_OK;
}
