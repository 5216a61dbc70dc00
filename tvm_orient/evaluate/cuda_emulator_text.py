"""The C++ that stands around a kernel where the block emulator runs it: CUDA's types and functions, a fiber for each thread, and walls.

It is a text of its own because it is another language; `cuda_emulator` puts it together with a kernel and compiles it.
"""

from __future__ import annotations

PRELUDE = r"""
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <vector>
struct Index { int x, y, z; };
static Index threadIdx, blockIdx;
static int fault;
static inline void aligned(const void* p, int bytes) { if ((uintptr_t)p % bytes) fault = 3; }
static inline float word(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t bits_of(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
static inline uint16_t bfloat_of(float f) {  // to nearest, ties to even
  uint32_t bits = bits_of(f);
  return f != f ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline float half_value(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return word(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  return word(sign | bits_of(word(rest << 13) * 0x1p112f));  // by the exponents' distance, subnormals included
}
static inline uint16_t half_of(float f) {  // to nearest, ties to even
  uint32_t sign = bits_of(f) >> 16 & 0x8000;
  float size = fabsf(f);
  if (f != f) return 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | (uint16_t)nearbyintf(size * 0x1p24f);
  uint32_t bits = bits_of(size);
  return sign | (bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13;
}
struct float2 { float x, y; float2() {} float2(float a, float b) : x(a), y(b) {}
  float2(const float2& o) { aligned(&o, 8); x = o.x; y = o.y; }
  float2& operator=(const float2& o) { aligned(&o, 8); aligned(this, 8); x = o.x; y = o.y; return *this; } } __attribute__((aligned(8)));
struct float4 { float x, y, z, w; float4() {} float4(float a, float b, float c, float d) : x(a), y(b), z(c), w(d) {}
  float4(const float4& o) { aligned(&o, 16); x = o.x; y = o.y; z = o.z; w = o.w; }
  float4& operator=(const float4& o) { aligned(&o, 16); aligned(this, 16); x = o.x; y = o.y; z = o.z; w = o.w; return *this; } } __attribute__((aligned(16)));
static inline float2 make_float2(float a, float b) { return float2(a, b); }
static inline float4 make_float4(float a, float b, float c, float d) { return float4(a, b, c, d); }
struct half { uint16_t bits; half() {} half(float f) : bits(half_of(f)) {} operator float() const { return half_value(bits); } };
struct nv_bfloat16 { uint16_t bits; nv_bfloat16() {} nv_bfloat16(float f) : bits(bfloat_of(f)) {}
  operator float() const { return word((uint32_t)bits << 16); } };
static inline half __float2half_rn(float f) { return half(f); }
static inline nv_bfloat16 __float2bfloat16_rn(float f) { return nv_bfloat16(f); }
template <class T> struct alignas(4) pair_of { T x, y; pair_of() {}
  pair_of(const pair_of& o) { aligned(&o, 4); x = o.x; y = o.y; }
  pair_of& operator=(const pair_of& o) { aligned(&o, 4); aligned(this, 4); x = o.x; y = o.y; return *this; } };
template <class T> struct alignas(8) four_of { T x, y, z, w; four_of() {}
  four_of(const four_of& o) { aligned(&o, 8); x = o.x; y = o.y; z = o.z; w = o.w; }
  four_of& operator=(const four_of& o) { aligned(&o, 8); aligned(this, 8); x = o.x; y = o.y; z = o.z; w = o.w; return *this; } };
typedef pair_of<half> half2; typedef pair_of<nv_bfloat16> nv_bfloat162;
typedef four_of<half> half4; typedef four_of<nv_bfloat16> nv_bfloat164;
template <class T> static inline four_of<T> of_four(T x, T y, T z, T w) { four_of<T> v; v.x = x; v.y = y; v.z = z; v.w = w; return v; }
static inline half4 make_half4(half x, half y, half z, half w) { return of_four(x, y, z, w); }
static inline nv_bfloat164 make_nv_bfloat164(nv_bfloat16 x, nv_bfloat16 y, nv_bfloat16 z, nv_bfloat16 w) { return of_four(x, y, z, w); }
struct alignas(8) uint2 { unsigned x, y; };
template <class T> static T tvm_orient_load(const void* from, bool inside) {
  T value = {};
  if (inside) { aligned(from, sizeof(T)); memcpy(&value, from, sizeof(T)); }
  return value;
}
template <int PART, class T> static float tvm_orient_value(const T* four) { aligned(four, 8); return four[PART]; }
template <class T> static void tvm_orient_store(float* to, T value, bool inside) {
  if (inside) { aligned(to, sizeof(T)); memcpy(to, &value, sizeof(T)); }
}
template <class A, class B> static inline auto min(A a, B b) { return a < b ? a : b; }
template <class A, class B> static inline auto max(A a, B b) { return a > b ? a : b; }
#define __global__
#define __device__
#define __restrict__
#define __launch_bounds__(n)
#define __forceinline__ inline

enum State { READY, BARRIER, SHUFFLE, DONE };
static const int MOST = 1024, STACK = 1 << 16, WALL = 64;
static const unsigned POISON = 0x7fc0dead;  // a NaN
static ucontext_t home, fibers[MOST];
static State state[MOST];
static float lane_values[2][MOST];
static int turn[MOST], current;
static char* stacks;

static void pause(State why) { state[current] = why; swapcontext(&fibers[current], &home); }
static void __syncthreads() { pause(BARRIER); }
static inline void __syncwarp(unsigned = 0) { pause(SHUFFLE); }
static inline unsigned __activemask() { return 0xffffffffu; }
static float shuffle(float value, int source) {
  int parity = turn[current]++ & 1;
  lane_values[parity][current] = value;
  pause(SHUFFLE);
  return lane_values[parity][source];
}
static inline float __shfl_down_sync(unsigned, float v, int delta, int width = 32) {
  int lane = current % width; return shuffle(v, lane + delta < width ? current + delta : current);
}
static inline float __shfl_sync(unsigned, float v, int lane, int width = 32) { return shuffle(v, current / width * width + lane % width); }
static inline float __shfl_xor_sync(unsigned, float v, int mask, int = 32) { return shuffle(v, current ^ mask); }

// cp.async: the copy takes place when it is waited for, so that a missing wait shows; in descending order at once, so that one that comes too early does
struct Copy {
  void* to; const void* from; int bytes; bool inside;
  void arrive() const { if (inside) memcpy(to, from, bytes); else memset(to, 0, bytes); }
};
static bool early;
static std::vector<Copy> copies[MOST];
static size_t older[MOST], sent[MOST];  // of these: before the last group, and all that are in a group
template <int BYTES> static void tvm_orient_copy(void* to, const void* from, bool inside) {
  aligned(to, BYTES);
  if (inside) aligned(from, BYTES);
  if (early) Copy{to, from, BYTES, inside}.arrive();
  else copies[current].push_back({to, from, BYTES, inside});
}
static void arrived(size_t count) {
  std::vector<Copy>& mine = copies[current];
  for (size_t i = 0; i < count; ++i) mine[i].arrive();
  mine.erase(mine.begin(), mine.begin() + count);
}
static void tvm_orient_arrived() { arrived(copies[current].size()); older[current] = sent[current] = 0; }
static void tvm_orient_sent() { older[current] = sent[current]; sent[current] = copies[current].size(); }
static int tvm_orient_hidden(int value) { return value; }
static void tvm_orient_arrived_but_last() { arrived(older[current]); sent[current] -= older[current]; older[current] = 0; }

static void (*body)();
static void entry() { body(); state[current] = DONE; swapcontext(&fibers[current], &home); }

// T: what is compared and poisoned, of the size of a value; a NaN in every type
template <class T> static void wall(void* room, int size, bool check) {
  T* words = (T*)room;
  for (int i = 0; i < size + 2 * WALL; ++i) {
    if (!check) words[i] = sizeof(T) == 4 ? POISON : POISON >> 16 | 0x7fff;
    else if ((i < WALL || i >= size + WALL) && words[i] != (sizeof(T) == 4 ? POISON : POISON >> 16 | 0x7fff)) fault = 2;
  }
}

static void run_block(int across, int threads, bool backwards) {
  early = backwards;
  if (!stacks) stacks = (char*)malloc((size_t)MOST * STACK);
  for (int t = 0; t < threads; ++t) {
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
    fibers[t].uc_stack.ss_size = STACK;
    makecontext(&fibers[t], entry, 0);
    state[t] = READY; turn[t] = 0; copies[t].clear(); older[t] = sent[t] = 0;
  }
  for (;;) {
    for (int i = 0; i < threads; ++i) {
      int t = backwards ? threads - 1 - i : i;
      if (state[t] != READY) continue;
      current = t; threadIdx.x = t % across; threadIdx.y = t / across;
      swapcontext(&home, &fibers[t]);
    }
    int counts[4] = {0, 0, 0, 0};
    bool woke = false;
    for (int warp = 0; warp < threads; warp += 32) {
      int end = min(warp + 32, threads), shuffling = 0;
      for (int t = warp; t < end; ++t) { ++counts[state[t]]; shuffling += state[t] == SHUFFLE; }
      if (shuffling == end - warp) { woke = true; for (int t = warp; t < end; ++t) state[t] = READY; }
    }
    if (woke) continue;
    if (counts[DONE] == threads) return;
    if (counts[BARRIER] != threads) { fault = counts[SHUFFLE] ? 4 : 1; return; }
    for (int t = 0; t < threads; ++t) state[t] = READY;
  }
}
"""

KERNEL = """
namespace kernel%(index)d {
%(shared)s
void device_code(%(params)s) {
%(body)s
}
static void* arguments[16];
static void entry() { device_code(%(arguments)s); }
static void walls(bool check) { %(walls)s }
}
extern "C" int run%(index)d(int grid, int across, int threads, int backwards, void** given) {
  using namespace kernel%(index)d;
  for (int i = 0; i < 16; ++i) arguments[i] = given[i];
  fault = 0; body = kernel%(index)d::entry;
  for (blockIdx.x = 0; blockIdx.x < grid && !fault; ++blockIdx.x) { walls(false); run_block(across, threads, backwards); if (!fault) walls(true); }
  return fault;
}
"""
