/* Plays libcuda: FAKE_COUNT GPUs alike, described by environment variables; CUresult codes where something is to fail.
   Streams, events and memory belong to the context that was current when they were made, and are refused in another. With
   FAKE_EMULATOR, the path of the emulated kernels, it has memory and runs launches; everything is done when a call
   returns, but for launches that a stream records; host memory of asynchronous copies is held to be in use until somebody
   waits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

/* ---- pinned host memory: allocated here, or registered */

struct pinned {
  char *at, *owner;
  size_t bytes;
  int registered;
  struct pinned* next;
};
static struct pinned* pins;

/* A copy from pinned memory that nobody has waited for yet, and the event behind it once there is one. */
struct pending {
  const char* from;
  size_t bytes;
  const void *stream, *event;
  struct pending* next;
};
static struct pending* copies;

static int refuse(const char* why) {
  fprintf(stderr, "stand-in for libcuda: %s\n", why);
  return INVALID;
}
static int pin(void* at, size_t bytes, int registered) {
  struct pinned* p = malloc(sizeof *p);
  *p = (struct pinned){at, current, bytes, registered, NULL};
  pthread_mutex_lock(&held);
  p->next = pins;
  pins = p;
  pthread_mutex_unlock(&held);
  return 0;
}
static int unpin(void* at, int registered) {
  struct pinned **p, *gone;
  pthread_mutex_lock(&held);
  for (p = &pins; *p && ((*p)->at != (char*)at || (*p)->registered != registered); p = &(*p)->next) {}
  gone = *p;
  if (gone) *p = gone->next;
  pthread_mutex_unlock(&held);
  if (!gone) return refuse("memory is unpinned that was not pinned");
  if (registered && msync(at, gone->bytes, MS_ASYNC)) return refuse("memory is gone and still registered");
  if (gone->owner != current) return refuse("memory is unpinned in another context");
  free(gone);
  return 0;
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned flags) {
  (void)flags;
  *at = malloc(bytes);
  return *at ? pin(*at, bytes, 0) : OUT_OF_MEMORY;
}
int cuMemFreeHost(void* at) {
  int status = unpin(at, 0);
  if (!status) free(at);
  return status;
}
/* FAKE_REGISTER: what it answers. */
int cuMemHostRegister_v2(void* at, size_t bytes, unsigned flags) {
  const struct pinned* p;
  int status = setting("FAKE_REGISTER", 0);
  (void)flags;
  if (status) return status;
  if (!current) return INVALID;
  pthread_mutex_lock(&held);
  for (p = pins; p; p = p->next)
    if ((char*)at < p->at + p->bytes && p->at < (char*)at + bytes) status = INVALID;
  pthread_mutex_unlock(&held);
  return status ? refuse("memory is registered twice") : pin(at, bytes, 1);
}
int cuMemHostUnregister(void* at) { return unpin(at, 1); }

/* Whether an asynchronous copy may use host memory: all of it pinned, in this context. Others are copied late on some
   systems. More than `most_staged` bytes must lie in registered memory. */
static int copyable(const void* at, size_t bytes, int most_staged) {
  const struct pinned* p;
  int found = 0;
  pthread_mutex_lock(&held);
  for (p = pins; p; p = p->next)
    if ((const char*)at >= p->at && (const char*)at + bytes <= p->at + p->bytes && p->owner == current)
      found = p->registered || bytes <= (size_t)most_staged ? 1 : 2;
  pthread_mutex_unlock(&held);
  if (found == 2) refuse("a copy is staged that should go to registered memory");
  if (found == 0) refuse("an asynchronous copy uses host memory that is not pinned");
  return found == 1;
}
/* Notes a copy from pinned memory; 0 if an earlier one from there may still be under way. */
static int begin(const void* from, size_t bytes, const void* stream) {
  struct pending *p, *made = malloc(sizeof *made);
  int free_of_others = 1;
  *made = (struct pending){from, bytes, stream, NULL, NULL};
  pthread_mutex_lock(&held);
  for (p = copies; p; p = p->next)
    if (made->from < p->from + p->bytes && p->from < made->from + bytes) free_of_others = 0;
  made->next = copies;
  copies = made;
  pthread_mutex_unlock(&held);
  if (!free_of_others) refuse("a pinned buffer is used again before its last copy is known to be done");
  return free_of_others;
}
/* What is done: all of a stream, or what an event stands behind. */
static void done(const void* stream, const void* event) {
  struct pending** p = &copies;
  pthread_mutex_lock(&held);
  while (*p) {
    struct pending* gone = *p;
    if (stream ? gone->stream == stream : gone->event == event) {
      *p = gone->next;
      free(gone);
    } else {
      p = &gone->next;
    }
  }
  pthread_mutex_unlock(&held);
}
static void stand_behind(const void* event, const void* stream) {
  struct pending* p;
  pthread_mutex_lock(&held);
  for (p = copies; p; p = p->next)
    if (p->stream == stream && !p->event) p->event = event;
  pthread_mutex_unlock(&held);
}

static int copy(const char* how, void* to, const void* from, size_t bytes) {
  int (*run)(void*, const void*, size_t) = (int (*)(void*, const void*, size_t))symbol(how);
  return run && !run(to, from, bytes) ? 0 : INVALID;
}
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
  if (!usable(stream) || !ours(to) || !copyable(from, bytes, 1 << 30) || !begin(from, bytes, stream)) return INVALID;
  return copy("emulation_copy_in", to, from, bytes);
}
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
  /* FAKE_MOST_STAGED: what may come by way of the driver's own pinned memory. */
  if (!usable(stream) || !ours(from) || !copyable(to, bytes, setting("FAKE_MOST_STAGED", 1 << 30))) return INVALID;
  return copy("emulation_copy_out", to, from, bytes);
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
int cuStreamSynchronize(void* stream) {
  if (!usable(stream) || ((struct stream*)stream)->recording) return refuse("a stream that records is waited for");
  done(stream, NULL);
  return 0;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
  (void)flags;
  return usable(stream) && usable(event) ? 0 : INVALID;
}
int cuEventCreate(void** event, unsigned flags) { (void)flags; return create(event); }
int cuEventRecord(void* event, void* stream) {
  if (!usable(stream) || !usable(event)) return INVALID;
  stand_behind(event, stream);
  return 0;
}
int cuEventSynchronize(void* event) {
  if (!event) return INVALID;
  done(NULL, event);
  return 0;
}
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
