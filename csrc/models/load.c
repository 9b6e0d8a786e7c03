/* load.c - reads the weights of a shard: table row -> tensor -> this rank's part of it -> the backend's own form.
 *
 *   table rows of one slot      [query][key][value]                 one fused weight, a matrix stacked along N,
 *   rank 1 of 2 holds            [ q1 ] [k1] [ v1 ]                 a vector along K, after the cut
 *
 * Files are read with pread, never mapped: a file that is cut short while we read is an error then, not a SIGBUS, and
 * network volumes get sequential reads. A piece stays in the cache between the read and the packing: with a fill that
 * only copies, MiniLM (90 MB, page cache warm) loads in 63-68 ms on one Zen 3 core in pieces of 128 KB to 4 MB, most
 * of it page faults of the fresh slabs, and in 95 ms and more with 64 MB. */
#include "models/load.h"

#include "base/alloc.h"
#include "base/half.h"
#include "models/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PIECE ((int64_t)1 << 20)

/* One table row's part for this rank: rows [row, row + n) and columns [col, col + k) of the tensor [N, K]. */
typedef struct {
    int64_t N, K, row, n, col, k;
} part;

static part part_of(const fs_settings *set, const fs_shard_plan *plan, const fs_weight_row *w) {
    part p = { .N = fs_dim_of(set, w->N), .K = fs_dim_of(set, w->K) };
    int along_rows = w->cut == FS_CUT_ROWS || w->cut == FS_CUT_HEADS;
    p.n = p.N;
    p.k = p.K;
    if (w->cut == FS_CUT_NONE) return p;
    if (along_rows && w->kind != FS_VECTOR) {
        p.n = p.N / plan->ranks;
        p.row = p.n * plan->rank;
    } else {
        p.k = p.K / plan->ranks;
        p.col = p.k * plan->rank;
    }
    return p;
}

/* Table rows [row, end) fill one slot. */
static const fs_weight_row *slot_end(const fs_weight_row *row) {
    const fs_weight_row *end = row;
    while (end->name && end->slot == row->slot) end++;
    return end;
}

static fs_weight_desc slot_desc(const fs_settings *set, const fs_shard_plan *plan, const fs_weight_row *row) {
    fs_weight_desc d = { .kind = row->kind, .dtype = set->dtype };
    for (const fs_weight_row *w = row; w < slot_end(row); w++) {
        part p = part_of(set, plan, w);
        if (w->kind == FS_VECTOR) {
            d.N = 1;
            d.K += p.k;
        } else {
            d.N += p.n;
            d.K = p.k;
        }
    }
    return d;
}

static size_t slab_bytes(const fs_settings *set, const fs_shard_plan *plan, const fs_weight_row *table, fs_device *d) {
    size_t bytes = 0;
    for (const fs_weight_row *row = table; row->name; row = slot_end(row)) {
        fs_weight_desc desc = slot_desc(set, plan, row);
        bytes += d->backend->weight_bytes(d, &desc);
    }
    return bytes;
}

fs_status fs_shard_check(const fs_settings *set, int ranks) {
    const char *what = NULL;
    int64_t size = 0;
    if (ranks < 1) return fs_fail(FS_CONFIG, "a tensor group of %d devices cannot be; it has 1 or more", ranks);
    if (set->F % ranks) what = "inner width", size = set->F;
    if (set->H % ranks) what = "attention heads", size = set->H;
    if (what)
        return fs_fail(FS_CONFIG, "the model's %s (%lld) cannot be shared evenly by a tensor group of %d devices", what,
                       (long long)size, ranks);
    return FS_OK;
}

size_t fs_shard_bytes(const fs_settings *set, const fs_shard_plan *plan, fs_device *device) {
    size_t layers = (size_t)(plan->last_layer - plan->first_layer);
    size_t bytes = layers * slab_bytes(set, plan, set->arch->layer, device);
    return plan->with_ends ? bytes + slab_bytes(set, plan, set->arch->ends, device) : bytes;
}

/* What reading needs; zeroed where nothing is read. */
typedef struct {
    const fs_checkpoint *c;
    fs_tensor_names names;
    const char *prefix;
    int *fds;    /* of each file, -1 until it is needed */
    char *piece; /* of room bytes */
    int64_t room;
} reader;

static fs_status reader_open(reader *r, const fs_checkpoint *c, const fs_settings *set) {
    FS_TRY(fs_alloc(&r->fds, (size_t)c->file_count, sizeof *r->fds));
    for (int i = 0; i < c->file_count; i++) r->fds[i] = -1;
    r->c = c;
    FS_TRY(fs_tensor_names_open(&r->names, c));
    r->prefix = fs_weight_prefix(&r->names, set);
    return FS_OK;
}

static void reader_close(reader *r) {
    for (int i = 0; r->c && i < r->c->file_count; i++)
        if (r->fds[i] >= 0) close(r->fds[i]);
    fs_tensor_names_close(&r->names);
    fs_free(r->fds);
    fs_free(r->piece);
}

static fs_status reader_room(reader *r, int64_t bytes) {
    if (bytes <= r->room) return FS_OK;
    fs_free(r->piece);
    r->room = 0;
    FS_TRY(fs_alloc_aligned(&r->piece, (size_t)bytes));
    r->room = bytes;
    return FS_OK;
}

/* Bytes [from, from + bytes) of the tensor into r->piece. */
static fs_status read_piece(reader *r, const fs_tensor *t, int64_t from, int64_t bytes) {
    const char *path = r->c->files[t->file];
    int *fd = &r->fds[t->file];
    int64_t size, got = 0;
    if (*fd < 0) {
        FS_TRY(fs_file_open(path, fd, &size));
        posix_fadvise(*fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    }
    while (got < bytes) {
        ssize_t n = pread(*fd, r->piece + got, (size_t)(bytes - got), (off_t)(t->offset + from + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return fs_fail(FS_CHECKPOINT, "%.300s: tensor %.120s cannot be read at byte %lld (%s)", path, t->name,
                           (long long)(t->offset + from + got), strerror(errno));
        if (n == 0)
            return fs_fail(
                FS_CHECKPOINT,
                "%.300s: tensor %.120s ends at byte %lld, but the file now ends at %lld; somebody writes to it", path,
                t->name, (long long)(t->offset + t->bytes), (long long)(t->offset + from + got));
        got += n;
    }
    return FS_OK;
}

/* The tensor of a table row; its shape and dtype were checked by fs_weights_check. */
static fs_status find_tensor(const reader *r, const fs_settings *set, int layer, const fs_weight_row *row,
                             const fs_tensor **out) {
    char name[FS_NAME_BYTES];
    *out = fs_weight_tensor(&r->names, set->arch, r->prefix, layer, row);
    if (*out) return FS_OK;
    fs_weight_name(name, set->arch, r->prefix, layer, row->name);
    return fs_fail(FS_CHECKPOINT, "%.300s lacks the tensor %.200s", r->c->name, name);
}

/* Rows of a matrix or table, piece by piece; `at` is where the part begins in the fused weight. */
static fs_status fill_rows(reader *r, fs_device *d, fs_weight *w, int64_t at, const fs_tensor *t, const part *p) {
    int64_t element = (int64_t)fs_dtype_bytes(t->dtype), row_bytes = p->K * element;
    int64_t rows = PIECE / row_bytes > 64 ? PIECE / row_bytes / 64 * 64 : PIECE / row_bytes; /* whole panels */
    if (rows < 1) rows = 1;
    if (rows > p->n) rows = p->n;
    FS_TRY(reader_room(r, rows * row_bytes));
    for (int64_t row = 0; row < p->n; row += rows) {
        int64_t n = p->n - row < rows ? p->n - row : rows;
        FS_TRY(read_piece(r, t, (p->row + row) * row_bytes, n * row_bytes));
        FS_TRY(d->backend->weight_fill(d, w, at + row, n, r->piece + p->col * element, (size_t)row_bytes, t->dtype));
    }
    return FS_OK;
}

/* A vector's parts may differ in dtype, and a fill takes whole rows: they are put together here in fp32 first. */
static fs_status fill_vector(reader *r, fs_device *d, fs_weight *w, const fs_settings *set, const fs_shard_plan *plan,
                             int layer, const fs_weight_row *row) {
    fs_status st = FS_OK;
    float *whole = NULL;
    int64_t at = 0;
    FS_GO(fs_alloc(&whole, (size_t)w->desc.K, sizeof *whole));
    for (const fs_weight_row *end = slot_end(row); row < end; row++) {
        part p = part_of(set, plan, row);
        const fs_tensor *t;
        FS_GO(find_tensor(r, set, layer, row, &t));
        int64_t element = (int64_t)fs_dtype_bytes(t->dtype);
        FS_GO(reader_room(r, p.k * element));
        FS_GO(read_piece(r, t, p.col * element, p.k * element));
        fs_to_f32(whole + at, r->piece, t->dtype, p.k);
        at += p.k;
    }
    FS_GO(d->backend->weight_fill(d, w, 0, 1, whole, (size_t)w->desc.K * sizeof *whole, FS_F32));
done:
    fs_free(whole);
    return st;
}

static fs_status fill_slot(reader *r, fs_device *d, fs_weight *w, const fs_settings *set, const fs_shard_plan *plan,
                           int layer, const fs_weight_row *row) {
    int64_t at = 0;
    if (row->kind == FS_VECTOR) return fill_vector(r, d, w, set, plan, layer, row);
    for (const fs_weight_row *end = slot_end(row); row < end; row++) {
        part p = part_of(set, plan, row);
        const fs_tensor *t;
        FS_TRY(find_tensor(r, set, layer, row, &t));
        FS_TRY(fill_rows(r, d, w, at, t, &p));
        at += p.n;
    }
    return FS_OK;
}

/* One slab: memory for all slots of the table, then each slot in turn. r is NULL where only shapes are wanted. */
static fs_status make_slab(fs_memory *slab, void *slots, reader *r, const fs_settings *set, const fs_shard_plan *plan,
                           int layer, fs_device *d) {
    const fs_weight_row *table = layer == FS_OUTSIDE ? set->arch->ends : set->arch->layer;
    size_t at = 0;
    FS_TRY(d->backend->alloc(d, FS_WEIGHTS, slab_bytes(set, plan, table, d), slab));
    for (const fs_weight_row *row = table; row->name; row = slot_end(row)) {
        fs_weight *w = (fs_weight *)((char *)slots + row->slot);
        fs_weight_desc desc = slot_desc(set, plan, row);
        FS_TRY(d->backend->weight_begin(d, w, &desc, (char *)slab->at + at));
        if (r) FS_TRY(fill_slot(r, d, w, set, plan, layer, row));
        FS_TRY(d->backend->weight_end(d, w));
        at += d->backend->weight_bytes(d, &desc);
    }
    return FS_OK;
}

static fs_status make_shard(fs_shard *out, reader *r, const fs_settings *set, const fs_shard_plan *plan,
                            fs_device *device) {
    const fs_arch *a = set->arch;
    int layers = plan->last_layer - plan->first_layer;
    size_t bytes = fs_shard_bytes(set, plan, device);
    *out = (fs_shard){ .plan = *plan, .device = device };
    FS_TRY(fs_shard_check(set, plan->ranks));
    /* All of it at once, so that the sentence says what the whole shard lacks and not its last layer. */
    FS_TRY(fs_budget_take(&device->budget, FS_WEIGHTS, bytes));
    fs_budget_give(&device->budget, FS_WEIGHTS, bytes);
    FS_TRY(fs_alloc(&out->layers, (size_t)layers, sizeof *out->layers));
    FS_TRY(fs_alloc(&out->layer_slabs, (size_t)layers, sizeof *out->layer_slabs));
    if (plan->with_ends) {
        FS_TRY(fs_alloc(&out->ends, 1, a->ends_bytes));
        FS_TRY(make_slab(&out->ends_slab, out->ends, r, set, plan, FS_OUTSIDE, device));
    }
    for (int i = 0; i < layers; i++) {
        FS_TRY(fs_alloc(&out->layers[i], 1, a->layer_bytes));
        FS_TRY(make_slab(&out->layer_slabs[i], out->layers[i], r, set, plan, plan->first_layer + i, device));
    }
    return FS_OK;
}

fs_status fs_shard_load(fs_shard *out, const fs_checkpoint *c, const fs_settings *set, const fs_shard_plan *plan,
                        fs_device *device) {
    fs_status st = FS_OK;
    reader r = { 0 };
    *out = (fs_shard){ 0 };
    FS_GO(reader_open(&r, c, set));
    FS_GO(make_shard(out, &r, set, plan, device));
done:
    reader_close(&r);
    if (st != FS_OK) fs_shard_release(out);
    return st;
}

fs_status fs_shard_shape(fs_shard *out, const fs_settings *set, const fs_shard_plan *plan, fs_device *device) {
    fs_status st = make_shard(out, NULL, set, plan, device);
    if (st != FS_OK) fs_shard_release(out);
    return st;
}

void fs_shard_release(fs_shard *s) {
    int layers = s->plan.last_layer - s->plan.first_layer;
    for (int i = 0; i < layers; i++) {
        if (s->layer_slabs) s->device->backend->release(s->device, &s->layer_slabs[i]);
        if (s->layers) fs_free(s->layers[i]);
    }
    if (s->device) s->device->backend->release(s->device, &s->ends_slab);
    fs_free(s->layer_slabs);
    fs_free(s->layers);
    fs_free(s->ends);
    *s = (fs_shard){ 0 };
}
