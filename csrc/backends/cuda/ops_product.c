/* ops_product.c - matmul: by cuBLASLt where that has a plan for the form (plans.h), else by our own kernels, so that a GPU
 * works with nothing but its driver.
 *
 * Which of both is a matter of shapes, strides, types and alignment, never of T. What the library cannot do at once is
 * done by the kernel of `add`, in place behind it:
 *
 *     bias                fp32 y: the library.     16-bit y: its biases are of y's type, ours are fp32, so `add`
 *     bias, then relu     the library
 *     other activations   `add`
 *     residual            the library where it is of y's type and nothing but the bias comes before it; else `add` */
#include "backends/cuda/ops_inside.h"
#include "backends/cuda/plans.h"

/* Rows of y that a block computes, and columns: product.cu */
enum { ROWS_F32 = 128, ROWS_16 = 64, COLUMNS = 64 };

/* A product in two steps: the form that the library computes, and what is left. */
typedef struct {
    fs_cuda_form form;
    fs_cuda_operands o;
    fs_epilogue rest;
    int has_rest;
} halves;

static halves split(fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e, int with_bias) {
    static const fs_epilogue none;
    halves h = { .form = { y.cols, x.cols, w->desc.dtype, y.dtype, FS_LT_EPILOGUE_DEFAULT, 0 },
                 .o = { .y = y, .x = x, .w = w->at },
                 .rest = e ? *e : none };
    const fs_view *residual = h.rest.residual;
    if (residual && h.rest.activation == FS_ACT_NONE && residual->dtype == y.dtype &&
        fs_cuda_is_aligned(residual->at, residual->stride, residual->dtype)) {
        h.form.adds = 1, h.o.residual = residual;
        h.rest.residual = NULL;
    }
    if (h.rest.bias && with_bias) {
        const int relu = h.rest.activation == FS_ACT_RELU;
        h.form.epilogue = relu ? FS_LT_EPILOGUE_RELU_BIAS : FS_LT_EPILOGUE_BIAS;
        h.o.bias = h.rest.bias->at;
        h.rest.bias = NULL;
        if (relu) h.rest.activation = FS_ACT_NONE;
    }
    h.has_rest = h.rest.bias || h.rest.residual || h.rest.activation != FS_ACT_NONE;
    return h;
}

/* What the library can be asked for at all. A residual in y is gone before `add` could read it. */
static int is_for_library(fs_view y, fs_view x, const fs_weight *w, const halves *h) {
    const fs_dtype type = w->desc.dtype;
    return x.dtype == type && (y.dtype == type || y.dtype == FS_F32) && fs_cuda_is_aligned(x.at, x.stride, type) &&
           fs_cuda_is_aligned(w->at, x.cols, type) && fs_cuda_is_aligned(y.at, y.stride, y.dtype) &&
           !(h->rest.residual && h->rest.residual->at == y.at);
}

static const fs_cuda_plan *plan_of(fs_cuda_device *d, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e,
                                   halves *out) {
    const fs_cuda_plan *plan = NULL;
    for (int with_bias = e && e->bias; !plan && with_bias >= 0; with_bias--) {
        *out = split(y, x, w, e, with_bias);
        if (is_for_library(y, x, w, out)) plan = fs_cuda_plan_find(d, &out->form);
    }
    return plan;
}

fs_status fs_cuda_prepare_matmul(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    if (!fs_fits_matmul(y, x, w, e)) return fs_misfit(s, "matmul", x, y);
    if (!s->queue->device->lt) return FS_OK;
    int usable = 0;
    for (int with_bias = e && e->bias; !usable && with_bias >= 0; with_bias--) {
        const halves h = split(y, x, w, e, with_bias);
        if (is_for_library(y, x, w, &h)) FS_TRY(fs_cuda_plan_make(s->queue, &h.form, &h.o, &usable));
    }
    return FS_OK;
}

static fs_status run_own(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    fs_cuda_product p = { .y = y.at,
                          .x = x.at,
                          .w = w->at,
                          .y_stride = y.stride,
                          .x_stride = x.stride,
                          .T = (int)y.rows,
                          .N = (int)y.cols,
                          .K = (int)x.cols,
                          .x_type = x.dtype,
                          .w_type = w->desc.dtype,
                          .y_type = y.dtype };
    if (e) p.activation = e->activation;
    if (e && e->bias) p.bias = e->bias->at;
    if (e && e->residual) {
        p.residual = e->residual->at, p.residual_stride = e->residual->stride;
        p.residual_type = e->residual->dtype;
    }
    const int wide = p.w_type == FS_F32;
    const unsigned blocks = fs_cuda_blocks(p.T, wide ? ROWS_F32 : ROWS_16) * fs_cuda_blocks(p.N, COLUMNS);
    return fs_cuda_launch(s->queue, wide ? FS_CUDA_fs_product_f32_kernel : FS_CUDA_fs_product_16_kernel,
                          (fs_cuda_grid){ blocks, 1, 1 }, &p);
}

fs_status fs_cuda_matmul(fs_step *s, fs_view y, fs_view x, const fs_weight *w, const fs_epilogue *e) {
    if (!fs_fits_matmul(y, x, w, e)) return fs_misfit(s, "matmul", x, y);
    if (y.rows == 0) return FS_OK;
    halves h;
    const fs_cuda_plan *plan = plan_of(s->queue->device, y, x, w, e, &h);
    if (!plan) return run_own(s, y, x, w, e);
    FS_TRY(fs_cuda_plan_run(s->queue, plan, &h.o));
    return h.has_rest ? fs_cuda_launch_add(s, y, y, &h.rest) : FS_OK;
}
