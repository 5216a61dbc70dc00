"""The predicated load that generated CUDA source calls (`batches`, `predicated`): zero where the address is outside, and no branch."""

from __future__ import annotations

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
#endif
"""


def declared(source: str) -> str:
    """The source with the load, whether or not it is called: several sources are compiled as one."""
    head, mark, rest = source.partition('extern "C"')
    return head + _HELPER + mark + rest
