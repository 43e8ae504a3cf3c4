/* Plays libcuda: FAKE_COUNT GPUs alike, described by environment variables; CUresult codes where something is to fail.
   Streams, events and memory belong to the context that was current when they were made, and are refused in another. With
   FAKE_EMULATOR, the path of the emulated kernels, it has memory and runs launches; everything is done when a call
   returns, but for launches that a stream records. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAILED = 999, OUT_OF_MEMORY = 2, INVALID = 1, NOT_READY = 600, MOST_PARAMETERS = 32 };

static int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text ? atoi(text) : otherwise;
}

/* Whether the list of words in the environment variable `name`, divided by commas, holds `word`. */
static int listed(const char* name, const char* word) {
  const char* at = getenv(name);
  const size_t length = word ? strlen(word) : 0;
  while (at && length) {
    if (!strncmp(at, word, length) && (at[length] == ',' || !at[length])) return 1;
    at = strchr(at, ',');
    if (at) at++;
  }
  return 0;
}

/* ---- the device */

/* The first call of every program: it crashes or hangs where tools/gpu_check is in a stage that FAKE_CRASH_STAGE or
   FAKE_HANG_STAGE names. */
int cuDriverGetVersion(int* version) {
  const char* stage = getenv("LENSMITH_CHECK_STAGE");
  if (listed("FAKE_CRASH_STAGE", stage)) abort();
  while (listed("FAKE_HANG_STAGE", stage)) pause();
  *version = setting("FAKE_RELEASE", 13000);
  return 0;
}
int cuInit(unsigned flags) { (void)flags; return setting("FAKE_INIT", 0); }
int cuDeviceGetCount(int* count) { *count = setting("FAKE_COUNT", 1); return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char* name, int length, int device) {
  (void)device;
  strncpy(name, "Imaginary GPU", (size_t)length);
  return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { (void)device; *bytes = (size_t)24 << 30; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case 75: *value = setting("FAKE_MAJOR", 9); break;
    case 76: *value = setting("FAKE_MINOR", 0); break;
    case 16: *value = 2; break;      /* multiprocessors */
    case 97: *value = 232448; break; /* shared memory of a block */
    default: *value = 0;             /* no memory pools, among others */
  }
  return 0;
}
static __thread char* current;

/* Contexts are 16, 17 and so on, by device. */
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (char*)16 + device;
  return device == setting("FAKE_CONTEXT_OF", device) ? setting("FAKE_CONTEXT", 0) : 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
int cuCtxSetCurrent(void* context) { current = context; return 0; }
int cuCtxGetCurrent(void** context) { *context = current; return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuGetErrorName(int code, const char** name) { (void)code; *name = "CUDA_ERROR_BY_DESIGN"; return 0; }
int cuGetErrorString(int code, const char** text) { (void)code; *text = "by design"; return 0; }

/* ---- modules: a function is its own name */

int cuModuleLoadData(void** module, const void* image) {
  *module = (void*)32;
  /* The first word of a fatbin. */
  return setting("FAKE_LOAD", *(const unsigned*)image == 0xBA55ED50u && (size_t)image % 16 == 0 ? 0 : 200);
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  (void)module;
  *function = strdup(name);
  return setting("FAKE_FUNCTION", 0);
}
int cuModuleUnload(void* module) { (void)module; return 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) {
  (void)function;
  /* 8: dynamic shared memory that a launch may ask for. */
  return attribute == 8 && value == 232448 ? setting("FAKE_ATTRIBUTE", 0) : INVALID;
}
/* Multiprocessors have 228 KiB of shared memory, of which a block takes one more than it asks for. */
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t shared) {
  (void)function;
  if (threads < 1 || threads > 1024 || shared > 232448) return INVALID;
  *blocks = (int)((228u << 10) / (shared + 1024));
  if (*blocks > 2048 / threads) *blocks = 2048 / threads;
  return 0;
}

/* ---- streams, events and graphs: what they are */

struct launch {
  const char* kernel;
  unsigned grid[3], block[3];
  size_t shared;
  void* arguments[MOST_PARAMETERS];
  unsigned count;
  struct launch* next;
};
struct graph {
  struct launch *first, **last;
};
struct stream {
  struct graph* recording;
  char* owner;
};

/* Whether a stream or an event is one of the current context. */
static int usable(const void* stream) { return stream && ((const struct stream*)stream)->owner == current; }

/* ---- the emulator behind it */

static void* symbol(const char* name) {
  static void* library;
  const char* path = getenv("FAKE_EMULATOR");
  if (!library && path) library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  return library ? dlsym(library, name) : NULL;
}

/* Allocations, newest first; a few hundred at most. */
struct block {
  char *at, *owner;
  size_t bytes;
  struct block* next;
};
static struct block* blocks;
static size_t used;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;

/* Whether an address in somebody's memory is in that of the current context. */
static int ours(const void* at) {
  const struct block* b;
  int found = 1;
  pthread_mutex_lock(&held);
  for (b = blocks; b; b = b->next)
    if ((const char*)at >= b->at && (const char*)at < b->at + b->bytes) found = b->owner == current;
  pthread_mutex_unlock(&held);
  return found;
}

int cuMemAlloc_v2(void** at, size_t bytes) {
  void* (*allocate)(size_t, const char*) = (void* (*)(size_t, const char*))symbol("emulation_malloc");
  struct block* b;
  if (!allocate) return FAILED;
  if (!current) return INVALID;
  pthread_mutex_lock(&held);
  if (used + bytes > (size_t)setting("FAKE_MEMORY", 1 << 30)) {
    pthread_mutex_unlock(&held);
    return OUT_OF_MEMORY;
  }
  *at = allocate(bytes, "memory");
  used += bytes;
  b = malloc(sizeof *b);
  b->at = *at;
  b->owner = current;
  b->bytes = bytes;
  b->next = blocks;
  blocks = b;
  pthread_mutex_unlock(&held);
  return 0;
}
int cuMemFree_v2(void* at) {
  int (*release)(void*) = (int (*)(void*))symbol("emulation_free");
  struct block **b, *gone;
  int status;
  if (!release || !ours(at)) return INVALID;
  pthread_mutex_lock(&held);
  for (b = &blocks; *b && (*b)->at != (char*)at; b = &(*b)->next) {}
  gone = *b;
  if (gone) *b = gone->next;
  free(gone);
  status = gone && !release(at) ? 0 : INVALID;
  pthread_mutex_unlock(&held);
  return status;
}
int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) { *free_bytes = 1 << 20; *total = 1 << 30; return 0; }
int cuMemHostAlloc(void** at, size_t bytes, unsigned flags) { (void)flags; *at = malloc(bytes); return *at ? 0 : OUT_OF_MEMORY; }
int cuMemFreeHost(void* at) { free(at); return 0; }

static int copy(const char* how, void* to, const void* from, size_t bytes) {
  int (*run)(void*, const void*, size_t) = (int (*)(void*, const void*, size_t))symbol(how);
  return run && !run(to, from, bytes) ? 0 : INVALID;
}
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
  return usable(stream) && ours(to) ? copy("emulation_copy_in", to, from, bytes) : INVALID;
}
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
  return usable(stream) && ours(from) ? copy("emulation_copy_out", to, from, bytes) : INVALID;
}
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
  void* between = malloc(bytes);
  int status = usable(stream) && ours(to) && ours(from) ? copy("emulation_copy_out", between, from, bytes) : INVALID;
  if (!status) status = copy("emulation_copy_in", to, between, bytes);
  free(between);
  return status;
}
int cuMemsetD8Async(void* at, unsigned char value, size_t bytes, void* stream) {
  void* block = malloc(bytes);
  int status;
  memset(block, value, bytes);
  status = usable(stream) && ours(at) ? copy("emulation_copy_in", at, block, bytes) : INVALID;
  free(block);
  return status;
}

/* ---- streams, events and graphs: the calls */

/* An event is a stream on which nothing is launched. */
static int create(void** made) {
  struct stream* s = calloc(1, sizeof *s);
  s->owner = current;
  *made = s;
  return current ? 0 : INVALID;
}
static int destroy(void* made) {
  if (!usable(made)) return INVALID;
  free(made);
  return 0;
}
int cuStreamCreate(void** stream, unsigned flags) { (void)flags; return create(stream); }
int cuStreamDestroy_v2(void* stream) { return destroy(stream); }
int cuStreamSynchronize(void* stream) { return usable(stream) ? 0 : INVALID; }
int cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
  (void)flags;
  return usable(stream) && usable(event) ? 0 : INVALID;
}
int cuEventCreate(void** event, unsigned flags) { (void)flags; return create(event); }
int cuEventRecord(void* event, void* stream) { return usable(stream) && usable(event) ? 0 : INVALID; }
int cuEventSynchronize(void* event) { return event ? 0 : INVALID; }
int cuEventDestroy_v2(void* event) { return destroy(event); }

static int run(const struct launch* l) {
  static const int plain[3] = {0, 0, 0};
  char message[2048] = "";
  int (*go)(const char*, const unsigned*, const unsigned*, size_t, void* const*, unsigned, const int*,
            unsigned long long, char*, size_t) = symbol("emulation_launch");
  if (!go) return FAILED;
  if (go(l->kernel, l->grid, l->block, l->shared, l->arguments, l->count, plain, 0, message, sizeof message)) {
    fprintf(stderr, "%s\n", message);
    return FAILED;
  }
  return 0;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void** extra) {
  unsigned (*parameters)(const char*, size_t*, unsigned) =
      (unsigned (*)(const char*, size_t*, unsigned))symbol("emulation_parameters");
  size_t sizes[MOST_PARAMETERS];
  struct launch l = {function, {gx, gy, gz}, {bx, by, bz}, shared, {0}, 0, NULL};
  unsigned i;
  size_t word;
  if (listed("FAKE_CRASH_KERNEL", function)) abort();
  if (!parameters || !usable(stream) || extra) return INVALID;
  l.count = parameters(function, sizes, MOST_PARAMETERS);
  if (!l.count || l.count > MOST_PARAMETERS) return INVALID;
  for (i = 0; i < l.count; i++)
    for (word = 0; word + sizeof(void*) <= sizes[i]; word += sizeof(void*)) {
      const void* at;
      memcpy(&at, (const char*)arguments[i] + word, sizeof at);
      if (!ours(at)) return INVALID;
    }
  memcpy(l.arguments, arguments, l.count * sizeof(void*));
  if (!((struct stream*)stream)->recording) return run(&l);
  struct graph* g = ((struct stream*)stream)->recording;
  struct launch* kept = malloc(sizeof l);
  *kept = l;
  for (i = 0; i < l.count; i++) {
    kept->arguments[i] = malloc(sizes[i]);
    memcpy(kept->arguments[i], arguments[i], sizes[i]);
  }
  *g->last = kept;
  g->last = &kept->next;
  return 0;
}

int cuStreamBeginCapture_v2(void* stream, int mode) {
  struct graph* g = calloc(1, sizeof *g);
  (void)mode;
  g->last = &g->first;
  ((struct stream*)stream)->recording = g;
  return 0;
}
int cuStreamEndCapture(void* stream, void** graph) {
  *graph = ((struct stream*)stream)->recording;
  ((struct stream*)stream)->recording = NULL;
  return *graph ? 0 : INVALID;
}
/* What was instantiated keeps the launches; the graph itself may go. */
int cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long flags) {
  (void)flags;
  *made = graph;
  return 0;
}
int cuGraphDestroy(void* graph) { (void)graph; return 0; }
int cuGraphLaunch(void* graph, void* stream) {
  const struct launch* l = ((struct graph*)graph)->first;
  int status = usable(stream) ? 0 : INVALID;
  for (; l && !status; l = l->next) status = run(l);
  return status;
}
int cuGraphExecDestroy(void* graph) {
  struct launch* l = ((struct graph*)graph)->first;
  while (l) {
    struct launch* next = l->next;
    unsigned i;
    for (i = 0; i < l->count; i++) free(l->arguments[i]);
    free(l);
    l = next;
  }
  free(graph);
  return 0;
}
