"""The torch.nn modules: `OrientedConv2d`, and the published module under its own name."""

from .oriented import OrientedConv2d
from .published import DepthwiseOrientedConv1d

__all__ = ["DepthwiseOrientedConv1d", "OrientedConv2d"]
