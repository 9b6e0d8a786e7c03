/* tiny.h - a random BERT in memory, as Python would hand it over: config keys, a tensor table, one file of weights.
 *
 *   tiny_model m;
 *   tiny_open(&m, &(tiny_shape){ .L = 3, .D = 48, .H = 3, .F = 96, .V = 50, .P = 64 }, 7);
 *   ... &m.checkpoint ...
 *   tiny_close(&m);
 *
 * The same shape and seed give the same weights. The file has no name, it is reached
 * through /proc/self/fd. */
#ifndef FS_TEST_TINY_H
#define FS_TEST_TINY_H

#include "models/checkpoint.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    int L, D, H, F, V, P;
} tiny_shape;

enum { TINY_MOST_TENSORS = 256 };

typedef struct {
    tiny_shape shape;
    fs_checkpoint checkpoint;
    fs_config_key keys[16];
    fs_tensor tensors[TINY_MOST_TENSORS];
    char names[TINY_MOST_TENSORS][96];
    char path[64];
    const char *files[1];
    int fd, key_count, tensor_count;
    int64_t at;
    uint64_t random;
} tiny_model;

static inline uint64_t tiny_next(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

/* In [low, high]. */
static inline int64_t tiny_between(uint64_t *state, int64_t low, int64_t high) {
    return low + (int64_t)(tiny_next(state) % (uint64_t)(high - low + 1));
}

static inline void tiny_tensor(tiny_model *m, const char *name, int64_t N, int64_t K, float around, float scale) {
    fs_tensor *t = &m->tensors[m->tensor_count];
    float *values = malloc((size_t)(N * K) * sizeof *values);
    for (int64_t i = 0; i < N * K; i++)
        values[i] = around + scale * ((float)(tiny_next(&m->random) >> 40) / (float)(1 << 23) - 1.0f);
    snprintf(m->names[m->tensor_count], sizeof *m->names, "%s", name);
    *t = (fs_tensor){ .name = m->names[m->tensor_count], .dtype = FS_F32, .dtype_text = "F32", .offset = m->at,
                      .bytes = N * K * (int64_t)sizeof *values };
    if (N > 0 && K > 1 && !strstr(name, "LayerNorm") && !strstr(name, "bias")) {
        t->rank = 2;
        t->shape[0] = N;
        t->shape[1] = K;
    } else {
        t->rank = 1;
        t->shape[0] = N * K;
    }
    if (write(m->fd, values, (size_t)t->bytes) != (ssize_t)t->bytes) abort();
    m->at += t->bytes;
    m->tensor_count++;
    free(values);
}

static inline void tiny_size(tiny_model *m, const char *key, int64_t value) {
    m->keys[m->key_count++] = (fs_config_key){ .key = key, .kind = FS_INT, .i = value, .f = (double)value };
}

static inline void tiny_layer(tiny_model *m, int l) {
    /* matrices of about sqrt(3 / K), so that values keep their size from layer to layer */
    const struct {
        const char *name;
        int N, K;
    } parts[] = {
        { "attention.self.query", m->shape.D, m->shape.D },  { "attention.self.key", m->shape.D, m->shape.D },
        { "attention.self.value", m->shape.D, m->shape.D },  { "attention.output.dense", m->shape.D, m->shape.D },
        { "attention.output.LayerNorm", m->shape.D, 1 },     { "intermediate.dense", m->shape.F, m->shape.D },
        { "output.dense", m->shape.D, m->shape.F },          { "output.LayerNorm", m->shape.D, 1 },
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[96];
        int norm = parts[i].K == 1;
        snprintf(name, sizeof name, "encoder.layer.%d.%s.weight", l, parts[i].name);
        if (norm) tiny_tensor(m, name, 1, parts[i].N, 1.0f, 0.1f);
        else tiny_tensor(m, name, parts[i].N, parts[i].K, 0.0f, 3.0f / (float)(parts[i].K > 64 ? 16 : 12));
        snprintf(name, sizeof name, "encoder.layer.%d.%s.bias", l, parts[i].name);
        tiny_tensor(m, name, 1, parts[i].N, 0.0f, 0.1f);
    }
}

static inline void tiny_open(tiny_model *m, const tiny_shape *shape, uint64_t seed) {
    memset(m, 0, sizeof *m);
    m->shape = *shape;
    m->random = seed;
    char name[] = "/tmp/tiny-XXXXXX";
    m->fd = mkstemp(name);
    if (m->fd < 0) abort();
    unlink(name);
    snprintf(m->path, sizeof m->path, "/proc/self/fd/%d", m->fd);
    m->keys[m->key_count++] = (fs_config_key){ .key = "model_type", .kind = FS_TEXT, .text = "bert" };
    m->keys[m->key_count++] = (fs_config_key){ .key = "architectures", .kind = FS_JSON, .text = "[\"BertModel\"]" };
    tiny_size(m, "num_hidden_layers", shape->L);
    tiny_size(m, "hidden_size", shape->D);
    tiny_size(m, "num_attention_heads", shape->H);
    tiny_size(m, "intermediate_size", shape->F);
    tiny_size(m, "vocab_size", shape->V);
    tiny_size(m, "max_position_embeddings", shape->P);
    tiny_tensor(m, "embeddings.word_embeddings.weight", shape->V, shape->D, 0.0f, 1.0f);
    tiny_tensor(m, "embeddings.position_embeddings.weight", shape->P, shape->D, 0.0f, 0.5f);
    tiny_tensor(m, "embeddings.token_type_embeddings.weight", 2, shape->D, 0.0f, 0.5f);
    tiny_tensor(m, "embeddings.LayerNorm.weight", 1, shape->D, 1.0f, 0.1f);
    tiny_tensor(m, "embeddings.LayerNorm.bias", 1, shape->D, 0.0f, 0.1f);
    for (int l = 0; l < shape->L; l++) tiny_layer(m, l);
    m->files[0] = m->path;
    m->checkpoint = (fs_checkpoint){ .name = "tiny", .keys = m->keys, .key_count = m->key_count, .tensors = m->tensors,
                                     .tensor_count = m->tensor_count, .files = m->files, .file_count = 1 };
}

static inline void tiny_close(tiny_model *m) { close(m->fd); }

#endif
