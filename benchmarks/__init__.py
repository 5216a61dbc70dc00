"""Measure the kernels, predict them without a GPU, run them on a lent GPU, and report what came of it; each folder is a kind of work."""
