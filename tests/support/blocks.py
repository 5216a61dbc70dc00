"""Generated CUDA source run on the CPU, block by block, with real barriers and shuffles.

Each CUDA thread is a fiber that runs until it meets a barrier or a shuffle. Threads run in ascending or in descending order: a
missing barrier gives different results, or NaN from shared memory that nobody has written. Also found: barriers that not all
threads reach, writes past a shared buffer, and vector accesses that are not aligned.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tvm_orient.compiler import library as compiler_library
from tvm_orient.problem.device import Device

DEFINITION = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\((\d+)\) )?(\w+)\(([^)]*)\) \{')
_SHARED = re.compile(r"__shared__ (?:alignas\(\d+\) )?(float|half|nv_bfloat16) (\w+)\[(\d+)\];")
_TYPE = re.compile(r"(\w+)\* __restrict__")
_WORD = re.compile(r"[A-Za-z_]\w*")
_WALL = 64
_FAULTS = {
    1: "a barrier that only some threads of a block reach",
    2: "a write past the end of a shared buffer",
    3: "a vector access that is not aligned",
    4: "a shuffle that only some threads of a warp reach",
}

_PRELUDE = r"""
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

_KERNEL = """
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


@dataclass(frozen=True)
class Launch:
    """Of one kernel: blocks, threads along x and y, the bound in its source, names of its buffers in order."""

    grid: int
    across: int
    down: int
    bound: int
    names: tuple[str, ...]


class Blocks:
    """Every kernel of a CUDA module scheduled for a fixed batch, compiled for the CPU with barriers and shuffles."""

    def __init__(self, module: Any, device: Device, source: str | None = None) -> None:
        self.source = source or compiler_library.cuda_source(module, device)
        self.launches: list[Launch] = []
        texts, sizes = [_PRELUDE], _sizes(module)
        matches = list(DEFINITION.finditer(self.source))
        assert len(matches) == len(sizes), f"{len(sizes)} nests became {len(matches)} kernels"
        for index, match in enumerate(matches):
            names = tuple(part.split()[-1].removesuffix("_ptr") for part in match[3].split(","))
            texts.append(_kernel(index, match[3], body_of(self.source, match.end())))
            self.launches.append(Launch(*sizes[index], int(match[1] or 1024), names))
        with tempfile.TemporaryDirectory() as folder:
            text, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            text.write_text("\n".join(texts))
            command = ["g++", "-std=c++17", "-O0", "-w", "-shared", "-fPIC", "-o", str(library), str(text)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:2000]
            self.library = ctypes.CDLL(str(library))

    def __call__(self, *tensors: Tensor, names: tuple[str, ...], backwards: bool = False) -> None:
        """Runs the kernels one after the other; tensors are bound to the parameters by name."""
        by_name = dict(zip(names, tensors, strict=True))
        for index, launch in enumerate(self.launches):
            assert set(launch.names) <= set(names), f"kernel {index} wants {', '.join(set(launch.names) - set(names))}, which no caller gives"
            given = (ctypes.c_void_p * 16)(*(by_name[name].data_ptr() for name in launch.names))
            fault = self.library[f"run{index}"](launch.grid, launch.across, launch.across * launch.down, int(backwards), given)
            assert fault == 0, f"kernel {index}: {_FAULTS[fault]}"


def _kernel(index: int, params: str, body: str) -> str:
    """C++ of one kernel: its shared buffers stand outside, between walls, and are poisoned before each block."""
    buffers = _SHARED.findall(body)
    body = _SHARED.sub("", body)
    assert "__shared__" not in body, "a shared buffer of another form than the emulation knows"
    rooms = [f"static {t} {n}_room[{int(s) + 2 * _WALL}] __attribute__((aligned(256))); static {t}* const {n} = {n}_room + {_WALL};" for t, n, s in buffers]
    walls = [f"wall<{'unsigned' if t == 'float' else 'uint16_t'}>({n} - {_WALL}, {s}, check);" for t, n, s in buffers]
    arguments = [f"({t}*)arguments[{i}]" for i, t in enumerate(_TYPE.findall(params))]
    return _KERNEL % {
        "index": index, "params": params, "body": body, "shared": "\n".join(rooms), "walls": " ".join(walls), "arguments": ", ".join(arguments),
    }  # fmt: skip


def _sizes(module: Any) -> list[tuple[int, int, int]]:
    """(blocks, threads along x, threads along y) of every nest of a scheduled module, as its text says."""
    script = module.script()
    starts = list(re.finditer(r'in T\.thread_binding\((\d+), thread="blockIdx\.x"\)', script))
    found = []
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        nest = script[start.end() : after.start() if after else None]
        across, down = (max([1, *(int(v) for v in re.findall(rf'T\.thread_binding\((\d+), thread="threadIdx\.{axis}"\)', nest))]) for axis in "xy")
        found.append((int(start[1]), across, down))
    return found


def body_of(source: str, start: int) -> str:
    """The text from just after an opening brace to just before the one that closes it."""
    depth, i = 1, start
    while depth:
        depth += {"{": 1, "}": -1}.get(source[i], 0)
        i += 1
    return source[start : i - 1]


# ---- what the text of a kernel shows ------------------------------------------------------------


def launches(source: str) -> list[tuple[str, int]]:
    """(name, launch bound) of every kernel that a source defines."""
    return [(name, int(bound or 1024)) for bound, name, _ in DEFINITION.findall(source)]


def walk(body: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every line of a kernel with the headers (if, else, for) that it stands under."""
    headers: list[str] = []
    for raw in body.splitlines():
        text = raw.strip()
        closed = headers.pop() if text.startswith("}") else ""
        yield tuple(headers), text
        if text.endswith("{"):
            headers.append(f"{closed} {text}" if text.startswith("} else") else text)


def thread_dependent(body: str) -> set[str]:
    """Names that may differ between the threads of a block: computed from threadIdx, or set where threads have parted."""
    names, before = {"threadIdx"}, 0
    while len(names) > before:
        before = len(names)
        for headers, text in walk(body):
            assigned = re.match(r"(?:const )?(?:[\w*]+ )?(\w+)(?:\[.*?\])? = (.*)", text)
            if assigned and any(mentions(part, names) for part in (*headers, assigned[2])):
                names.add(assigned[1])
    return names


def mentions(text: str, names: set[str]) -> bool:
    return not names.isdisjoint(_WORD.findall(text))


def divergent(source: str) -> list[str]:
    """Barriers, and jumps that skip barriers, under a condition that the threads of a block need not agree on."""
    found = []
    for start in DEFINITION.finditer(source):
        body = body_of(source, start.end())
        names = thread_dependent(body)
        for headers, text in walk(body):
            if re.search(r"__syncthreads|\b(return|break|continue|goto)\b", text) and any(mentions(header, names) for header in headers):
                found.append(" > ".join([*headers, text]))
    return found
