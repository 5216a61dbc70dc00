"""Kernels against their peers: methods, turns, rows and tables."""
