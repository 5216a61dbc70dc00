"""What PyTorch alone offers for the same function: one file for each way, and the registry of all."""
