/* plans.h - products by cuBLASLt: for each form of product one algorithm, chosen before the first step and then kept.
 *
 * A form is what may decide the algorithm: never T, a place or a time. Of what the library proposes for a form, in its own
 * order, the first is taken that neither splits K nor takes workspace and that gives a row the same bits alone and in
 * batches (the bit test in plans.c). A form without one goes through our own kernels. Both are the library's answers to
 * fixed questions, so equal devices with equal libraries choose alike, and the device's numerics id tells the choice.
 *
 * Owner: the device. Threads: the driver thread, as for ops: a plan's descriptions are set anew for each product. Plans
 * are made while the engine opens (fs_backend.prepare); afterwards none is added, so a form's answer never changes. */
#ifndef FS_CUDA_PLANS_H
#define FS_CUDA_PLANS_H

#include "backends/cuda/cublaslt_api.h"
#include "backends/cuda/cuda.h"

typedef struct {
    int64_t N, K;
    fs_dtype w_type, y_type; /* x is of w_type */
    int epilogue;            /* FS_LT_EPILOGUE_X */
    int adds;                /* a residual, of y_type */
} fs_cuda_form;

typedef struct {
    fs_cuda_form form;
    int usable; /* 0: our own kernels */
    fs_lt_product product;
    fs_lt_layout w, x, c, y;
    fs_lt_algorithm algorithm;
    uint64_t hash; /* of form and algorithm */
} fs_cuda_plan;

/* What one product works on. */
typedef struct {
    fs_view y, x;
    const void *w, *bias;    /* bias: [N] fp32, or NULL where the epilogue has none */
    const fs_view *residual; /* where the form adds one; may be y */
} fs_cuda_operands;

/* Base and row stride of a view are as the algorithms were asked for. */
int fs_cuda_is_aligned(const void *at, int64_t stride, fs_dtype type);

/* The plan of a form, made if there is none: enqueues on q, waits, overwrites x and y. Can it be used? is *usable. */
fs_status fs_cuda_plan_make(fs_queue *q, const fs_cuda_form *form, const fs_cuda_operands *o, int *usable);
/* NULL: our own kernels. */
const fs_cuda_plan *fs_cuda_plan_find(const fs_cuda_device *d, const fs_cuda_form *form);
fs_status fs_cuda_plan_run(fs_queue *q, const fs_cuda_plan *plan, const fs_cuda_operands *o);

#endif
