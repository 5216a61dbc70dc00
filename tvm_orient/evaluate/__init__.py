"""Evaluation of kernels, whether one is right and then how fast it is: the reference, its tolerance, the emulators, and timing."""
