"""Templates for CUDA."""
