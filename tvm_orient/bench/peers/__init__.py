"""Peers: the ways in which PyTorch alone computes the same function, one file for each, and the registry of all."""
