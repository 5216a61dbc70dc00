"""The schemas of the torch operators. Nothing is implemented here, so that every other file of the operators can import it."""

from __future__ import annotations

import torch

library = torch.library.Library("tvm_orient", "DEF")
for _schema in (
    "conv(Tensor x, Tensor weight, str taps, int[2] stride, str padding_mode) -> Tensor",
    "conv_dx(Tensor dy, Tensor weight, str taps, SymInt height, SymInt width, int[2] stride, str padding_mode) -> Tensor",
    "conv_dw(Tensor x, Tensor dy, str taps, int[2] stride, str padding_mode) -> Tensor",
    "conv_epilogue(Tensor x, Tensor weight, Tensor? bias, str activation, str taps, int[2] stride, str padding_mode) -> Tensor",
):
    library.define(_schema, tags=(torch.Tag.needs_exact_strides,))  # strides choose the layout, of the kernel and of the result

conv = torch.ops.tvm_orient.conv.default
conv_dx = torch.ops.tvm_orient.conv_dx.default
conv_dw = torch.ops.tvm_orient.conv_dw.default
conv_epilogue = torch.ops.tvm_orient.conv_epilogue.default
