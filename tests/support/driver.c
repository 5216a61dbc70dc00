/* A stand-in for libcuda.so.1 and libcudart.so.13: it claims H200s, reads the cubins that are loaded, refuses what a driver would
   refuse, runs nothing, and writes a line of JSON about each load and launch. Device memory is host memory.

   STAND_IN_LOG           the file of the lines; none where it is not set
   STAND_IN_GPUS          how many GPUs there are (1)
   STAND_IN_LOAD_FAILS    "CODE": each load of a module answers CODE
   STAND_IN_LAUNCH_FAILS  "K CODE": the K-th launch from now answers CODE; another text counts anew

   The variables are read in each call, so that a process can change them. */
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* CUresult (cuda.h); cudaError_t has the same numbers, as far as they are used here */
enum {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NO_BINARY_FOR_GPU = 209,
  INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_OUT_OF_RESOURCES = 701, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801
};
/* CUdevice_attribute (cuda.h), and what an H200 says */
static const int attributes[][2] = {
    {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152}, {10, 32}, {12, 65536}, {13, 1980000},
    {16, 132}, {38, 62914560}, {39, 2048}, {75, 9}, {76, 0}, {81, 233472}, {82, 65536}, {97, 232448},
};
enum { RESERVED = 1024 }; /* shared bytes of a block from sm_90 on that the driver keeps: sections count them, limits do not */
enum { SM = 90, MOST_THREADS = 1024, MOST_YZ = 65535, MOST_BLOCK_Z = 64, REGISTERS = 65536, SHARED = 49152, OPT_IN_SHARED = 232448 };
enum { MAX_DYNAMIC_SHARED = 8 }; /* CUfunction_attribute */
/* formats and attributes of .nv.info sections */
enum { SIZED = 4, MAX_THREADS = 0x05, PARAMETER = 0x17, REGISTER_COUNT = 0x2f };
enum { MOST_KERNELS = 64, MOST_PARAMETERS = 64, MOST_STREAMS = 64, MOST_GPUS = 8 };

typedef struct {
  char name[256];
  int parameters, sizes[MOST_PARAMETERS]; /* bytes of each */
  unsigned shared, dynamic;               /* static bytes, and dynamic bytes that it may ask for */
  unsigned threads, registers;            /* most threads of a block, registers of a thread */
} Kernel;
typedef struct {
  int count, device;
  Kernel kernels[MOST_KERNELS];
} Module;
typedef struct {
  unsigned grid[3], block[3], dynamic;
  void* stream;
  void* attributes;
  unsigned count;
} Launch; /* CUlaunchConfig */

static _Thread_local int current;
static void* streams[MOST_STREAMS];
static int stream_count, dead; /* dead: the code of a fault that ended the context, which every later call answers */

static int gpus(void) {
  const char* text = getenv("STAND_IN_GPUS");
  return text ? atoi(text) : 1;
}

/* A line of the log, put together by parts and written at once. */
static _Thread_local char text[1 << 14];
static _Thread_local size_t length;

static void say(const char* form, ...) {
  va_list rest;
  va_start(rest, form);
  int more = vsnprintf(text + length, sizeof text - length, form, rest);
  va_end(rest);
  if (more > 0 && length + (size_t)more < sizeof text) length += (size_t)more;
}

static void end_line(void) {
  const char* path = getenv("STAND_IN_LOG");
  FILE* file = path ? fopen(path, "a") : NULL;
  if (file) {
    fprintf(file, "%s\n", text);
    fclose(file);
  }
  length = 0;
}

/* ---- what a cubin holds ---------------------------------------------------------------------- */

static const char* after(const char* name, const char* prefix) {
  size_t size = strlen(prefix);
  return strncmp(name, prefix, size) ? NULL : name + size;
}

static Kernel* kernel_of(Module* module, const char* name) {
  for (int i = 0; i < module->count; i++)
    if (!strcmp(module->kernels[i].name, name)) return &module->kernels[i];
  return NULL;
}

static void read_attributes(Kernel* kernel, const unsigned char* at, const unsigned char* stop) {
  while (at + 4 <= stop) {
    unsigned size = at[0] == SIZED ? at[2] | at[3] << 8 : 0;
    uint32_t words[3] = {0};
    memcpy(words, at + 4, size < sizeof words ? size : sizeof words);
    if (at[0] == SIZED && at[1] == PARAMETER) { /* index; ordinal and offset; the size in the upper bits */
      unsigned ordinal = words[1] & 0xffff;
      if (ordinal < MOST_PARAMETERS) {
        kernel->sizes[ordinal] = (int)(words[2] >> 18);
        if ((int)ordinal >= kernel->parameters) kernel->parameters = (int)ordinal + 1;
      }
    } else if (at[0] == SIZED && at[1] == MAX_THREADS) {
      kernel->threads = words[0] * words[1] * words[2];
    }
    at += 4 + size;
  }
}

static int read_cubin(Module* module, const unsigned char* image) {
  if (memcmp(image, ELFMAG, SELFMAG)) return INVALID_IMAGE;
  const Elf64_Ehdr* file = (const Elf64_Ehdr*)image;
  if (file->e_machine != EM_CUDA) return INVALID_IMAGE;
  if ((file->e_flags & 0xff) != SM && (file->e_flags >> 8 & 0xff) != SM) return NO_BINARY_FOR_GPU;
  const Elf64_Shdr* sections = (const Elf64_Shdr*)(image + file->e_shoff);
  const char* names = (const char*)image + sections[file->e_shstrndx].sh_offset;
  unsigned by_symbol[MOST_KERNELS];
  for (int i = 0; i < file->e_shnum && module->count < MOST_KERNELS; i++) {
    const char* name = after(names + sections[i].sh_name, ".text.");
    if (!name) continue;
    by_symbol[module->count] = sections[i].sh_info & 0xffffff;
    Kernel* kernel = &module->kernels[module->count++];
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
    kernel->threads = MOST_THREADS;
  }
  for (int i = 0; i < file->e_shnum; i++) {
    const char *name = names + sections[i].sh_name, *of;
    const unsigned char *start = image + sections[i].sh_offset, *stop = start + sections[i].sh_size;
    Kernel* kernel;
    if ((of = after(name, ".nv.info.")) && (kernel = kernel_of(module, of))) read_attributes(kernel, start, stop);
    if ((of = after(name, ".nv.shared.")) && (kernel = kernel_of(module, of))) kernel->shared = (unsigned)sections[i].sh_size - RESERVED;
    if (strcmp(name, ".nv.info")) continue;
    for (unsigned size; start + 4 <= stop; start += 4 + size) {
      size = start[0] == SIZED ? start[2] | start[3] << 8 : 0;
      uint32_t pair[2];
      if (start[0] != SIZED || start[1] != REGISTER_COUNT || size < sizeof pair) continue;
      memcpy(pair, start + 4, sizeof pair);
      for (int k = 0; k < module->count; k++)
        if (by_symbol[k] == pair[0]) module->kernels[k].registers = pair[1];
    }
  }
  for (int k = 0; k < module->count; k++) module->kernels[k].dynamic = SHARED - (module->kernels[k].shared < SHARED ? module->kernels[k].shared : SHARED);
  return module->count ? SUCCESS : INVALID_IMAGE;
}

/* ---- libcuda --------------------------------------------------------------------------------- */

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : gpus() ? SUCCESS : NO_DEVICE; }
int cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = gpus(), SUCCESS; }
int cuDeviceGet(int* device, int index) { return index < gpus() ? (*device = index, SUCCESS) : INVALID_DEVICE; }

int cuDeviceGetName(char* name, int size, int device) {
  (void)device;
  return snprintf(name, (size_t)size, "NVIDIA H200"), SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  *value = 0;
  for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
    if (attributes[i][0] == attribute) *value = attributes[i][1];
  return SUCCESS;
}

/* NVRTC asks any driver that is loaded, and crashes where it has no such function. */
int cuGetExportTable(const void** table, const void* id) {
  (void)id;
  return *table = NULL, NOT_FOUND;
}

int cuTensorMapEncodeTiled(void) { return NOT_SUPPORTED; }

static const struct {
  int code;
  const char *driver, *runtime, *text; /* the names that libcuda and libcudart give */
} errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "cudaSuccess", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "cudaErrorInvalidValue", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation", "out of memory"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "cudaErrorInvalidDevice", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "cudaErrorInvalidKernelImage", "device kernel image is invalid"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "cudaErrorSymbolNotFound", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "cudaErrorLaunchFailure", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "cudaErrorNotSupported", "operation not supported"},
};

static int error(int code) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) return (int)i;
  return -1;
}

int cuGetErrorName(int code, const char** name) { return *name = error(code) < 0 ? NULL : errors[error(code)].driver, *name ? SUCCESS : INVALID_VALUE; }
int cuGetErrorString(int code, const char** said) { return *said = error(code) < 0 ? NULL : errors[error(code)].text, *said ? SUCCESS : INVALID_VALUE; }

int cuModuleLoadData(Module** made, const void* image) {
  const char* fails = getenv("STAND_IN_LOAD_FAILS");
  Module* module = calloc(1, sizeof *module);
  module->device = current;
  int answer = dead ? dead : fails && *fails ? atoi(fails) : read_cubin(module, image);
  say("{\"what\": \"load\", \"device\": %d, \"answer\": %d, \"kernels\": [", current, answer);
  for (int k = 0; k < module->count; k++) say("%s\"%s\"", k ? ", " : "", module->kernels[k].name);
  say("]}");
  end_line();
  if (answer) free(module);
  else *made = module;
  return answer;
}

int cuModuleUnload(Module* module) { return free(module), SUCCESS; }

int cuModuleGetFunction(Kernel** function, Module* module, const char* name) { return (*function = kernel_of(module, name)) ? SUCCESS : NOT_FOUND; }

int cuFuncSetAttribute(Kernel* kernel, int attribute, int value) {
  if (attribute != MAX_DYNAMIC_SHARED || value < 0 || kernel->shared + (unsigned)value > OPT_IN_SHARED) return INVALID_VALUE;
  return kernel->dynamic = (unsigned)value, SUCCESS;
}

static int failing(void) {
  static char last[64];
  static int count;
  const char* fails = getenv("STAND_IN_LAUNCH_FAILS");
  if (strcmp(last, fails ? fails : "")) {
    snprintf(last, sizeof last, "%s", fails ? fails : "");
    count = 0;
  }
  int which = 0, code = 0;
  return sscanf(last, "%d %d", &which, &code) == 2 && ++count == which ? code : SUCCESS;
}

static int known(const void* stream) {
  if ((uintptr_t)stream <= 2) return 1; /* the default one, and CU_STREAM_LEGACY and CU_STREAM_PER_THREAD */
  for (int i = 0; i < stream_count; i++)
    if (streams[i] == stream) return 1;
  return 0;
}

static int refusal(const Launch* launch, const Kernel* kernel) {
  const unsigned *grid = launch->grid, *block = launch->block, threads = block[0] * block[1] * block[2];
  if (!grid[0] || !grid[1] || !grid[2] || grid[0] > INT32_MAX || grid[1] > MOST_YZ || grid[2] > MOST_YZ) return INVALID_VALUE;
  if (!threads || threads > MOST_THREADS || block[2] > MOST_BLOCK_Z || launch->dynamic > kernel->dynamic) return INVALID_VALUE;
  unsigned warps = (threads + 31) / 32, registers = (kernel->registers + 7) / 8 * 8; /* registers are given out by eight */
  if (threads > kernel->threads || warps * 32 * registers > REGISTERS) return LAUNCH_OUT_OF_RESOURCES;
  return known(launch->stream) ? SUCCESS : INVALID_HANDLE;
}

int cuLaunchKernelEx(const Launch* launch, Kernel* kernel, void** arguments, void** extra) {
  (void)extra;
  int answer = dead ? dead : failing();
  if (!answer) answer = refusal(launch, kernel);
  if (answer == ILLEGAL_ADDRESS || answer == LAUNCH_FAILED) dead = answer;
  const unsigned *grid = launch->grid, *block = launch->block;
  say("{\"what\": \"launch\", \"device\": %d, \"answer\": %d, \"kernel\": \"%s\", ", current, answer, kernel->name);
  say("\"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], ", grid[0], grid[1], grid[2], block[0], block[1], block[2]);
  say("\"shared\": %u, \"dynamic\": %u, \"stream\": %llu, \"arguments\": [", kernel->shared, launch->dynamic, (unsigned long long)(uintptr_t)launch->stream);
  for (int i = 0; i < kernel->parameters; i++) { /* (bytes, value) */
    uint64_t value = 0;
    memcpy(&value, arguments[i], kernel->sizes[i] < 8 ? (size_t)kernel->sizes[i] : 8);
    say("%s[%d, %llu]", i ? ", " : "", kernel->sizes[i], (unsigned long long)value);
  }
  say("]}");
  end_line();
  return answer;
}

/* ---- libcudart: what TVM's runtime is linked to ------------------------------------------------ */

int cudaRuntimeGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cudaGetDeviceCount(int* count) { return *count = gpus(), SUCCESS; }
int cudaGetDevice(int* device) { return *device = current, SUCCESS; }
int cudaSetDevice(int device) { return dead ? dead : device < gpus() && device >= 0 ? (current = device, SUCCESS) : INVALID_DEVICE; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) { return cuDeviceGetAttribute(value, attribute, device); }
int cudaGetDeviceProperties(void) { return NOT_SUPPORTED; }
const char* cudaGetErrorName(int code) { return error(code) < 0 ? "unrecognized error code" : errors[error(code)].runtime; }
const char* cudaGetErrorString(int code) { return error(code) < 0 ? "unrecognized error code" : errors[error(code)].text; }
int cudaGetLastError(void) { return dead; }
int cudaPeekAtLastError(void) { return dead; }

int cudaMalloc(void** data, size_t size) { return (*data = malloc(size)) ? SUCCESS : OUT_OF_MEMORY; }
int cudaMallocHost(void** data, size_t size) { return cudaMalloc(data, size); }
int cudaFree(void* data) { return free(data), SUCCESS; }
int cudaFreeHost(void* data) { return free(data), SUCCESS; }
int cudaMemGetInfo(size_t* unused, size_t* all) { return *unused = *all = (size_t)141 << 30, SUCCESS; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) { return (void)kind, (void)stream, memcpy(to, from, size), SUCCESS; }
int cudaMemcpyPeerAsync(void) { return NOT_SUPPORTED; }

int cudaStreamCreateWithFlags(void** stream, unsigned flags) {
  (void)flags;
  if (stream_count == MOST_STREAMS) return OUT_OF_MEMORY;
  return *stream = streams[stream_count++] = malloc(1), SUCCESS;
}
int cudaStreamCreate(void** stream) { return cudaStreamCreateWithFlags(stream, 0); }
int cudaStreamDestroy(void* stream) { return known(stream) ? SUCCESS : INVALID_HANDLE; }
int cudaStreamSynchronize(void* stream) { return dead ? dead : known(stream) ? SUCCESS : INVALID_HANDLE; }
int cudaStreamWaitEvent(void) { return SUCCESS; }
int cudaStreamBeginCapture(void) { return NOT_SUPPORTED; }
int cudaStreamEndCapture(void) { return NOT_SUPPORTED; }

int cudaEventCreate(void** event) { return cudaMalloc(event, 1); }
int cudaEventDestroy(void* event) { return cudaFree(event); }
int cudaEventRecord(void) { return dead; }
int cudaEventSynchronize(void) { return dead; }
int cudaEventElapsedTime(float* milliseconds) { return *milliseconds = 1, SUCCESS; }

int cudaGraphInstantiate(void) { return NOT_SUPPORTED; }
int cudaGraphLaunch(void) { return NOT_SUPPORTED; }
int cudaGraphDestroy(void) { return NOT_SUPPORTED; }
int cudaGraphExecDestroy(void) { return NOT_SUPPORTED; }
