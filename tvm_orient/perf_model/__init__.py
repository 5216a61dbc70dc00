"""How fast a kernel can be: data of GPUs, the cost of a choice before anything is compiled, and the bound of a compiled kernel."""
