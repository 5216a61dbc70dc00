"""Read generated code without running it: predictions from machine code, how far they are from measured times, and hashes of the code."""
