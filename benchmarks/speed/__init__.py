"""Time kernels, calls, compiling and tuning on this machine."""
