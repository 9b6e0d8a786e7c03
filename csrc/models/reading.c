/* reading.c - table row -> tensor -> this rank's part of it -> the backend's own form.
 *
 *   table rows of one slot      [query][key][value]                 one fused weight, a matrix stacked along N,
 *   rank 1 of 2 holds            [ q1 ] [k1] [ v1 ]                 a vector along K, after the cut
 *
 * Files are read with pread, never mapped: a file that is cut short while we read is an error then, not a SIGBUS, and
 * network volumes get sequential reads. A piece stays in the cache between the read and the packing: with a fill that
 * only copies, MiniLM (90 MB, page cache warm) loads in 63-68 ms on one Zen 3 core in pieces of 128 KB to 4 MB, most
 * of it page faults of the fresh slabs, and in 95 ms and more with 64 MB. */
#include "models/reading.h"

#include "base/alloc.h"
#include "base/half.h"
#include "base/thread.h"
#include "models/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PIECE ((int64_t)1 << 20)

/* ---- what a rank holds ---- */

/* One table row's part for this rank: rows [row, row + n) and columns [col, col + k) of the tensor, rows of K. */
typedef struct {
    int64_t N, K, row, n, col, k;
} part;

static part part_of(const fs_settings *set, const fs_shard_plan *plan, const fs_weight_row *w) {
    part p = { .N = fs_dim_of(set, w->N), .K = fs_dim_of(set, w->K) };
    int along_rows = w->cut == FS_CUT_ROWS || w->cut == FS_CUT_HEADS;
    p.n = p.N;
    p.k = p.K;
    if (w->kind == FS_VECTOR) p.col = w->part * p.K;
    else p.row = w->part * p.N;
    if (w->cut == FS_CUT_NONE) return p;
    if (along_rows && w->kind != FS_VECTOR) {
        p.n = p.N / plan->ranks;
        p.row += p.n * plan->rank;
    } else {
        p.k = p.K / plan->ranks;
        p.col += p.k * plan->rank;
    }
    return p;
}

/* Table rows [row, end) fill one slot. */
static const fs_weight_row *slot_end(const fs_weight_row *row) {
    const fs_weight_row *end = row;
    while (end->name && end->slot == row->slot) end++;
    return end;
}

/* The slot's next row at or behind `row` that the model has; the slot's end where there is none. */
static const fs_weight_row *there_from(const fs_settings *set, const fs_weight_row *row, const fs_weight_row *end) {
    while (row < end && !fs_weight_there(set, row)) row++;
    return row;
}

#define FOR_ROWS(w, set, first)                                                                                        \
    for (const fs_weight_row *w##_end = slot_end(first), *w = there_from(set, first, w##_end); w < w##_end;            \
         w = there_from(set, w + 1, w##_end))

/* Whether the shard holds the weights of the slot that begins with `row`. */
static int holds(const fs_settings *set, const fs_shard_plan *plan, int layer, const fs_weight_row *row) {
    if (there_from(set, row, slot_end(row)) == slot_end(row)) return 0;
    if (layer != FS_OUTSIDE) return 1;
    if (row->at == FS_AT_FIRST) return plan->first_layer == 0;
    if (row->at == FS_AT_EVERY) return 1;
    int64_t with = set->L - 1;
    while (row->at == FS_AT_BORDER && with > 0 && fs_decodes(set, (int)with)) with--;
    return plan->first_layer <= with && with < plan->last_layer;
}

static fs_weight_desc slot_desc(const fs_settings *set, const fs_shard_plan *plan, const fs_weight_row *row) {
    fs_weight_desc d = { .kind = row->kind, .dtype = set->dtype };
    FOR_ROWS(w, set, row) {
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

size_t fs_slab_bytes(const fs_settings *set, const fs_shard_plan *plan, int layer, fs_device *d) {
    size_t bytes = 0;
    for (const fs_weight_row *row = fs_weight_table(set, layer); row->name; row = slot_end(row)) {
        if (!holds(set, plan, layer, row)) continue;
        fs_weight_desc desc = slot_desc(set, plan, row);
        bytes += d->backend->weight_bytes(d, &desc);
    }
    return bytes;
}

/* ---- a slot: what a reader takes at a time ---- */

typedef struct {
    const fs_weight_row *row; /* the first of the slot's */
    const fs_tensor **tensors; /* of its rows, where they are read */
    fs_weight_desc desc;
    fs_weight *weight;
    void *at;
} slot;

/* All slots of a slab, but for their tensors; returns how many. out may be NULL. */
static int list_slots(slot *out, const fs_slab *slab, const fs_settings *set, const fs_shard_plan *plan, fs_device *d) {
    char *at = slab->at;
    int n = 0;
    for (const fs_weight_row *row = fs_weight_table(set, slab->layer); row->name; row = slot_end(row)) {
        if (!holds(set, plan, slab->layer, row)) continue;
        if (!out) {
            n++;
            continue;
        }
        out[n] = (slot){ .row = row,
                         .desc = slot_desc(set, plan, row),
                         .weight = (fs_weight *)((char *)slab->slots + row->slot),
                         .at = at };
        at += d->backend->weight_bytes(d, &out[n++].desc);
    }
    return n;
}

fs_status fs_slab_shape(const fs_slab *slab, const fs_settings *set, const fs_shard_plan *plan, fs_device *d) {
    fs_status st = FS_OK;
    slot *slots = NULL;
    int count = list_slots(NULL, slab, set, plan, d);
    FS_GO(fs_alloc(&slots, (size_t)count, sizeof *slots));
    list_slots(slots, slab, set, plan, d);
    for (int i = 0; i < count; i++) {
        FS_GO(d->backend->weight_begin(d, slots[i].weight, &slots[i].desc, slots[i].at));
        FS_GO(d->backend->weight_end(d, slots[i].weight));
    }
done:
    fs_free(slots);
    return st;
}

/* ---- readers ---- */

/* Slots that are read at one time, by all readers. */
typedef struct {
    const slot *slots;
    atomic_int next;
    atomic_int end;       /* slots before it are wanted: all, or those before the first that failed */
    pthread_mutex_t lock; /* to lower end, with its error */
    fs_error error;
} job;

struct fs_reader {
    const fs_reading *of;
    job *job;
    int slot;     /* in hand */
    int file, fd; /* the file that is open; fd -1: none */
    char *piece;  /* piece_bytes() */
    pthread_t thread;
};

/* The most that is held of the files at a time: rows of a matrix, or a vector's part beside the whole vector. */
/* Rows of a weight that are turned round together: so many that a read is of a few KB at least. */
static int64_t strip_rows(const part *p, int64_t element) {
    const int64_t rows = 16 * PIECE / (p->k * element);
    return rows < 64 ? 64 < p->n ? 64 : p->n : rows < p->n ? rows : p->n;
}

static int64_t piece_bytes(const fs_settings *set, const fs_shard_plan *plan, int layer) {
    const int64_t widest = sizeof(float); /* of the types that are read */
    int64_t most = 0;
    for (const fs_weight_row *w = fs_weight_table(set, layer); w->name; w++) {
        part p = part_of(set, plan, w);
        int64_t row = p.K * widest, bytes = p.n * row < PIECE ? p.n * row : row > PIECE ? row : PIECE;
        if (w->kind == FS_VECTOR) bytes = slot_desc(set, plan, w).K * ((int64_t)sizeof(float) + widest);
        else if (w->flags & FS_TRANSPOSED) bytes = 2 * strip_rows(&p, widest) * row;
        if (bytes > most) most = bytes;
    }
    return most;
}

fs_status fs_reading_open(fs_reading *out, const fs_checkpoint *c, const fs_settings *set, const fs_shard_plan *plan,
                          fs_device *device, int readers) {
    int64_t piece = piece_bytes(set, plan, FS_OUTSIDE);
    for (int layer = plan->first_layer; layer < plan->last_layer; layer++) {
        if (layer > plan->first_layer && fs_kind_of(set, layer) == fs_kind_of(set, layer - 1)) continue;
        int64_t bytes = piece_bytes(set, plan, layer);
        if (bytes > piece) piece = bytes;
    }
    *out = (fs_reading){ .c = c, .set = set, .plan = plan, .device = device };
    FS_TRY(fs_tensor_names_open(&out->names, c));
    FS_TRY(fs_alloc(&out->readers, (size_t)readers, sizeof *out->readers));
    for (; out->reader_count < readers; out->reader_count++) {
        fs_reader *r = &out->readers[out->reader_count];
        *r = (fs_reader){ .of = out, .fd = -1 };
        FS_TRY(fs_alloc_aligned(&r->piece, (size_t)piece));
    }
    return FS_OK;
}

void fs_reading_close(fs_reading *r) {
    for (int i = 0; i < r->reader_count; i++) {
        if (r->readers[i].fd >= 0) close(r->readers[i].fd);
        fs_free(r->readers[i].piece);
    }
    fs_free(r->readers);
    fs_tensor_names_close(&r->names);
    *r = (fs_reading){ 0 };
}

/* One file at a time: slots come in the order of the files, and a checkpoint may have more files than a process may
 * open. */
static fs_status open_file(fs_reader *r, int file) {
    int64_t size;
    if (r->fd >= 0 && r->file == file) return FS_OK;
    if (r->fd >= 0) close(r->fd);
    FS_TRY(fs_file_open(r->of->c->files[file], &r->fd, &size));
    r->file = file;
    posix_fadvise(r->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return FS_OK;
}

/* Bytes [from, from + bytes) of the tensor. */
static fs_status read_piece(fs_reader *r, const fs_tensor *t, int64_t from, int64_t bytes, char *to) {
    const char *path = r->of->c->files[t->file];
    int64_t got = 0;
    if (r->slot >= atomic_load(&r->job->end)) return fs_fail(FS_CANCELLED, "an earlier slot has failed");
    FS_TRY(open_file(r, t->file));
    while (got < bytes) {
        ssize_t n = pread(r->fd, to + got, (size_t)(bytes - got), (off_t)(t->offset + from + got));
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

/* Rows of a matrix or table, piece by piece; `at` is where the part begins in the fused weight. */
static fs_status fill_rows(fs_reader *r, fs_weight *w, int64_t at, const fs_tensor *t, const part *p) {
    fs_device *d = r->of->device;
    int64_t element = (int64_t)fs_dtype_bytes(t->dtype), row_bytes = p->K * element;
    int64_t rows = PIECE / row_bytes > 64 ? PIECE / row_bytes / 64 * 64 : PIECE / row_bytes; /* whole panels */
    if (rows < 1) rows = 1;
    for (int64_t row = 0; row < p->n; row += rows) {
        int64_t n = p->n - row < rows ? p->n - row : rows;
        FS_TRY(read_piece(r, t, (p->row + row) * row_bytes, n * row_bytes, r->piece));
        FS_TRY(d->backend->weight_fill(d, w, at + row, n, r->piece + p->col * element, (size_t)row_bytes, t->dtype));
    }
    return FS_OK;
}

/* The same of a tensor that lies there as [K, N]: rows of the weight are columns of it, turned round a strip at a time. */
static fs_status fill_transposed(fs_reader *r, fs_weight *w, int64_t at, const fs_tensor *t, const part *p) {
    fs_device *d = r->of->device;
    const int64_t element = (int64_t)fs_dtype_bytes(t->dtype), rows = strip_rows(p, element);
    char *read = r->piece, *turned = r->piece + rows * p->k * element;
    for (int64_t row = 0; row < p->n; row += rows) {
        const int64_t n = p->n - row < rows ? p->n - row : rows;
        for (int64_t k = 0; k < p->k; k++) {
            const int64_t from = ((p->col + k) * t->shape[1] + p->row + row) * element;
            FS_TRY(read_piece(r, t, from, n * element, read));
            for (int64_t i = 0; i < n; i++)
                memcpy(turned + (i * p->k + k) * element, read + i * element, (size_t)element);
        }
        FS_TRY(d->backend->weight_fill(d, w, at + row, n, turned, (size_t)(p->k * element), t->dtype));
    }
    return FS_OK;
}

/* A vector's parts may differ in dtype, and a fill takes whole rows: they are put together here in fp32 first. */
static fs_status fill_vector(fs_reader *r, const slot *s) {
    fs_device *d = r->of->device;
    float *whole = (float *)r->piece;
    char *read = (char *)(whole + s->desc.K);
    int64_t at = 0;
    int i = 0;
    FOR_ROWS(w, r->of->set, s->row) {
        const fs_tensor *t = s->tensors[i++];
        part p = part_of(r->of->set, r->of->plan, w);
        int64_t element = (int64_t)fs_dtype_bytes(t->dtype);
        FS_TRY(read_piece(r, t, p.col * element, p.k * element, read));
        fs_to_f32(whole + at, read, t->dtype, p.k);
        at += p.k;
    }
    return d->backend->weight_fill(d, s->weight, 0, 1, whole, (size_t)s->desc.K * sizeof *whole, FS_F32);
}

static fs_status read_slot(fs_reader *r, const slot *s) {
    fs_device *d = r->of->device;
    int64_t at = 0;
    FS_TRY(d->backend->weight_begin(d, s->weight, &s->desc, s->at));
    if (s->row->kind == FS_VECTOR) {
        FS_TRY(fill_vector(r, s));
        return d->backend->weight_end(d, s->weight);
    }
    int i = 0;
    FOR_ROWS(w, r->of->set, s->row) {
        part p = part_of(r->of->set, r->of->plan, w);
        FS_TRY((w->flags & FS_TRANSPOSED ? fill_transposed : fill_rows)(r, s->weight, at, s->tensors[i++], &p));
        at += p.n;
    }
    return d->backend->weight_end(d, s->weight);
}

/* ---- all of them ---- */

/* Slots are taken in order, so those before a failed one are in somebody's hands: each is brought to its end, and the
 * earliest failure is the same in every run. */
static void slot_failed(job *j, int slot, fs_status st) {
    pthread_mutex_lock(&j->lock);
    if (slot < atomic_load(&j->end)) {
        atomic_store(&j->end, slot);
        fs_error_take(&j->error, st);
    }
    pthread_mutex_unlock(&j->lock);
}

static void read_slots(fs_reader *r) {
    job *j = r->job;
    while ((r->slot = atomic_fetch_add(&j->next, 1)) < atomic_load(&j->end)) {
        fs_status st = read_slot(r, &j->slots[r->slot]);
        if (st != FS_OK) slot_failed(j, r->slot, st);
    }
}

static void *reader_main(void *reader) {
    prctl(PR_SET_NAME, "fs-read");
    read_slots(reader);
    return NULL;
}

/* The calling thread is reader 0. */
static fs_status run_readers(fs_reading *r, const slot *slots, int count) {
    job j = { .slots = slots };
    int readers = r->reader_count < count ? r->reader_count : count, started = 1;
    atomic_init(&j.next, 0);
    atomic_init(&j.end, count);
    pthread_mutex_init(&j.lock, NULL);
    for (int i = 0; i < r->reader_count; i++) r->readers[i].job = &j;
    for (; started < readers; started++) {
        fs_status st = fs_thread_start(&r->readers[started].thread, reader_main, &r->readers[started]);
        if (st == FS_OK) continue;
        slot_failed(&j, -1, st);
        break;
    }
    read_slots(&r->readers[0]);
    for (int i = 1; i < started; i++) pthread_join(r->readers[i].thread, NULL);
    pthread_mutex_destroy(&j.lock);
    return j.error.status == FS_OK ? FS_OK : fs_error_raise(&j.error);
}

/* The tensors of a slot's table rows; their shapes and dtypes were checked by fs_weights_check. */
static fs_status find_tensors(const fs_reading *r, const slot *s, int layer) {
    char name[FS_NAME_BYTES];
    int i = 0;
    FOR_ROWS(w, r->set, s->row) {
        s->tensors[i] = fs_weight_tensor(&r->names, r->set, layer, w);
        if (s->tensors[i++]) continue;
        fs_weight_name(name, r->set, layer, w->name);
        return fs_fail(FS_CHECKPOINT, "%.300s lacks the tensor %.200s", r->c->name, name);
    }
    return FS_OK;
}

static int by_place(const void *a, const void *b) {
    const slot *x = a, *y = b;
    const fs_tensor *s = x->tensors[0], *t = y->tensors[0];
    if (s->file != t->file) return s->file < t->file ? -1 : 1;
    return (s->offset > t->offset) - (s->offset < t->offset);
}

fs_status fs_reading_slabs(fs_reading *r, const fs_slab slabs[], int count) {
    fs_status st = FS_OK;
    slot *slots = NULL;
    const fs_tensor **tensors = NULL;
    size_t rows = 0, room = 0, n = 0, used = 0;
    for (int i = 0; i < count; i++) {
        room += (size_t)list_slots(NULL, &slabs[i], r->set, r->plan, r->device);
        for (const fs_weight_row *row = fs_weight_table(r->set, slabs[i].layer); row->name; row++) rows++;
    }
    FS_GO(fs_alloc(&slots, room, sizeof *slots));
    FS_GO(fs_alloc(&tensors, rows, sizeof *tensors));
    for (int i = 0; i < count; i++) {
        size_t end = n + (size_t)list_slots(slots + n, &slabs[i], r->set, r->plan, r->device);
        for (; n < end; n++) {
            slots[n].tensors = tensors + used;
            FS_GO(find_tensors(r, &slots[n], slabs[i].layer));
            used += (size_t)(slot_end(slots[n].row) - slots[n].row);
        }
    }
    qsort(slots, n, sizeof *slots, by_place);
    FS_GO(run_readers(r, slots, (int)n));
done:
    fs_free(tensors);
    fs_free(slots);
    return st;
}
