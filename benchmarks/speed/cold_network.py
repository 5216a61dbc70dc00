"""Run one part of `cold_start` in a process of its own, and print what it measured as a line of JSON: seconds by what they are of.

    python -m benchmarks.speed.cold_network steps --network convnext-t

The networks are those whose kernels are made: ConvNeXt-T with one block a stage, since all blocks of a stage have the same kernels, and that of
`examples/digits.py`. A step is a forward and a backward pass; weights stay as they are, so that all steps must give the same gradients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

import tvm_orient as to
from tvm_orient.compiler.parts import Part, placed_parts
from tvm_orient.kernels.build import build
from tvm_orient.nn import OrientedConv2d
from tvm_orient.problem.cpus import cores
from tvm_orient.problem.device import Device, device_for
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.schedules.choices import default_choices

WIDTHS = (96, 192, 384, 768)  # channels of a stage
KERNEL_SIZE = 31  # taps
DIRECTIONS = 8
IMAGES = 4  # of a step
LAYER = (384, 56, 56)  # channels, height and width of the one layer
TIMED = 10  # steps that a median is taken of
MAX_TRAINING_S = 1800.0  # seconds after which steps do not wait for kernels any more
CLOSE = {"float32": 1e-3, "bfloat16": 5e-2}  # how far gradients of two kernels may differ, of their norm
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits.py"

Seconds = dict[str, float]
Step = Callable[[], list[Tensor]]


class Block(nn.Module):
    """A block of ConvNeXt whose depthwise convolution is oriented: then a norm and a pointwise pair."""

    def __init__(self, channels: int) -> None:
        """Makes a block of so many channels."""
        super().__init__()
        self.depthwise = OrientedConv2d(channels, KERNEL_SIZE, directions=DIRECTIONS)
        self.norm = nn.GroupNorm(1, channels)
        self.wide, self.narrow = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's result, (N, C, H, W) as x is."""
        result: Tensor = x + self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x)))))
        return result


def convnext_t() -> nn.Module:
    """Returns ConvNeXt-T for images of 224 x 224, one block a stage: planes of 56, 28, 14 and 7."""
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 7, stride=4, padding=3)]
    for before, channels in zip((0, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, channels, 2, stride=2)] if before else []
        layers.append(Block(channels))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 1000))


def digits() -> nn.Module:
    """Returns the network of `examples/digits.py`."""
    found = importlib.util.spec_from_file_location("digits", EXAMPLE)
    if found is None or found.loader is None:
        raise SystemExit(f"{EXAMPLE} cannot be loaded")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    net: nn.Module = module.Net()
    return net


# a network, the shape of its images, and the dtype of its autocast regions
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "convnext-t": (convnext_t, (IMAGES, 3, 224, 224), "float32"),
    "digits": (digits, (64, 1, 16, 16), "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its images.

    Attributes:
        net: the network.
        images: (N, C, H, W).
        dtype: of its kernels: where it is not float32, it runs in an autocast region.
    """

    net: nn.Module
    images: Tensor
    dtype: str

    @classmethod
    def of(cls, name: str, turned: bool = False) -> Case:
        """Returns the case of that name; turned has all angles turned by 90 degrees, and those beyond 180 by as much back, since lines have no direction."""
        torch.manual_seed(0)
        make, shape, dtype = NETWORKS[name]
        net = make()
        for layer in layers(net) if turned else ():
            layer.theta = layer.theta.roll(DIRECTIONS // 2)
        return cls(net, torch.randn(shape), dtype)

    def region(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context that steps run in."""
        return torch.autocast("cpu", getattr(torch, self.dtype), enabled=self.dtype != "float32")

    def step(self) -> list[Tensor]:
        """Runs forward and backward, and returns the gradients of all parameters."""
        with self.region():
            loss = self.net(self.images).float().square().mean()
        return list(torch.autograd.grad(loss, list(self.net.parameters())))


def layers(net: nn.Module) -> list[OrientedConv2d]:
    """Returns the oriented layers of a network."""
    return [one for one in net.modules() if isinstance(one, OrientedConv2d)]


def specs(case: Case) -> list[ConvSpec]:
    """Returns the problems of a network, forward and backward, each once; it is run forward for that."""
    found: list[ConvSpec] = []

    def seen(layer: OrientedConv2d, given: tuple[Tensor, ...], result: Tensor) -> None:
        plane, dtype = given[0].shape[1:], str(result.dtype).removeprefix("torch.")
        same: dict[str, Any] = {"stride": layer.stride, "dtype": dtype}
        conv = ConvSpec("conv", *plane, layer.taps, **same, bias=layer.bias is not None)
        found.extend([conv, *(dataclasses.replace(conv, op=op, bias=False) for op in ("conv_dx", "conv_dw"))])

    hooks = [layer.register_forward_hook(seen) for layer in layers(case.net)]
    with torch.no_grad(), case.region():
        case.net(case.images)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(found))


def needed(case: Case, device: Device) -> set[Part]:
    """Returns the parts that the kernels of a network are put together of."""
    return {placed.part for spec in specs(case) for placed in placed_parts(spec, default_choices(spec, device), device)}


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def check(case: Case, expected: Sequence[Tensor], got: Sequence[Tensor]) -> None:
    """Ends the program where gradients of other kernels differ by more than rounding."""
    for one, other in zip(expected, got, strict=True):
        error, norm = float((one - other).double().norm()), float(one.double().norm())
        if not error <= CLOSE[case.dtype] * norm:
            raise SystemExit(f"gradients of shape {tuple(one.shape)} differ by {error:.3g}, of a norm of {norm:.3g}: no times for these kernels")


def steps(case: Case, wanted: int) -> Seconds:
    """Measures a program that trains from an empty cache, without a pause, until all of its kernels are there.

    Args:
        case: the network.
        wanted: how many kernels it needs.
    """
    start, taken, during = time.perf_counter(), list[float](), list[float]()
    first = case.step()
    taken.append(time.perf_counter() - start)
    queue = to.compiling()
    while queue.ready + queue.failed < wanted or len(taken) < 8:
        pending = queue.pending
        taken.append(timed(case.step))
        during += [taken[-1]] if pending else []
        if time.perf_counter() - start > MAX_TRAINING_S:
            raise SystemExit(f"{queue} after {MAX_TRAINING_S:.0f} s of steps, of {wanted} kernels: are they worth their making?")
    ready = time.perf_counter() - start
    if queue.failed:
        raise SystemExit(f"{queue}: no times where kernels cannot be made")
    check(case, first, case.step())
    steady = statistics.median(timed(case.step) for _ in range(TIMED))
    found = {"first step": taken[0], "third step": taken[2], "eighth step": taken[7], "longest step while kernels are made": max(during)}
    return {**found, "until all kernels are ready, while it trains": ready, "step on kernels of its own": steady}


def pause(case: Case, wanted: int) -> Seconds:
    """Measures a program that begins to train from an empty cache, and waits for its kernels as soon as all of them are being made."""
    start, queue = time.perf_counter(), to.compiling()
    while queue.ready + queue.failed + queue.pending < wanted:
        case.step()
    queue.wait()
    return {"until all kernels are ready, while it waits": time.perf_counter() - start}


def generic(case: Case) -> Seconds:
    """Measures a step on the generic kernels, whose first step compiles them; none of its own is made."""
    case.step()
    return {"step on generic kernels": statistics.median(timed(case.step) for _ in range(TIMED))}


def warm(case: Case, what: str) -> Seconds:
    """Measures `tvm_orient.warmup`: until all kernels are loaded, compiled where they lack."""
    return {what: timed(lambda: _warmed(case))}


def _warmed(case: Case) -> None:
    with case.region():
        to.warmup(case.net, case.images)


def built(problems: Sequence[ConvSpec], target: str, what: str) -> Seconds:
    """Measures building kernels into the cache, several at once."""
    device = device_for(target)

    def all_of_them() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(lambda spec: build(spec, device), problems))

    return {what: timed(all_of_them)}


def one_layer() -> Iterator[ConvSpec]:
    """Yields the three problems of one layer."""
    taps = to.Taps.oriented(to.angles_between(DIRECTIONS), KERNEL_SIZE)
    for op in ("conv", "conv_dx", "conv_dw"):
        yield ConvSpec(op, *LAYER, taps)


def main(
    part: Annotated[str, typer.Argument(help="steps, pause, generic, warmup, warm, second or layer.")],
    network: Annotated[str, typer.Option(help=" or ".join(NETWORKS))] = "convnext-t",
    target: Annotated[str, typer.Option(help="cpu, or an arch such as sm_90a, for which kernels are built.")] = "cpu",
    kernels: Annotated[int, typer.Option(help="How many kernels the network needs.")] = 0,
    problems: Annotated[Path | None, typer.Option(help="A file of specs, one a line: what is to be built.")] = None,
) -> None:
    """Measure one part of a cold start, and print it as JSON."""
    names = {
        "warmup": "all kernels, by warmup",
        "warm": "all kernels loaded, which another process made",
        "second": "second network, parts in the cache",
    }
    if part == "layer":
        found = built(list(one_layer()), target, f"one layer, {LAYER[0]}x{LAYER[1]}x{LAYER[2]}")
    elif problems is not None:
        found = built([ConvSpec.from_key(line) for line in problems.read_text().split()], target, "all kernels" if part == "warmup" else names[part])
    else:
        case = Case.of(network, part == "second")
        trained = {"steps": lambda: steps(case, kernels), "pause": lambda: pause(case, kernels), "generic": lambda: generic(case)}
        found = trained[part]() if part in trained else warm(case, names[part])
    print(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
