"""Loaded kernels: which one answers a call, how it is loaded and called. The one place where torch and tvm-ffi meet."""
