/* A CUDA runtime on which every kernel does nothing: what the host does for a GPU, without one.
 *
 * Preloaded before torch, it stands in front of the real runtime library. There is one device, whose
 * memory is host memory: copies and fills are made at once, kernels are only counted. A capture counts
 * what is launched within as nodes; a wait for the device within it is an error, as on a GPU. What it
 * cannot show: numbers, time, the order of streams, cuDNN, cuBLAS and NCCL.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <driver_types.h>
#include <vector_types.h>

enum { OK = 0, CAPTURE_FAILS = 900 };
enum { KERNELS, TO_DEVICE, TO_HOST, ON_DEVICE, FILLS, WAITS, GRAPHS, FORBIDDEN, CAPTURES, KINDS };
enum { TABLE = 1 << 18 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long counts[KINDS], nodes; /* nodes of the latest capture */
static cudaStream_t captured;              /* the stream being captured, or NULL */
static struct { const void *function; const char *name; long nodes; } kernels[TABLE];

/* For tests: read and clear the counts, in the order of the enumeration. */
void gpu_counts(long *into) {
    pthread_mutex_lock(&lock);
    memcpy(into, counts, sizeof counts);
    memset(counts, 0, sizeof counts);
    pthread_mutex_unlock(&lock);
}
long gpu_nodes(void) { return nodes; }
/* The nodes of the latest capture by kernel. */
void gpu_print_nodes(const char *path) {
    FILE *file = fopen(path, "w");
    for (int i = 0; i < TABLE; i++)
        if (kernels[i].nodes) fprintf(file, "%ld %s\n", kernels[i].nodes, kernels[i].name);
    fclose(file);
}

static void count(int kind, cudaStream_t stream) {
    pthread_mutex_lock(&lock);
    counts[kind]++;
    if (captured) {
        nodes++;
        /* A copy from or to the host, or work on another stream, has no business in a step. */
        if (stream != captured || kind == TO_DEVICE || kind == TO_HOST) counts[FORBIDDEN]++;
    }
    pthread_mutex_unlock(&lock);
}
static cudaError_t wait(void) {
    pthread_mutex_lock(&lock);
    counts[WAITS]++;
    counts[FORBIDDEN] += captured != NULL;
    pthread_mutex_unlock(&lock);
    return captured ? (cudaError_t)CAPTURE_FAILS : (cudaError_t)OK;
}

/* Kernels */
static unsigned slot_of(const void *function) {
    unsigned slot = ((uintptr_t)function >> 4) * 2654435761u % TABLE;
    while (kernels[slot].function && kernels[slot].function != function) slot = (slot + 1) % TABLE;
    return slot;
}
void __cudaRegisterFunction(void **module, const char *function, char *device, const char *name, int limit,
                            void *tid, void *bid, void *block, void *grid, int *size) {
    pthread_mutex_lock(&lock);
    unsigned slot = slot_of(function);
    kernels[slot].function = function;
    kernels[slot].name = name;
    pthread_mutex_unlock(&lock);
}
static cudaError_t launch(const void *function, cudaStream_t stream) {
    count(KERNELS, stream);
    if (captured) kernels[slot_of(function)].nodes++;
    return OK;
}
cudaError_t __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return OK; }
cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    return launch(f, stream);
}
cudaError_t __cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    return launch(f, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *f, void **args) {
    return launch(f, how->stream);
}
/* What stands between <<< and >>> is pushed, and popped by the launch. */
static __thread struct { dim3 grid, block; size_t shared; void *stream; } configurations[8];
static __thread int depth;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    configurations[depth].grid = grid;
    configurations[depth].block = block;
    configurations[depth].shared = shared;
    configurations[depth++].stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    depth--;
    *grid = configurations[depth].grid;
    *block = configurations[depth].block;
    *shared = configurations[depth].shared;
    *(void **)stream = configurations[depth].stream;
    return OK;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->binaryVersion = a->ptxVersion = 90;
    return OK;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int value) { return OK; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *f, int threads, size_t shared) {
    *blocks = threads ? 2048 / threads : 1;
    return OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads,
                                                                   size_t shared, unsigned flags) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, threads, shared);
}

/* Memory. It is there when it is touched, and aligned as torch's allocator expects. */
cudaError_t cudaMalloc(void **pointer, size_t size) {
    const uintptr_t page = 2 << 20;
    void *all = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *pointer = (void *)(((uintptr_t)all + page - 1) & ~(page - 1));
    return OK;
}
cudaError_t cudaFree(void *pointer) { return OK; }
cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) { return (*pointer = calloc(1, size)) ? OK : 2; }
cudaError_t cudaFreeHost(void *pointer) { return OK; }
cudaError_t cudaMemGetInfo(size_t *left, size_t *all) { *left = *all = (size_t)80 << 30; return OK; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    count(kind == cudaMemcpyHostToDevice ? TO_DEVICE : kind == cudaMemcpyDeviceToHost ? TO_HOST : ON_DEVICE, stream);
    memmove(to, from, size);
    return OK;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    cudaMemcpyAsync(to, from, size, kind, captured);
    return wait();
}
cudaError_t cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t stream) {
    count(FILLS, stream);
    memset(at, value, size);
    return OK;
}
cudaError_t cudaMemset(void *at, int value, size_t size) { return cudaMemsetAsync(at, value, size, captured); }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *pointer) {
    memset(a, 0, sizeof *a);
    return OK;
}
cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) {
    static char space[1 << 16];
    *pointer = space;
    return OK;
}

/* The device */
cudaError_t cudaGetDeviceCount(int *devices) { *devices = 1; return OK; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return OK; }
cudaError_t cudaSetDevice(int device) { return OK; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13020; return OK; }
cudaError_t cudaGetLastError(void) { return OK; }
cudaError_t cudaPeekAtLastError(void) { return OK; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = *high = 0; return OK; }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    default: *value = 0;
    }
    return OK;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "no GPU");
    p->major = 9;
    p->multiProcessorCount = 132;
    p->totalGlobalMem = (size_t)80 << 30;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = 227 << 10;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->l2CacheSize = 50 << 20;
    return OK;
}
/* Of the driver, torch asks whether its context is there: it is. */
static int nothing(void) { return OK; }
static int context_state(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return OK; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *found) {
    if (found) *found = 0;
    *function = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)nothing : (void *)context_state;
    return OK;
}

/* Streams and events: all is done when the call returns. */
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    static uintptr_t last = 1 << 12;
    *stream = (cudaStream_t)(last += 16);
    return OK;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { return OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait(); }
cudaError_t cudaDeviceSynchronize(void) { return wait(); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait(); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = (cudaEvent_t)16; return OK; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { return OK; }
cudaError_t cudaEventQuery(cudaEvent_t event) { return OK; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return OK; }

/* Graphs */
static unsigned long long capture_id;
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    captured = stream;
    capture_id++;
    counts[CAPTURES]++;
    nodes = 0;
    for (int i = 0; i < TABLE; i++) kernels[i].nodes = 0;
    return OK;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    captured = NULL;
    *graph = (cudaGraph_t)16;
    return OK;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = captured && stream == captured;
    return OK;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **after,
                                     const cudaGraphEdgeData **edges, size_t *dependencies) {
    *status = captured && stream == captured;
    if (id) *id = capture_id;
    if (graph) *graph = (cudaGraph_t)16;
    if (dependencies) *dependencies = 0;
    return OK;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return OK; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *all, size_t *how_many) { *how_many = nodes; return OK; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    *exec = (cudaGraphExec_t)16;
    return OK;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    *exec = (cudaGraphExec_t)16;
    return OK;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    pthread_mutex_lock(&lock);
    counts[GRAPHS]++;
    pthread_mutex_unlock(&lock);
    return OK;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return OK; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return OK; }
