"""How the operators are registered: schemas, fakes, opcheck, and modes that listen below autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.helpers import OPS, line
from tests.support.operators import THREE, arguments
from tvm_orient import ops
from tvm_orient.problem.taps import Taps

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, grad: bool) -> None:
    given = arguments(op, line(0, 67.5, 135, k=7), (2, 1), "zeros", (8, 10), grad)
    assert torch.library.opcheck(getattr(ops, op), given, test_utils=UTILITIES) == dict.fromkeys(UTILITIES, "SUCCESS")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2)])
def test_meta_has_the_shape_and_strides_of_the_result(op: str, stride: tuple[int, int]) -> None:
    given = arguments(op, line(45, k=7), stride, grad=False)
    real = getattr(ops, op)(*given)
    meta = getattr(ops, op)(*(a.to("meta") if isinstance(a, Tensor) else a for a in given))
    assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)


def test_the_geometry_is_part_of_the_schema() -> None:
    assert str(ops.conv._schema) == "tvm_orient::conv(Tensor x, Tensor weight, str taps, int[2] stride, str padding_mode) -> Tensor"
    assert ops.conv_dx._schema.arguments[3].name == "height"


def test_modes_see_calls_like_the_one_before() -> None:
    x, w, key = torch.randn(2, 6, 8, 9), torch.randn(6, 5), Taps.oriented(THREE, 5).key
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    for _ in range(3):
        ops.conv(x, w, key, [1, 1], "zeros")
    with Watch():
        ops.conv(x, w, key, [1, 1], "zeros")
    assert seen == [ops.conv]


@pytest.mark.parametrize("grad", [True, False])
def test_modes_see_the_operators(grad: bool) -> None:
    """Where something else listens below autograd, an op is dispatched to it, not run past it."""
    seen = []

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    for op in OPS:
        given = arguments(op, line(0, 45, k=5), grad=grad)
        want = getattr(ops, op)(*given)
        with Listener():
            got = getattr(ops, op)(*given)
        assert seen.count(getattr(ops, op)) == 1
        assert got.requires_grad is grad
        assert torch.equal(got, want)
