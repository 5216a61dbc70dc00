"""Modules over the public functions."""

from .oriented import OrientedConv2d
from .published import DepthwiseOrientedConv1d

__all__ = ["DepthwiseOrientedConv1d", "OrientedConv2d"]
