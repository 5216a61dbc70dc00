"""The torch operators: schemas, calls, autograd, vmap, functorch and the checks of what users pass."""

from . import registration  # noqa: F401  whoever imports an operator finds it implemented
from .library import conv, conv_dw, conv_dx, conv_epilogue

__all__ = ["conv", "conv_dw", "conv_dx", "conv_epilogue"]
