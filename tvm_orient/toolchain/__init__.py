"""The programs that kernels are made with: TVM behind its version guard, NVRTC, torch's threads, versions, and processes that answer questions."""
