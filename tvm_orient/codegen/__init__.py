"""Code generation, from what is computed to how it is written: definitions of the operators in TE, rewrites of TIR, and rewrites of CUDA source."""
