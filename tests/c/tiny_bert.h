/* tiny_bert.h - a small BERT checkpoint in memory files, for C tests and the fuzzer.
 *
 * Weights are multiples of 1/64 within +-1, so fp32, fp16 and bf16 hold the same values. A tensor's values depend on
 * its name and their place alone: two checkpoints of the same shape are equal, however they are cut into files. */
#ifndef TINY_BERT_H
#define TINY_BERT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/hash.h"
#include "models/checkpoint.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TINY_KEYS    40
#define TINY_TENSORS 128
#define TINY_FILES   3

typedef struct {
    int L, D, H, F, V, P;
    fs_dtype dtype;
    const char *prefix;
    int gamma; /* norms are called gamma and beta, as in older files */
    int files;
} tiny_shape;

static const tiny_shape TINY = { .L = 2, .D = 16, .H = 4, .F = 32, .V = 24, .P = 16, .prefix = "", .files = 1 };

typedef struct {
    fs_checkpoint c;
    fs_config_key keys[TINY_KEYS];
    fs_tensor tensors[TINY_TENSORS];
    char names[TINY_TENSORS][120], paths[TINY_FILES][40];
    const char *files[TINY_FILES];
    int fds[TINY_FILES];
    int64_t file_bytes[TINY_FILES];
    tiny_shape shape;
} tiny_bert;

static inline float tiny_value(const char *name, int64_t i) {
    return (float)(int)(fs_hash(&i, sizeof i, fs_hash(name, strlen(name), 1)) % 129) / 64 - 1;
}

static inline uint16_t tiny_half(float f, fs_dtype dtype) {
    union {
        float f;
        uint32_t u;
    } v = { .f = f };
    if (dtype == FS_BF16) return (uint16_t)(v.u >> 16);
    if (f == 0) return 0;
    int exponent = (int)(v.u >> 23 & 255) - 127 + 15;
    return (uint16_t)((v.u >> 16 & 0x8000) | (uint32_t)exponent << 10 | (v.u >> 13 & 1023));
}

static inline void tiny_write(int fd, const void *at, size_t bytes, int64_t offset) {
    if (pwrite(fd, at, bytes, offset) != (ssize_t)bytes) {
        perror("tiny_bert");
        exit(2);
    }
}

static inline void tiny_tensor(tiny_bert *t, const char *name, int rank, int64_t rows, int64_t cols) {
    int i = t->c.tensor_count++, file = i % t->shape.files;
    int64_t n = rank == 2 ? rows * cols : cols, width = (int64_t)fs_dtype_bytes(t->shape.dtype);
    char *data = malloc((size_t)(n * width));
    snprintf(t->names[i], sizeof t->names[i], "%s%s", t->shape.prefix, name);
    for (int64_t k = 0; k < n; k++) {
        float value = tiny_value(name, k);
        uint16_t half = tiny_half(value, t->shape.dtype);
        memcpy(data + k * width, width == 4 ? (void *)&value : (void *)&half, (size_t)width);
    }
    tiny_write(t->fds[file], data, (size_t)(n * width), t->file_bytes[file]);
    free(data);
    t->tensors[i] = (fs_tensor){ .name = t->names[i],
                                 .dtype = t->shape.dtype,
                                 .dtype_text = t->shape.dtype == FS_F32   ? "F32"
                                               : t->shape.dtype == FS_F16 ? "F16"
                                                                          : "BF16",
                                 .rank = rank,
                                 .file = file,
                                 .offset = t->file_bytes[file],
                                 .bytes = n * width };
    t->tensors[i].shape[0] = rank == 2 ? rows : cols;
    t->tensors[i].shape[1] = rank == 2 ? cols : 0;
    t->file_bytes[file] += n * width;
}

static inline void tiny_linear(tiny_bert *t, const char *name, int64_t rows, int64_t cols) {
    char part[100];
    snprintf(part, sizeof part, "%s.weight", name);
    tiny_tensor(t, part, 2, rows, cols);
    snprintf(part, sizeof part, "%s.bias", name);
    tiny_tensor(t, part, 1, 1, rows);
}

static inline void tiny_norm(tiny_bert *t, const char *name) {
    char part[100];
    snprintf(part, sizeof part, "%s.LayerNorm.%s", name, t->shape.gamma ? "gamma" : "weight");
    tiny_tensor(t, part, 1, 1, t->shape.D);
    snprintf(part, sizeof part, "%s.LayerNorm.%s", name, t->shape.gamma ? "beta" : "bias");
    tiny_tensor(t, part, 1, 1, t->shape.D);
}

static inline fs_config_key *tiny_key(tiny_bert *t, const char *key) {
    for (int i = 0; i < t->c.key_count; i++)
        if (!strcmp(t->keys[i].key, key)) return &t->keys[i];
    t->keys[t->c.key_count].key = key;
    return &t->keys[t->c.key_count++];
}

static inline void tiny_int(tiny_bert *t, const char *key, int64_t value) {
    fs_config_key *k = tiny_key(t, key);
    *k = (fs_config_key){ .key = key, .kind = FS_INT, .i = value, .f = (double)value };
}

static inline void tiny_number(tiny_bert *t, const char *key, double value) {
    *tiny_key(t, key) = (fs_config_key){ .key = key, .kind = FS_FLOAT, .f = value };
}

static inline void tiny_text(tiny_bert *t, const char *key, const char *value) {
    *tiny_key(t, key) = (fs_config_key){ .key = key, .kind = FS_TEXT, .text = value };
}

static inline void tiny_bool(tiny_bert *t, const char *key, int value) {
    *tiny_key(t, key) = (fs_config_key){ .key = key, .kind = FS_BOOL, .i = value };
}

static inline void tiny_json(tiny_bert *t, const char *key, const char *value) {
    *tiny_key(t, key) = (fs_config_key){ .key = key, .kind = FS_JSON, .text = value };
}

static inline void tiny_null(tiny_bert *t, const char *key) {
    *tiny_key(t, key) = (fs_config_key){ .key = key, .kind = FS_NULL };
}

static inline void tiny_drop_key(tiny_bert *t, const char *key) {
    fs_config_key *k = tiny_key(t, key);
    *k = t->keys[--t->c.key_count];
}

static inline fs_tensor *tiny_find(tiny_bert *t, const char *name) {
    for (int i = 0; i < t->c.tensor_count; i++)
        if (!strcmp(t->tensors[i].name, name)) return &t->tensors[i];
    fprintf(stderr, "the tiny checkpoint has no %s\n", name);
    exit(2);
}

/* No keys and no tensors yet; each file begins with what would be its header's length. */
static inline void tiny_files(tiny_bert *t, const tiny_shape *shape) {
    *t = (tiny_bert){ .shape = *shape };
    t->c = (fs_checkpoint){ .name = "tiny", .keys = t->keys, .tensors = t->tensors, .files = t->files };
    for (int i = 0; i < shape->files; i++) {
        t->fds[i] = memfd_create("tiny", MFD_CLOEXEC);
        snprintf(t->paths[i], sizeof t->paths[i], "/proc/self/fd/%d", t->fds[i]);
        t->files[i] = t->paths[i];
        char header[8] = { 0 };
        tiny_write(t->fds[i], header, sizeof header, 0);
        t->file_bytes[i] = sizeof header;
    }
    t->c.file_count = shape->files;
}

static inline void tiny_open(tiny_bert *t, const tiny_shape *shape) {
    tiny_files(t, shape);
    tiny_text(t, "model_type", "bert");
    tiny_int(t, "num_hidden_layers", shape->L);
    tiny_int(t, "hidden_size", shape->D);
    tiny_int(t, "num_attention_heads", shape->H);
    tiny_int(t, "intermediate_size", shape->F);
    tiny_int(t, "vocab_size", shape->V);
    tiny_int(t, "max_position_embeddings", shape->P);
    tiny_json(t, "architectures", "[\"BertModel\"]");
    tiny_tensor(t, "embeddings.word_embeddings.weight", 2, shape->V, shape->D);
    tiny_tensor(t, "embeddings.position_embeddings.weight", 2, shape->P, shape->D);
    tiny_tensor(t, "embeddings.token_type_embeddings.weight", 2, 2, shape->D);
    tiny_norm(t, "embeddings");
    for (int l = 0; l < shape->L; l++) {
        static const char *const square[] = { "attention.self.query", "attention.self.key", "attention.self.value",
                                              "attention.output.dense" };
        char name[80];
        for (int i = 0; i < 4; i++) {
            snprintf(name, sizeof name, "encoder.layer.%d.%s", l, square[i]);
            tiny_linear(t, name, shape->D, shape->D);
        }
        snprintf(name, sizeof name, "encoder.layer.%d.attention.output", l);
        tiny_norm(t, name);
        snprintf(name, sizeof name, "encoder.layer.%d.intermediate.dense", l);
        tiny_linear(t, name, shape->F, shape->D);
        snprintf(name, sizeof name, "encoder.layer.%d.output.dense", l);
        tiny_linear(t, name, shape->D, shape->F);
        snprintf(name, sizeof name, "encoder.layer.%d.output", l);
        tiny_norm(t, name);
    }
}

static inline void tiny_close(tiny_bert *t) {
    for (int i = 0; i < t->shape.files; i++) close(t->fds[i]);
}

#endif
