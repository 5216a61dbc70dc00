"""From a spec and its choices to a scheduled module, and from there to a library, a cubin, or a prediction."""
