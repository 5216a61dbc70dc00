"""Machine code, what it is and does: read from a cubin, followed for its addresses, or executed with values, all without a GPU."""
