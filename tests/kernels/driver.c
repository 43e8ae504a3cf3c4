/* Plays libcuda for tests/kernels.rs: one GPU, described by environment variables; CUresult codes where something is
   to fail. */
#include <stdlib.h>
#include <string.h>

static int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text ? atoi(text) : otherwise;
}

int cuDriverGetVersion(int* version) { *version = setting("FAKE_RELEASE", 13000); return 0; }
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
  /* Compute capability, major and minor; whether there are memory pools. */
  *value = attribute == 75 ? setting("FAKE_MAJOR", 9) : attribute == 76 ? setting("FAKE_MINOR", 0) : 0;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  (void)device;
  *context = (void*)16;
  return setting("FAKE_CONTEXT", 0);
}
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
int cuCtxSetCurrent(void* context) { (void)context; return 0; }
int cuCtxGetCurrent(void** context) { *context = (void*)16; return 0; }
int cuModuleLoadData(void** module, const void* image) {
  *module = (void*)32;
  /* The first word of a fatbin. */
  return setting("FAKE_LOAD", *(const unsigned*)image == 0xBA55ED50u && (size_t)image % 16 == 0 ? 0 : 200);
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  (void)module;
  (void)name;
  *function = (void*)48;
  return setting("FAKE_FUNCTION", 0);
}
int cuModuleUnload(void* module) { (void)module; return 0; }
int cuGetErrorName(int code, const char** name) { (void)code; *name = "CUDA_ERROR_BY_DESIGN"; return 0; }
int cuGetErrorString(int code, const char** text) { (void)code; *text = "by design"; return 0; }
