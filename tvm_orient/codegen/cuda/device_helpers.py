"""Declares the predicated load and store that generated CUDA source calls (`batches`, `predicated_loads`): no branch; a load from outside gives zero.

Where nvcc makes a branch of a test it moves loads from before it to behind it, and they wait for memory one after the other.
"""

from __future__ import annotations

from .. import names
from .rewritten import Rewritten

_HELPER = """
template <class T> __device__ __forceinline__ T tvm_orient_load(const void* from, bool inside);
#if defined(__CUDACC__)
template <> __device__ __forceinline__ float tvm_orient_load<float>(const void* from, bool inside) {
  float value;
  asm("{ .reg .pred p; setp.ne.b32 p, %2, 0; mov.b32 %0, 0; @p ld.global.nc.b32 %0, [%1]; }" : "=f"(value) : "l"(from), "r"((int)inside));
  return value;
}
template <> __device__ __forceinline__ unsigned short tvm_orient_load<unsigned short>(const void* from, bool inside) {
  unsigned short value;
  asm("{ .reg .pred p; setp.ne.b32 p, %2, 0; mov.b16 %0, 0; @p ld.global.nc.b16 %0, [%1]; }" : "=h"(value) : "l"(from), "r"((int)inside));
  return value;
}
template <> __device__ __forceinline__ unsigned tvm_orient_load<unsigned>(const void* from, bool inside) {
  unsigned value;
  asm("{ .reg .pred p; setp.ne.b32 p, %2, 0; mov.b32 %0, 0; @p ld.global.nc.b32 %0, [%1]; }" : "=r"(value) : "l"(from), "r"((int)inside));
  return value;
}
template <> __device__ __forceinline__ uint2 tvm_orient_load<uint2>(const void* from, bool inside) {
  uint2 value;
  asm("{ .reg .pred p; setp.ne.b32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.nc.v2.b32 {%0, %1}, [%2]; }"
      : "=r"(value.x), "=r"(value.y) : "l"(from), "r"((int)inside));
  return value;
}
__device__ __forceinline__ void tvm_orient_store(float* to, float value, bool inside) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p st.shared.f32 [%0], %1; }"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "f"(value), "r"((int)inside) : "memory");
}
__device__ __forceinline__ void tvm_orient_store(float* to, float2 value, bool inside) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0; @p st.shared.v2.f32 [%0], {%1, %2}; }"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "f"(value.x), "f"(value.y), "r"((int)inside) : "memory");
}
__device__ __forceinline__ void tvm_orient_store(float* to, float4 value, bool inside) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0; @p st.shared.v4.f32 [%0], {%1, %2, %3, %4}; }"
      :: "r"((unsigned)__cvta_generic_to_shared(to)), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"((int)inside) : "memory");
}
#endif
"""


def declared(source: str) -> Rewritten:
    """Returns the source with both functions before its first kernel, whether or not they are called: several sources are compiled as one."""
    head, mark, rest = source.partition(names.KERNEL_MARK)
    return Rewritten(head + _HELPER + mark + rest, int(mark != ""))
