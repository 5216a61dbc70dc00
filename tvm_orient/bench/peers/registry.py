"""The registry of peers: what PyTorch alone offers for the same function, each as fast as we know how. A benchmark has to beat them.

Every peer computes exactly what `reference.run` computes, from the same operands in the same order. Weights are operands,
so a peer that needs them in another form (a dense kernel) makes it in each call, as a training step would.
"""

from __future__ import annotations

import torch

from . import published
from .base import Peer, always
from .dense import cudnn_applies, dense_applies, grouped_applies, make_cudnn, make_grouped, make_native, make_raster, native_applies
from .floors import binding
from .gather import make_gather
from .shift_add import make_shift, shift_applies

PEERS: tuple[Peer, ...] = (
    Peer("compiled_gather", "torch.compile of one gather a tap, offsets as data, one kernel for all angles", always, make_gather),
    Peer("compiled_shift", "torch.compile of shifted adds, constant offsets, padding inside the kernel", shift_applies, binding(make_shift, True)),
    Peer("compiled_shift_padded", "the same on a padded copy of the input, so that no load needs a mask", shift_applies, binding(make_shift, False)),
    Peer("grouped_raster", "F.conv2d on the taps drawn into a dense kernel, one call an angle", grouped_applies, make_grouped),
    Peer("raster", "F.conv2d on the taps drawn into dense kernels, one call", dense_applies, make_raster),
    Peer("native", "F.conv2d with a (1, K) kernel, NCHW", native_applies, binding(make_native, torch.contiguous_format)),
    Peer("native_channels_last", "the same on channels_last", native_applies, binding(make_native, torch.channels_last), torch.channels_last),
    Peer("native_cudnn", "the same on NCHW, by cuDNN whether PyTorch would choose it or not", cudnn_applies, make_cudnn),
    Peer(published.NAME, "the published kernel, compiled for each size, where it is installed", published.applies, published.make),
)
