"""The problem, frozen: which taps, in a layer of which sizes, on which device, and the stencil that an angle comes to. Knows neither torch nor TVM."""
