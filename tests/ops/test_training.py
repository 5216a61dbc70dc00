"""What training code puts around a layer: several processes, checkpoints, scalers, ensembles; and what PyTorch refuses."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import tvm_orient as to
from tests.support.helpers import line

TAPS = line(0, 45, 90, k=5)
THETA = (0.0, 0.7)
REPLICAS = 2


def network() -> torch.nn.Module:
    """An oriented layer with a bias, a stride and a residual between pointwise ones, the same in every process."""
    torch.manual_seed(3)
    oriented = to.nn.OrientedConv2d(4, 5, theta=THETA, stride=2, residual=True)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), oriented, torch.nn.GELU(), torch.nn.Conv2d(4, 4, 1)).double()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 4, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def trained(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """The parameters after two steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def replica(rank: int, folder: str) -> None:
    """One of the processes of test_data_parallel: trains on its share of the batch."""
    wait = datetime.timedelta(seconds=120)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=REPLICAS, timeout=wait)
    model = DistributedDataParallel(network())  # find_unused_parameters stays off: every parameter gets a gradient
    torch.save(trained(model, images()[rank::REPLICAS]), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # destroy_process_group now and then hangs: it holds Python's lock while it joins a thread that waits for it


@pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch is built without gloo")
def test_data_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with half a batch each train as one process with the whole batch does."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    want = trained(network(), images())  # which also leaves the kernels in the cache
    spawn = torch.multiprocessing.get_context("spawn")
    replicas = [spawn.Process(target=replica, args=(rank, str(tmp_path))) for rank in range(REPLICAS)]
    try:
        for process in replicas:
            process.start()
        for process in replicas:
            process.join(120)
    finally:
        for process in replicas:
            process.kill()
    assert [process.exitcode for process in replicas] == [0] * REPLICAS
    for rank in range(REPLICAS):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(got) == len(want)
        for one, whole in zip(got, want, strict=True):
            torch.testing.assert_close(one, whole, rtol=0, atol=1e-12)


def test_theta_is_no_parameter() -> None:
    """So an optimizer, weight decay and a gradient reduction leave it alone; a state dict and broadcast_buffers have it."""
    model = network()
    assert not [name for name, _ in model.named_parameters() if "theta" in name]
    assert [name for name, _ in model.named_buffers()] == ["1.theta"]
    assert "1.theta" in model.state_dict()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    model, x = network(), images(2).requires_grad_()
    want = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    for tensor, gradient in zip([x, *model.parameters()], want, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=0, atol=1e-12)


def test_checkpointing_under_compile() -> None:
    model, x = network(), images(2).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(lambda a: checkpoint(model, a, use_reentrant=False).square().sum(), fullgraph=True, backend="aot_eager")
    (want,) = torch.autograd.grad(model(x).square().sum(), x)
    (got,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(got, want)


def test_a_gradient_scaler() -> None:
    """float16 with a loss scale: parameters and their gradients stay float32, and the step is the unscaled one."""
    model, x = network().float(), images().float()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    with torch.autocast("cpu", torch.float16):
        loss = model(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    exact = network()
    exact(images()).square().mean().backward()
    for parameter, old, other in zip(model.parameters(), before, exact.parameters(), strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32  # type: ignore[union-attr]
        torch.testing.assert_close(parameter.detach(), old - 0.1 * other.grad.float(), rtol=0.02, atol=2e-3)  # type: ignore[operator]


def test_autocast_does_not_reach_the_operators() -> None:
    x, w = images(1).float(), torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.ops.tvm_orient.conv(x, w, TAPS.key, [1, 1], "zeros").dtype == torch.float32
        assert to.tap_conv2d(x, w, TAPS).dtype == torch.bfloat16


def test_saved_tensors_hooks() -> None:
    """Operands saved for the backward pass may go elsewhere in between."""
    model, x = network(), images(2)
    with torch.autograd.graph.save_on_cpu():
        loss = model(x).square().sum()
    parameters = list(model.parameters())
    got = torch.autograd.grad(loss, parameters)
    for one, other in zip(got, torch.autograd.grad(model(x).square().sum(), parameters), strict=True):
        assert torch.equal(one, other)


def test_export_with_every_size_free(tmp_path: Path) -> None:
    module = to.nn.OrientedConv2d(4, 5, theta=THETA, stride=2).eval()
    sizes = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("height", min=4), 3: torch.export.Dim("width", min=4)}
    torch.export.save(torch.export.export(module, (torch.randn(2, 4, 9, 11),), dynamic_shapes=(sizes,)), tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for shape in ((3, 4, 14, 6), (1, 4, 7, 20)):
        x = torch.randn(shape)
        assert torch.equal(loaded(x), module(x))


# ---- torch.func ---------------------------------------------------------------------------------


def loss_of(x: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda w: (to.oriented_conv2d(x, w, THETA) ** 3).sum()


def test_jacobian_and_hessian_in_reverse_mode() -> None:
    x, w = images(2), torch.randn(4, 5, dtype=torch.float64)
    loss = loss_of(x)
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(w)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(loss, w))
    pull = torch.func.vjp(loss, w)[1]
    torch.testing.assert_close(pull(torch.tensor(2.0, dtype=torch.float64))[0], 2 * torch.func.grad(loss)(w))


def test_an_ensemble_of_one_geometry() -> None:
    modules = [to.nn.OrientedConv2d(4, 5, theta=THETA) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(modules)  # type: ignore[arg-type]
    x = torch.randn(2, 4, 7, 8)
    got = torch.vmap(lambda p, b: torch.func.functional_call(modules[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(got, torch.stack([module(x) for module in modules]))


def test_functional_call_takes_the_angles_that_it_lends() -> None:
    """For that call; what a transform maps over has no numbers to read, and changes nothing."""
    module, x = to.nn.OrientedConv2d(4, 5, theta=THETA), torch.randn(2, 4, 7, 8)
    before, lent = module(x), torch.tensor([1.0, 2.0])
    assert torch.equal(torch.func.functional_call(module, {"theta": lent}, (x,)), to.oriented_conv2d(x, module.weight, lent, module.bias))
    assert torch.equal(module(x), before)
    mapped = torch.vmap(lambda theta: torch.func.functional_call(module, {"theta": theta}, (x,)))(torch.stack([lent, lent]))
    assert torch.equal(mapped, before.expand_as(mapped))


def test_vmap_and_grad_of_a_compiled_function() -> None:
    x, w = images(2), torch.randn(4, 5, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(loss_of(x), backend="aot_eager")
    torch.testing.assert_close(torch.func.grad(compiled)(w), torch.func.grad(loss_of(x))(w))


def test_a_compiled_vmap() -> None:
    x, w = torch.stack([images(2), images(2) + 1]), torch.randn(4, 5, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(torch.vmap(lambda a: to.oriented_conv2d(a, w, THETA)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), to.oriented_conv2d(x.flatten(0, 1), w, THETA).unflatten(0, (2, 2)))


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_forward_mode(activation: str | None) -> None:
    """Directional derivatives and forward over reverse; the operators are linear in each operand."""
    x, w, direction = images(1), torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)

    def layer(weight: Tensor) -> Tensor:
        return to.oriented_conv2d(x, weight, THETA, activation=activation)

    _, reverse = torch.autograd.functional.jvp(layer, w, direction)
    torch.testing.assert_close(torch.func.jvp(layer, (w,), (direction,))[1], reverse)
    with torch.autograd.forward_ad.dual_level():
        for leaf in (w.clone(), w.clone().requires_grad_()):
            dual = layer(torch.autograd.forward_ad.make_dual(leaf, direction))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, reverse)
    torch.testing.assert_close(torch.func.jacfwd(layer)(w), torch.func.jacrev(layer)(w))
    torch.testing.assert_close(torch.func.hessian(loss_of(x))(w), torch.autograd.functional.hessian(loss_of(x), w))


# ---- what is refused: a failure here means that it works now, and that docs/transforms.md is out of date ------


def test_func_grad_of_an_operator_is_refused() -> None:
    x, w = images(1), torch.randn(4, 5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda weight: torch.ops.tvm_orient.conv(x, weight, TAPS.key, [1, 1], "zeros").sum())(w)


def test_compiling_func_grad_is_refused() -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match="setup_context"):
        torch.compile(torch.func.grad(loss_of(images(1))), backend="aot_eager")(torch.randn(4, 5, dtype=torch.float64))


@pytest.mark.parametrize("ours", [True, False])
def test_second_derivatives_of_a_compiled_function_are_refused(ours: bool) -> None:
    """Of any compiled function: F.conv2d is no better."""
    x = images(1)
    f: Any = loss_of(x) if ours else lambda w: (F.conv2d(x, w[:, None, None], groups=4) ** 3).sum()
    w = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    torch._dynamo.reset()
    (gradient,) = torch.autograd.grad(torch.compile(f, backend="aot_eager", fullgraph=True)(w), w, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.square().sum(), w)
