"""Rewrites of CUDA source: what TVM's code generator cannot say, in the order that `passes` gives."""
