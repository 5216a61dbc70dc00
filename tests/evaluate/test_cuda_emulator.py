"""The emulator of CUDA blocks sees what it is there for: barriers that are missing or that not all threads reach."""

from __future__ import annotations

import functools

import torch

from tests.support.cases import CUDA_CASES as CASES
from tests.support.cuda import GPU
from tests.support.helpers import (
    call,
    operands,
    spec_of,
    with_template,
)
from tvm_orient.codegen.cuda.cuda_text import divergent
from tvm_orient.codegen.names import kernel_names
from tvm_orient.compiler import library, lower
from tvm_orient.evaluate.cuda_emulator import Blocks
from tvm_orient.schedules import registry


def test_the_barrier_check_sees_what_it_should() -> None:
    kernel = 'extern "C" __global__ void __launch_bounds__(32) main_kernel(int n) {{\n{}\n}}'
    assert divergent(kernel.format("  for (int i = 0; i < n; ++i) {\n    __syncthreads();\n  }")) == []
    assert divergent(kernel.format("  if (((int)threadIdx.x) < 4) {\n    n = 1;\n  }\n  __syncthreads();")) == []
    assert len(divergent(kernel.format("  if (((int)threadIdx.x) < 4) {\n    __syncthreads();\n  }"))) == 1
    assert len(divergent(kernel.format("  if (((int)threadIdx.x) < 4) {\n    n = 1;\n  } else {\n    __syncthreads();\n  }"))) == 1
    indirect = "  int lane = (int)threadIdx.x;\n  int few = 0;\n  if (lane < 4) {\n    few = 1;\n  }\n  if (few == 0) {\n    __syncthreads();\n  }"
    assert len(divergent(kernel.format(indirect))) == 1
    assert len(divergent(kernel.format("  int c = (((int)threadIdx.x) & 1);\n  for (int i = 0; i < c; ++i) {\n    __syncthreads();\n  }"))) == 1
    assert len(divergent(kernel.format("  if (((int)threadIdx.x) < 4) {\n    return;\n  }\n  __syncthreads();"))) == 1


def test_a_missing_barrier_is_seen() -> None:
    """The emulation would notice: the same source with its barriers taken out."""
    spec = spec_of("conv", *CASES["odd"])
    choices = with_template(registry.find("shared_patch"), spec, GPU)
    assert choices is not None
    module = lower.scheduled(spec, GPU, choices, 2)
    given = operands(spec, 2)
    without = Blocks(module, GPU, library.cuda_source(module, GPU).replace("__syncthreads();", ""))
    results = [
        call(spec, functools.partial(without, names=kernel_names(spec.op, bias=spec.bias), backwards=backwards), given, None) for backwards in (False, True)
    ]
    assert not torch.equal(*results)
