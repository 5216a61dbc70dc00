"""Templates for LLVM."""
