/* plans.c - cuBLASLt's candidates for a form, the bit test, and one product by a plan.
 *
 * A row-major product is a column-major one of the same memory:
 *
 *     y[T,N] = x[T,K] . w[N,K]^T     is     D[N,T] = A[K,N]^T B[K,T],     A = w, B = x, C = residual, D = y
 *
 * THE BIT TEST. x is filled with fixed numbers. For each T of a list, the first, the middle and the last row of the
 * product of T rows are compared with the product of that row alone:
 *
 *     x |r0 ... rm ... rt|  -- product of T -->  y rows 0, m, t  --\
 *     x |r0|  |rm|  |rt|    -- three of T = 1 -> y row 0         --/  same bits?
 *
 * Rounding to 16 bits hides nearly all that the order of adding up does to fp32 sums. So what is compared there is not y
 * but what it leaves of the sums: the product again, minus y, in y's place. */
#include "backends/cuda/plans.h"
#include "base/alloc.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/knobs.h"

#include <stdio.h>
#include <string.h>

enum {
    ALIGNMENT = 16,
    CANDIDATES = 16,
    ASKED_ROWS = 4096, /* T of the question; an encoder's batch */
    TESTED_ROWS = 512, /* largest T of the list that every engine tests, whatever its batches */
    PLACES = 3,
};

struct fs_cuda_plans {
    fs_lt_handle handle;
    fs_lt_wish wish;
    fs_cuda_plan *list;
    int count;
};

static fs_status check(fs_cuda_device *d, int result, const char *doing) {
    fs_status st;
    if (result == FS_LT_SUCCESS) return FS_OK;
    if (result == FS_LT_ALLOC_FAILED)
        st = fs_fail(FS_NO_MEMORY, "%s: %s: cuBLASLt found no memory; lower FIRESTEEL_BATCH_TOKENS or free it",
                     d->head.name, doing);
    else
        st = fs_fail(FS_DEVICE, "%s: %s failed: %s (%d: %s); FIRESTEEL_LIBCUBLASLT=off computes without cuBLASLt",
                     d->head.name, doing, d->lt->status_name(result), result, d->lt->status_string(result));
    fs_cuda_comms_fail(d, st);
    return st;
}

/* The library cannot do this: no fault. */
static int is_refusal(int result) {
    return result == FS_LT_INVALID_VALUE || result == FS_LT_ARCH_MISMATCH || result == FS_LT_NOT_SUPPORTED;
}

static int type_of(fs_dtype t) { return t == FS_F32 ? FS_LT_F32 : t == FS_F16 ? FS_LT_F16 : FS_LT_BF16; }

int fs_cuda_is_aligned(const void *at, int64_t stride, fs_dtype type) {
    return (uintptr_t)at % ALIGNMENT == 0 && (size_t)stride * fs_dtype_bytes(type) % ALIGNMENT == 0;
}

/* -- plans of a device --------------------------------------------------------------------------------------------- */

static fs_status plans_open(fs_cuda_device *d) {
    const uint64_t none = 0;
    const uint32_t alignment = ALIGNMENT;
    if (!d->plans) FS_TRY(fs_alloc(&d->plans, 1, sizeof *d->plans));
    fs_cuda_plans *p = d->plans;
    if (p->wish) return FS_OK;
    FS_TRY(check(d, d->lt->create(&p->handle), "opening cuBLASLt"));
    FS_TRY(check(d, d->lt->wish_create(&p->wish), "asking cuBLASLt"));
    FS_TRY(check(d, d->lt->wish_set(p->wish, FS_LT_WISH_WORKSPACE, &none, sizeof none), "asking cuBLASLt"));
    for (int i = 0; i < 4; i++)
        FS_TRY(check(d, d->lt->wish_set(p->wish, FS_LT_WISH_ALIGNMENT_A + i, &alignment, sizeof alignment),
                     "asking cuBLASLt"));
    return FS_OK;
}

static void plan_close(fs_cuda_device *d, fs_cuda_plan *p) {
    const fs_lt_layout layouts[] = { p->w, p->x, p->c, p->y };
    for (int i = 0; i < 4; i++)
        if (layouts[i]) d->lt->layout_destroy(layouts[i]);
    if (p->product) d->lt->product_destroy(p->product);
}

void fs_cuda_plans_close(fs_cuda_device *d) {
    fs_cuda_plans *p = d->plans;
    if (!p) return;
    for (int i = 0; i < p->count; i++) plan_close(d, &p->list[i]);
    if (p->wish) d->lt->wish_destroy(p->wish);
    if (p->handle) d->lt->destroy(p->handle);
    fs_free(p->list);
    fs_free(p);
    d->plans = NULL;
}

static int same_form(const fs_cuda_form *a, const fs_cuda_form *b) {
    return a->N == b->N && a->K == b->K && a->w_type == b->w_type && a->y_type == b->y_type &&
           a->epilogue == b->epilogue && a->adds == b->adds;
}

static const fs_cuda_plan *find(const fs_cuda_device *d, const fs_cuda_form *form) {
    for (int i = 0; d->plans && i < d->plans->count; i++)
        if (same_form(&d->plans->list[i].form, form)) return &d->plans->list[i];
    return NULL;
}

const fs_cuda_plan *fs_cuda_plan_find(const fs_cuda_device *d, const fs_cuda_form *form) {
    const fs_cuda_plan *found = find(d, form);
    return found && found->usable ? found : NULL;
}

/* Behind the device's own id: version and choices, whatever order they were made in. */
static void write_numerics(fs_cuda_device *d) {
    char *id = d->head.numerics, *own = strstr(id, " cublasLt");
    const size_t v = d->lt->version(), length = own ? (size_t)(own - id) : strlen(id);
    uint64_t hash = 0;
    for (int i = 0; i < d->plans->count; i++)
        if (d->plans->list[i].usable) hash += d->plans->list[i].hash;
    snprintf(id + length, sizeof d->head.numerics - length, " cublasLt %zu.%zu.%zu %08x", v / 10000, v % 10000 / 100,
             v % 100, (unsigned)(hash ^ hash >> 32));
}

/* -- one product --------------------------------------------------------------------------------------------------- */

static int set_rows(const fs_lt_api *lt, fs_lt_layout to, int64_t rows, int64_t stride) {
    const uint64_t cols = (uint64_t)rows;
    int result = lt->layout_set(to, FS_LT_LAYOUT_COLS, &cols, sizeof cols);
    return result ? result : lt->layout_set(to, FS_LT_LAYOUT_LD, &stride, sizeof stride);
}

/* y = product + beta * residual; cuBLASLt's own answer. */
static int multiply(fs_queue *q, const fs_cuda_plan *p, const fs_cuda_operands *o, float beta) {
    const fs_cuda_device *d = q->device;
    const fs_lt_api *lt = d->lt;
    const fs_view c = beta != 0 ? *o->residual : o->y;
    const float alpha = 1;
    int result = set_rows(lt, p->x, o->x.rows, o->x.stride);
    if (!result) result = set_rows(lt, p->y, o->y.rows, o->y.stride);
    if (!result) result = set_rows(lt, p->c, c.rows, c.stride);
    if (!result && p->form.epilogue != FS_LT_EPILOGUE_DEFAULT)
        result = lt->product_set(p->product, FS_LT_PRODUCT_BIAS, &o->bias, sizeof o->bias);
    if (result) return result;
    return lt->multiply(d->plans->handle, p->product, &alpha, o->w, p->w, o->x.at, p->x, &beta, c.at, p->c, o->y.at,
                        p->y, &p->algorithm, NULL, 0, q->stream);
}

fs_status fs_cuda_plan_run(fs_queue *q, const fs_cuda_plan *plan, const fs_cuda_operands *o) {
    FS_TRY(fs_cuda_enter(q->device));
    return check(q->device, multiply(q, plan, o, (float)plan->form.adds), "a product");
}

/* -- the bit test -------------------------------------------------------------------------------------------------- */

/* x: rows of fixed numbers. y: room for as many. */
typedef struct {
    fs_queue *queue;
    fs_cuda_operands o;
    fs_memory memory; /* of x and y, where a step's own are too small */
    fs_cuda_buffer *held[2]; /* of the staging: for x, and for rows of y */
} trial;

/* The product of rows [row, row + T), and where it says more, plus or minus that once more; *ran: the library does such
 * ones. */
static fs_status try_product(const trial *t, const fs_cuda_plan *p, int64_t row, int64_t T, int *ran) {
    fs_cuda_device *d = t->queue->device;
    fs_cuda_operands o = t->o;
    o.x = fs_view_rows(t->o.x, row, T), o.y = fs_view_rows(t->o.y, 0, T);
    o.residual = &o.y;
    const float again = p->form.y_type != FS_F32 ? -1 : (float)p->form.adds;
    int result = multiply(t->queue, p, &o, 0);
    if (!result && again != 0) result = multiply(t->queue, p, &o, again);
    *ran = !is_refusal(result);
    return *ran ? check(d, result, "trying a product") : FS_OK;
}

/* Row `row` of y into the n-th place of its buffer. */
static fs_status keep_row(const trial *t, int64_t row, int n) {
    const fs_backend *b = t->queue->device->head.backend;
    const fs_view y = fs_view_rows(t->o.y, row, 1);
    const size_t bytes = (size_t)y.cols * fs_dtype_bytes(y.dtype);
    return b->download(t->queue, (char *)t->held[1]->memory.at + (size_t)n * bytes, y.at, bytes);
}

static fs_status rows_agree(const trial *t, const fs_cuda_plan *p, int64_t T, int *agree) {
    fs_cuda_device *d = t->queue->device;
    const int64_t places[PLACES] = { 0, T / 2, T - 1 };
    const size_t bytes = PLACES * (size_t)p->form.N * fs_dtype_bytes(p->form.y_type);
    FS_TRY(try_product(t, p, 0, T, agree));
    for (int i = 0; *agree && i < PLACES; i++) FS_TRY(keep_row(t, places[i], i));
    for (int i = 0; *agree && i < PLACES; i++) {
        FS_TRY(try_product(t, p, places[i], 1, agree));
        if (*agree) FS_TRY(keep_row(t, 0, PLACES + i));
    }
    FS_TRY(fs_cuda_check(d, d->cu->stream_synchronize(t->queue->stream), "trying a product"));
    const char *kept = t->held[1]->memory.at;
    *agree = *agree && !memcmp(kept, kept + bytes, bytes);
    return FS_OK;
}

static fs_status passes(const trial *t, const fs_cuda_plan *p, int *passed) {
    const int64_t T[] = { 2, 8, 17, 64, 129, TESTED_ROWS, t->o.y.rows };
    *passed = 1;
    for (size_t i = 0; *passed && i < sizeof T / sizeof *T; i++)
        if (!i || T[i] != T[i - 1]) FS_TRY(rows_agree(t, p, T[i], passed));
    return FS_OK;
}

/* Numbers in [-1, 1), always the same ones. */
static void fill_fixed(void *to, fs_dtype type, int64_t n) {
    enum { PIECE = 256 };
    float piece[PIECE];
    uint32_t state = 1;
    for (int64_t at = 0, take; at < n; at += take) {
        take = n - at < PIECE ? n - at : PIECE;
        for (int64_t i = 0; i < take; i++) {
            state = state * 1664525u + 1013904223u;
            piece[i] = (float)(int32_t)state * 0x1p-31f;
        }
        fs_from_f32((char *)to + (size_t)at * fs_dtype_bytes(type), piece, type, take);
    }
}

/* x, and what lies between its rows, from its buffer over and over. */
static fs_status fill_x(const trial *t) {
    fs_cuda_device *d = t->queue->device;
    const fs_view x = t->o.x;
    const size_t all = (size_t)((x.rows - 1) * x.stride + x.cols) * fs_dtype_bytes(x.dtype);
    const size_t piece = all < FS_CUDA_BUFFER_BYTES ? all : FS_CUDA_BUFFER_BYTES;
    fill_fixed(t->held[0]->memory.at, x.dtype, (int64_t)(piece / fs_dtype_bytes(x.dtype)));
    for (size_t at = 0; at < all; at += piece)
        FS_TRY(d->head.backend->upload(t->queue, (char *)x.at + at, t->held[0]->memory.at,
                                       all - at < piece ? all - at : piece));
    return FS_OK;
}

/* Engines of small batches must not choose otherwise than those of large ones. */
static fs_status widen(trial *t) {
    fs_device *head = &t->queue->device->head;
    fs_view *x = &t->o.x, *y = &t->o.y;
    if (y->rows >= TESTED_ROWS) return FS_OK;
    x->rows = y->rows = TESTED_ROWS, x->stride = x->cols, y->stride = y->cols;
    const size_t x_bytes = (size_t)(x->rows * x->stride) * fs_dtype_bytes(x->dtype);
    const size_t y_bytes = (size_t)(y->rows * y->stride) * fs_dtype_bytes(y->dtype);
    FS_TRY(head->backend->alloc(head, FS_WORKSPACE, x_bytes + y_bytes, &t->memory));
    x->at = t->memory.at, y->at = (char *)x->at + x_bytes;
    return FS_OK;
}

/* -- making a plan ------------------------------------------------------------------------------------------------- */

static fs_status describe(fs_cuda_device *d, fs_cuda_plan *p) {
    const fs_lt_api *lt = d->lt;
    const fs_cuda_form *f = &p->form;
    const int32_t transposed = FS_LT_TRANSPOSED, epilogue = f->epilogue, bias_type = FS_LT_F32;
    const int in = type_of(f->w_type), out = type_of(f->y_type);
    const uint64_t N = (uint64_t)f->N, K = (uint64_t)f->K, T = ASKED_ROWS;
    int r = lt->product_create(&p->product, FS_LT_COMPUTE_32F, FS_LT_F32);
    if (!r) r = lt->product_set(p->product, FS_LT_PRODUCT_TRANSPOSE_A, &transposed, sizeof transposed);
    if (!r) r = lt->product_set(p->product, FS_LT_PRODUCT_EPILOGUE, &epilogue, sizeof epilogue);
    if (!r && f->epilogue != FS_LT_EPILOGUE_DEFAULT)
        r = lt->product_set(p->product, FS_LT_PRODUCT_BIAS_TYPE, &bias_type, sizeof bias_type);
    if (!r) r = lt->layout_create(&p->w, in, K, N, f->K);
    if (!r) r = lt->layout_create(&p->x, in, K, T, f->K);
    if (!r) r = lt->layout_create(&p->c, out, N, T, f->N);
    if (!r) r = lt->layout_create(&p->y, out, N, T, f->N);
    return check(d, r, "describing a product");
}

/* Its configuration: what the numerics id tells, and what rules it out. */
static fs_status inspect(fs_cuda_device *d, fs_cuda_plan *p, int *fits) {
    uint32_t values[FS_LT_ALGORITHM_ATTRIBUTES] = { 0 };
    const int64_t form[] = { p->form.N, p->form.K, p->form.w_type, p->form.y_type, p->form.epilogue, p->form.adds };
    for (int i = 0; i < FS_LT_ALGORITHM_ATTRIBUTES; i++) {
        const size_t bytes = i < FS_LT_ALGORITHM_INNER_SHAPE ? sizeof(uint32_t) : sizeof(uint16_t);
        size_t written;
        FS_TRY(check(d, d->lt->algorithm_get(&p->algorithm, i, &values[i], bytes, &written), "asking cuBLASLt"));
    }
    *fits = values[FS_LT_ALGORITHM_SPLIT_K] <= 1 && values[FS_LT_ALGORITHM_REDUCTION] == 0;
    p->hash = fs_hash(values, sizeof values, fs_hash(form, sizeof form, 0));
    return FS_OK;
}

/* The first candidate that will do, if there is one. */
static fs_status choose(const trial *t, fs_cuda_plan *p) {
    fs_cuda_device *d = t->queue->device;
    fs_lt_candidate found[CANDIDATES];
    int64_t any;
    int count = 0;
    FS_TRY(fs_knob_int(FS_KNOB_TEST_FIRST_ALGORITHM, 0, 1, &any));
    const int result = d->lt->candidates(d->plans->handle, p->product, p->w, p->x, p->c, p->y, d->plans->wish,
                                         CANDIDATES, found, &count);
    if (is_refusal(result)) return FS_OK;
    FS_TRY(check(d, result, "asking cuBLASLt"));
    for (int i = 0; i < count && !p->usable; i++) {
        if (found[i].state != FS_LT_SUCCESS || found[i].workspace > 0) continue;
        p->algorithm = found[i].algorithm;
        FS_TRY(inspect(d, p, &p->usable));
        if (any) p->usable = 1;
        else if (p->usable) FS_TRY(passes(t, p, &p->usable));
    }
    return FS_OK;
}

static fs_status make_held(fs_queue *q, fs_cuda_plan *p, const fs_cuda_operands *o, fs_cuda_buffer *const held[2]) {
    fs_status st = FS_OK;
    fs_device *head = &q->device->head;
    trial t = { .queue = q, .o = *o, .held = { held[0], held[1] } };
    FS_GO(widen(&t));
    FS_GO(fill_x(&t));
    FS_GO(choose(&t, p));
done:
    q->device->cu->stream_synchronize(q->stream); /* of what failed half-way: memory and staging are given back */
    head->backend->release(head, &t.memory);
    return st;
}

fs_status fs_cuda_plan_make(fs_queue *q, const fs_cuda_form *form, const fs_cuda_operands *o, int *usable) {
    fs_status st = FS_OK;
    fs_cuda_device *d = q->device;
    fs_cuda_plan p = { .form = *form };
    const fs_cuda_plan *known = find(d, form);
    *usable = known && known->usable;
    if (known) return FS_OK;
    FS_TRY(fs_cuda_enter(d));
    FS_TRY(plans_open(d));
    FS_GO(describe(d, &p));
    if (2 * PLACES * (size_t)form->N * fs_dtype_bytes(form->y_type) <= FS_CUDA_BUFFER_BYTES) {
        fs_cuda_buffer *held[2];
        FS_GO(fs_cuda_staging_hold(d, held));
        st = make_held(q, &p, o, held);
        fs_cuda_staging_let_go(d, held);
        FS_GO(st);
    }
    FS_GO(fs_realloc(&d->plans->list, (size_t)d->plans->count + 1, sizeof p));
    d->plans->list[d->plans->count++] = p;
    *usable = p.usable;
    if (p.usable) write_numerics(d);
    return FS_OK;
done:
    plan_close(d, &p);
    return st;
}
