/* modules.cc - modules, functions and launches. Images are not read: every kernel is compiled into this library. */
#include "softcuda.h"

static world &w = softcuda_world;

CU(cuModuleLoadDataEx, void **out, const void *image, unsigned options, int *, void **) {
    ENTER(NEEDS_CONTEXT);
    (void)options;
    if (!image) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuModuleLoadData: no image");
    *out = softcuda_make<module>(c.current).get();
    return c.status;
}

CU(cuModuleLoadData, void **out, const void *image) {
    ENTER(NEEDS_CONTEXT);
    if (!image) return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuModuleLoadData: no image");
    *out = softcuda_make<module>(c.current).get();
    return c.status;
}

CU(cuModuleUnload, void *handle) {
    ENTER(NEEDS_CONTEXT | RELEASES);
    std::shared_ptr<module> m = softcuda_find<module>(handle);
    if (!m) return c.refuse(CUDA_ERROR_INVALID_HANDLE, "%p is no module", handle);
    softcuda_drain(c, m->owner);
    for (auto at = w.live.begin(); at != w.live.end();) {
        const function *f = dynamic_cast<function *>(at->second.get());
        at = f && f->in == m ? w.live.erase(at) : std::next(at);
    }
    w.live.erase(handle);
    return c.status;
}

CU(cuModuleGetFunction, void **out, void *handle, const char *name) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<module> m = softcuda_find<module>(handle);
    if (!m || m->owner != c.current)
        return c.refuse(CUDA_ERROR_INVALID_HANDLE, "%p is no module of this device", handle);
    softcuda_kernel_entry *k = softcuda_kernels();
    while (k && std::strcmp(k->name, name)) k = k->next;
    if (!k) return c.refuse(CUDA_ERROR_NOT_FOUND, "there is no kernel %s", name);
    std::shared_ptr<function> f = softcuda_make<function>(c.current);
    f->in = m;
    f->entry = k;
    *out = f.get();
    return c.status;
}

enum { MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };

CU(cuFuncSetAttribute, void *handle, int attribute, int value) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<function> f = softcuda_find<function>(handle);
    if (!f || f->owner != c.current)
        return c.refuse(CUDA_ERROR_INVALID_HANDLE, "%p is no function of this device", handle);
    size_t limit = softcuda_shared_limit(w.set.capability);
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || static_cast<size_t>(value) > limit) {
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "cuFuncSetAttribute(%s, %d, %d): only 8, up to %zu", f->entry->name,
                        attribute, value, limit);
    }
    f->dynamic_limit = static_cast<size_t>(value);
    return c.status;
}

CU(cuFuncGetAttribute, int *out, int attribute, void *handle) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<function> f = softcuda_find<function>(handle);
    if (!f) return c.refuse(CUDA_ERROR_INVALID_HANDLE, "%p is no function", handle);
    switch (attribute) {
    case 0: *out = f->entry->threads; break; /* MAX_THREADS_PER_BLOCK */
    case 1:                     /* SHARED_SIZE_BYTES, not known here */
    case 2:                     /* CONST_SIZE_BYTES */
    case 3: *out = 0; break;    /* LOCAL_SIZE_BYTES */
    case 4: *out = 64; break;   /* NUM_REGS */
    case 5:                     /* PTX_VERSION */
    case 6: *out = w.set.capability; break; /* BINARY_VERSION */
    case MAX_DYNAMIC_SHARED_SIZE_BYTES: *out = static_cast<int>(f->dynamic_limit); break;
    default: return c.refuse(CUDA_ERROR_INVALID_VALUE, "functions have no attribute %d", attribute);
    }
    return c.status;
}

/* -- launches ------------------------------------------------------------------------------------------------------ */

struct launch {
    device *on;
    softcuda_kernel_entry *entry;
    std::vector<char> arguments;
    softcuda_grid grid;
};

outcome softcuda_count_launch(device *d) {
    const long long n = ++d->launches;
    if (d->ordinal != w.set.lose_device || n < w.set.lose_at) return {};
    return { w.set.lose_code, "device " + std::to_string(d->ordinal) + " was lost at launch " + std::to_string(n) };
}

static outcome run(const launch &l) {
    outcome lost;
    {
        std::lock_guard<std::mutex> lock(w.mutex);
        lost = softcuda_count_launch(l.on);
    }
    if (lost.code) return lost;
    std::string failure = softcuda_run(l.entry, l.arguments.data(), l.grid);
    if (!failure.empty()) return { CUDA_ERROR_LAUNCH_FAILED, failure };
    std::lock_guard<std::mutex> lock(w.mutex);
    return softcuda_check_guards(l.on, l.entry->name);
}

static bool grid_possible(unsigned x, unsigned y, unsigned z) {
    return x && y && z && x <= 0x7fffffff && y <= 65535 && z <= 65535;
}

CU(cuLaunchKernel, void *handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
   unsigned block_z, unsigned dynamic_bytes, void *on, void **arguments, void **extra) {
    ENTER(NEEDS_CONTEXT);
    std::shared_ptr<function> f = softcuda_find<function>(handle);
    std::shared_ptr<stream> s;
    if (!f || f->owner != c.current)
        return c.refuse(CUDA_ERROR_INVALID_HANDLE, "%p is no function of this device", handle);
    CUresult status = softcuda_stream(c, on, &s);
    if (status) return status;
    const char *name = f->entry->name;
    if (!grid_possible(grid_x, grid_y, grid_z)) {
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "%s: a grid of %u x %u x %u", name, grid_x, grid_y, grid_z);
    }
    if (!block_x || block_x > static_cast<unsigned>(f->entry->threads) || block_y != 1 || block_z != 1) {
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "%s: a block of %u x %u x %u; 1 to %d x 1 x 1", name, block_x,
                        block_y, block_z, f->entry->threads);
    }
    if (dynamic_bytes > f->dynamic_limit) {
        return c.refuse(CUDA_ERROR_INVALID_VALUE, "%s: %u bytes of dynamic shared memory, its limit is %zu", name,
                        dynamic_bytes, f->dynamic_limit);
    }
    if (extra || !arguments || !arguments[0]) return c.refuse(CUDA_ERROR_INVALID_VALUE, "%s: needs its struct", name);
    const char *at = static_cast<const char *>(arguments[0]);
    auto l = std::make_shared<launch>();
    *l = { c.current,
           f->entry,
           std::vector<char>(at, at + f->entry->bytes),
           { { grid_x, grid_y, grid_z }, block_x, dynamic_bytes, w.set.capability, w.set.reverse } };
    s->launched = true;
    return softcuda_enqueue(c, s, [l] { return run(*l); });
}
