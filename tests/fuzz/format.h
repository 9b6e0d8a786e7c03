/* format.h - a checkpoint as a string of bytes, so that a fuzzer can change every number and name of it.
 *
 *   u8 files, each: u16 bytes of the file
 *   u8 keys, each:  text key, u8 kind, then i64 | f64 | text
 *   u8 tensors, each: text name, u8 dtype, u8 rank, i64 sizes[rank], u8 file, i64 offset, i64 bytes
 *   text: u8 length, bytes
 *
 * Reading past the end gives zeros, so every string of bytes is some checkpoint. Files are memory files of the length
 * asked for; their content is zeros, which no code looks at. */
#ifndef FUZZ_FORMAT_H
#define FUZZ_FORMAT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "models/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FUZZ_FILES   3
#define FUZZ_KEYS    64
#define FUZZ_TENSORS 128
#define FUZZ_TEXT    ((size_t)1 << 16)
#define FUZZ_BYTES   ((size_t)1 << 16) /* longest input that is made here */

typedef struct {
    fs_checkpoint c;
    fs_config_key keys[FUZZ_KEYS];
    fs_tensor tensors[FUZZ_TENSORS];
    const char *files[FUZZ_FILES];
    char text[FUZZ_TEXT];
    size_t text_used;
    const uint8_t *at, *end;
} fuzz_input;

static inline void fuzz_take(fuzz_input *f, void *out, size_t bytes) {
    size_t left = (size_t)(f->end - f->at), n = bytes < left ? bytes : left;
    memset(out, 0, bytes);
    if (n) memcpy(out, f->at, n);
    f->at += n;
}

static inline int fuzz_byte(fuzz_input *f) {
    uint8_t b;
    fuzz_take(f, &b, 1);
    return b;
}

static inline int64_t fuzz_int(fuzz_input *f) {
    int64_t i;
    fuzz_take(f, &i, sizeof i);
    return i;
}

static inline const char *fuzz_text(fuzz_input *f) {
    size_t length = (size_t)fuzz_byte(f);
    char *text = f->text + f->text_used;
    if (f->text_used + length + 1 > FUZZ_TEXT) return "";
    fuzz_take(f, text, length);
    text[length] = 0;
    f->text_used += length + 1;
    return text;
}

static inline void fuzz_read_key(fuzz_input *f, fs_config_key *k) {
    k->key = fuzz_text(f);
    k->kind = fuzz_byte(f) % 6;
    if (k->kind == FS_BOOL || k->kind == FS_INT) k->i = fuzz_int(f);
    if (k->kind == FS_BOOL) k->i &= 1;
    if (k->kind == FS_INT) k->f = (double)k->i;
    if (k->kind == FS_FLOAT) fuzz_take(f, &k->f, sizeof k->f);
    if (k->kind == FS_TEXT || k->kind == FS_JSON) k->text = fuzz_text(f);
}

static inline void fuzz_read_tensor(fuzz_input *f, fs_tensor *t) {
    t->name = fuzz_text(f);
    t->dtype = (fs_dtype)(fuzz_byte(f) % (FS_DTYPE_COUNT + 1));
    t->dtype_text = "SOME";
    t->rank = (int8_t)fuzz_byte(f);
    for (int i = 0; i < t->rank && i < FS_MAX_RANK; i++) t->shape[i] = fuzz_int(f);
    t->file = (int8_t)fuzz_byte(f);
    t->offset = fuzz_int(f);
    t->bytes = fuzz_int(f);
}

/* Bytes -> checkpoint; fds: FUZZ_FILES memory files, made as long as the input says. */
static inline void fuzz_read(fuzz_input *f, const int fds[FUZZ_FILES], const uint8_t *data, size_t size) {
    static char paths[FUZZ_FILES][32];
    memset(f, 0, sizeof *f);
    f->at = data;
    f->end = data + size;
    f->c = (fs_checkpoint){ .name = "fuzzed", .keys = f->keys, .tensors = f->tensors, .files = f->files };
    f->c.file_count = fuzz_byte(f) % (FUZZ_FILES + 1);
    for (int i = 0; i < f->c.file_count; i++) {
        uint16_t bytes;
        fuzz_take(f, &bytes, sizeof bytes);
        snprintf(paths[i], sizeof paths[i], "/proc/self/fd/%d", fds[i]);
        f->files[i] = paths[i];
        if (ftruncate(fds[i], bytes)) abort();
    }
    f->c.key_count = fuzz_byte(f) % FUZZ_KEYS;
    for (int i = 0; i < f->c.key_count; i++) fuzz_read_key(f, &f->keys[i]);
    f->c.tensor_count = fuzz_byte(f) % FUZZ_TENSORS;
    for (int i = 0; i < f->c.tensor_count; i++) fuzz_read_tensor(f, &f->tensors[i]);
}

typedef struct {
    uint8_t *at;
    size_t used;
} fuzz_output;

static inline void fuzz_put(fuzz_output *o, const void *from, size_t bytes) {
    if (o->used + bytes > FUZZ_BYTES) abort();
    memcpy(o->at + o->used, from, bytes);
    o->used += bytes;
}

static inline void fuzz_put_byte(fuzz_output *o, int byte) {
    uint8_t b = (uint8_t)byte;
    fuzz_put(o, &b, 1);
}

static inline void fuzz_put_text(fuzz_output *o, const char *text) {
    fuzz_put_byte(o, (int)strlen(text));
    fuzz_put(o, text, strlen(text));
}

/* Checkpoint -> bytes, at most FUZZ_BYTES of them. */
static inline size_t fuzz_write(uint8_t *out, const fs_checkpoint *c, const int64_t *file_bytes) {
    fuzz_output o = { out, 0 };
    fuzz_put_byte(&o, c->file_count);
    for (int i = 0; i < c->file_count; i++) {
        uint16_t bytes = (uint16_t)file_bytes[i];
        fuzz_put(&o, &bytes, sizeof bytes);
    }
    fuzz_put_byte(&o, c->key_count);
    for (int i = 0; i < c->key_count; i++) {
        const fs_config_key *k = &c->keys[i];
        fuzz_put_text(&o, k->key);
        fuzz_put_byte(&o, k->kind);
        if (k->kind == FS_BOOL || k->kind == FS_INT) fuzz_put(&o, &k->i, sizeof k->i);
        if (k->kind == FS_FLOAT) fuzz_put(&o, &k->f, sizeof k->f);
        if (k->kind == FS_TEXT || k->kind == FS_JSON) fuzz_put_text(&o, k->text);
    }
    fuzz_put_byte(&o, c->tensor_count);
    for (int i = 0; i < c->tensor_count; i++) {
        const fs_tensor *t = &c->tensors[i];
        fuzz_put_text(&o, t->name);
        fuzz_put_byte(&o, t->dtype);
        fuzz_put_byte(&o, t->rank);
        fuzz_put(&o, t->shape, (size_t)t->rank * sizeof *t->shape);
        fuzz_put_byte(&o, t->file);
        fuzz_put(&o, &t->offset, sizeof t->offset);
        fuzz_put(&o, &t->bytes, sizeof t->bytes);
    }
    return o.used;
}

#endif
