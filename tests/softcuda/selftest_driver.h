/* selftest_driver.h - the calls of the driver as a program declares them, and a device ready to be used. */
#ifndef SOFTCUDA_SELFTEST_DRIVER_H
#define SOFTCUDA_SELFTEST_DRIVER_H

#include "softcuda/selftest.h"
#include "softcuda/shim.h"

typedef unsigned long long address;
typedef void *handle;

extern "C" {
int cuInit(unsigned);
int cuDriverGetVersion(int *);
int cuGetErrorName(int, const char **);
int cuGetErrorString(int, const char **);
int cuDeviceGetCount(int *);
int cuDeviceGet(int *, int);
int cuDeviceGetName(char *, int, int);
int cuDeviceGetUuid_v2(unsigned char *, int);
int cuDeviceTotalMem_v2(size_t *, int);
int cuDeviceGetAttribute(int *, int, int);
int cuDeviceGetPCIBusId(char *, int, int);
int cuDeviceCanAccessPeer(int *, int, int);
int cuDevicePrimaryCtxRetain(handle *, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(handle);
int cuCtxGetCurrent(handle *);
int cuCtxSynchronize(void);
int cuCtxEnablePeerAccess(handle, unsigned);
int cuMemGetInfo_v2(size_t *, size_t *);
int cuMemAlloc_v2(address *, size_t);
int cuMemFree_v2(address);
int cuMemHostAlloc(void **, size_t, unsigned);
int cuMemFreeHost(void *);
int cuMemcpyHtoDAsync_v2(address, const void *, size_t, handle);
int cuMemcpyDtoHAsync_v2(void *, address, size_t, handle);
int cuMemcpyDtoDAsync_v2(address, address, size_t, handle);
int cuMemcpyPeerAsync(address, handle, address, handle, size_t, handle);
int cuMemsetD8Async(address, unsigned char, size_t, handle);
int cuMemsetD32Async(address, unsigned, size_t, handle);
int cuStreamCreate(handle *, unsigned);
int cuStreamDestroy_v2(handle);
int cuStreamSynchronize(handle);
int cuStreamQuery(handle);
int cuStreamWaitEvent(handle, handle, unsigned);
int cuStreamWriteValue32_v2(handle, address, unsigned, unsigned);
int cuStreamBeginCapture_v2(handle, int);
int cuStreamEndCapture(handle, handle *);
int cuEventCreate(handle *, unsigned);
int cuEventDestroy_v2(handle);
int cuEventRecord(handle, handle);
int cuEventSynchronize(handle);
int cuEventQuery(handle);
int cuEventElapsedTime(float *, handle, handle);
int cuModuleLoadData(handle *, const void *);
int cuModuleLoadDataEx(handle *, const void *, unsigned, int *, void **);
int cuModuleUnload(handle);
int cuModuleGetFunction(handle *, handle, const char *);
int cuFuncSetAttribute(handle, int, int);
int cuFuncGetAttribute(int *, int, handle);
int cuLaunchKernel(handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, handle, void **,
                   void **);
int cuGraphInstantiateWithFlags(handle *, handle, unsigned long long);
int cuGraphLaunch(handle, handle);
int cuGraphExecDestroy(handle);
int cuGraphDestroy(handle);
long long softcuda_calls(void);
void softcuda_fail_at(long long, int);
long long softcuda_live(void);
void softcuda_message(char *, size_t);
long long softcuda_launches(const char *, long long *);
const char *softcuda_kernel(int);
void softcuda_reset(void);
}

/* name=value pairs for the environment, then everything anew. */
inline void settings(const std::vector<std::string> &pairs) {
    for (const std::string &pair : pairs) {
        size_t sign = pair.find('=');
        setenv(pair.substr(0, sign).c_str(), pair.c_str() + sign + 1, 1);
    }
    softcuda_reset();
}

inline std::string message() {
    char text[1000];
    softcuda_message(text, sizeof text);
    return text;
}

/* Device `ordinal`, made current, with a module and a stream; all of it given back at the end. */
struct ready {
    int ordinal;
    handle context, module, stream;
    std::vector<address> blocks;
    std::vector<void *> pinned;
    explicit ready(int device = 0) : ordinal(device) {
        SAME(cuInit(0), 0);
        SAME(cuDevicePrimaryCtxRetain(&context, ordinal), 0);
        SAME(cuCtxSetCurrent(context), 0);
        SAME(cuModuleLoadData(&module, "image"), 0);
        SAME(cuStreamCreate(&stream, 1), 0);
    }
    ~ready() {
        cuCtxSetCurrent(context);
        for (address block : blocks) cuMemFree_v2(block);
        for (void *block : pinned) cuMemFreeHost(block);
        cuStreamDestroy_v2(stream);
        cuModuleUnload(module);
        cuDevicePrimaryCtxRelease_v2(ordinal);
    }
    ready(const ready &) = delete;
    ready &operator=(const ready &) = delete;
    address memory(size_t bytes) {
        address at = 0;
        SAME(cuMemAlloc_v2(&at, bytes), 0);
        blocks.push_back(at);
        return at;
    }
    float *host(size_t count) {
        void *at = nullptr;
        SAME(cuMemHostAlloc(&at, count * sizeof(float), 0), 0);
        pinned.push_back(at);
        return static_cast<float *>(at);
    }
    handle function(const char *name) {
        handle f = nullptr;
        SAME(cuModuleGetFunction(&f, module, name), 0);
        return f;
    }
    template <typename T>
    int launch(const char *name, T arguments, unsigned blocks_x, unsigned threads, unsigned shared = 0,
               handle on = nullptr) {
        void *given[] = { &arguments };
        return cuLaunchKernel(function(name), blocks_x, 1, 1, threads, 1, 1, shared, on ? on : stream, given, nullptr);
    }
    /* What a float of the device is now, read by a stream of its own, which waits for nothing. */
    float peek(address at) {
        handle other;
        float *to = host(1), value;
        SAME(cuStreamCreate(&other, 1), 0);
        SAME(cuMemcpyDtoHAsync_v2(to, at, sizeof(float), other), 0);
        SAME(cuStreamSynchronize(other), 0);
        value = *to;
        SAME(cuStreamDestroy_v2(other), 0);
        return value;
    }
};

#endif
