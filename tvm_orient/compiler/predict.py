"""Kernels compiled for a GPU that need not be here, and what the static model says of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..perf_model.gpu_specs import BATCH, has_gpu_spec
from ..perf_model.speed_of_light import Launch, SpeedOfLight, speed_of_light
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..sass import cubin
from ..schedules import registry
from ..schedules.choices import Choice, is_generic
from ..toolchain import nvrtc
from ..toolchain.tvm import load_tvm
from .assemble import assembled, layer_kernels
from .layer_plan import planned
from .library import cuda_source
from .lower import scheduled, workspace_shape

_KERNEL_START = 'extern "C"'  # what stands before it in a CUDA source is headers and helpers
_WORKSPACE_ITEM = 4  # bytes of a partial sum
_MAX_SECOND_SAMPLE = 8  # blocks of conv_dw's second pass that stand for all: each does the same


@dataclass(frozen=True)
class Predicted:
    """The kernels that compute one angle of a problem by one choice, in the order in which they run.

    Attributes:
        kernels: their static facts.
        bounds: the prediction for each; empty for the generic kernel, and for a GPU that has no figures.
    """

    kernels: tuple[cubin.KernelFacts, ...]
    bounds: tuple[SpeedOfLight, ...]

    @property
    def clocks(self) -> float:
        """Clocks of an SM for 32 outputs that the limiters of all kernels need together."""
        return sum(one.limiter_clocks for one in self.bounds)

    @property
    def spills(self) -> int:
        """Loads and stores of local memory in all kernels."""
        return sum(kernel.spills for kernel in self.kernels)


def together(sources: Mapping[str, str]) -> str:
    """Return several CUDA sources as one, which NVRTC reads the headers of once.

    Args:
        sources: by name; the main_kernel of each becomes <name>_kernel. All must begin with the same helpers, or with fewer of them.
    """
    parts = {name: source.partition(_KERNEL_START) for name, source in sources.items()}
    head = max((before for before, *_ in parts.values()), key=len, default="")  # the longest has the helpers that any of them calls
    return head + "".join((starts + rest).replace("main_kernel", f"{name}_kernel") for name, (_, starts, rest) in parts.items())


def predict(cases: Sequence[tuple[ConvSpec, Choice]], device: Device) -> list[Predicted]:
    """Compile single-angle specs by their choices, those of a dtype in one source, and return the prediction for each.

    Raises:
        BuildFailed: a kernel does not compile, or does something that `interpreter.run` does not follow.
        EnvironmentProblem: TVM, NVRTC, its headers or nvdisasm are missing.
    """
    sources: dict[str, dict[str, str]] = {}  # by dtype, which decides the helpers that a source begins with
    launches = []
    for index, (spec, choice) in enumerate(cases):
        module = scheduled(spec, device, [choice])
        sources.setdefault(spec.dtype, {})[f"case{index}"] = cuda_source(module, device)
        launches.append([] if is_generic([choice]) or not has_gpu_spec(device.arch) else _launches(module, spec, choice))
    found = {kernel.name: kernel for alike in sources.values() for kernel in cubin.kernels(nvrtc.compile_cubin(together(alike), device.arch))}
    results = []
    for index, (spec, _) in enumerate(cases):
        kernels = tuple(found[name] for name in (f"case{index}_kernel", f"case{index}_kernel_1") if name in found)
        bounds = tuple(speed_of_light(kernel, spec, device.arch, launch, moved) for kernel, (launch, moved) in zip(kernels, launches[index], strict=False))
        results.append(Predicted(kernels, bounds))
    return results


def predict_layer(spec: ConvSpec, choices: Sequence[Choice], device: Device) -> list[Predicted]:
    """Return what each angle of a layer costs as part of the layer's merged kernels, which set the threads, registers and shared memory of all blocks.

    Angles run one after the other, but for the blocks at their borders. So the layer's clocks of a resource are the mean over its angles, weighted by
    their channels.

    Args:
        spec: of the layer.
        choices: one for each of `spec.parts()`, none of them generic.
        device: a GPU.

    Raises:
        InvalidArgument: a GPU without figures.
        BuildFailed, EnvironmentProblem: as `predict`.
    """
    plan = planned(spec, device, choices)
    merged = sorted(cubin.kernels(assembled(plan)), key=lambda kernel: kernel.name)
    every_grid = [(kernel.blocks(BATCH), kernel.threads) for kernel in layer_kernels(plan)]
    starts, results = [0] * len(merged), []
    for (start, stop, part), choice in zip(spec.parts(), choices, strict=True):
        own = dataclasses.replace(part, channels=stop - start)
        bounds = []
        for i, (kernel, (alone, moved)) in enumerate(zip(merged, _launches(scheduled(own, device, [choice]), own, choice), strict=True)):
            every, threads = every_grid[i]
            launch = Launch(alone.grid, threads, [starts[i] + block for block in alone.sample], every - alone.grid)
            bounds.append(speed_of_light(kernel, own, device.arch, launch, moved))
            starts[i] += alone.grid
        results.append(Predicted(tuple(merged), tuple(bounds)))
    return results


def _launches(module: Any, spec: ConvSpec, choice: Choice) -> list[tuple[Launch, int]]:
    """Return (launch, least bytes of DRAM) of each kernel for BATCH images; blocks of one group of channels stand for the first's."""
    nests, blocks = grids(module["main"]), registry.find(choice.template).channel_blocks(spec.channels, choice.config)
    grid, threads = nests[0]
    # channels are innermost in a grid for channels_last
    sample = range(0, grid // BATCH, blocks) if spec.layout == "nhwc" else range(grid // BATCH // blocks)
    first = Launch(grid, threads, sample)
    if len(nests) == 1:
        return [(first, spec.bytes_moved(BATCH))]
    space = _WORKSPACE_ITEM * BATCH * spec.channels * math.prod(workspace_shape(spec, [module["main"]]) or ())
    return [(first, spec.bytes_moved(BATCH) + space), (Launch(*nests[1], range(min(_MAX_SECOND_SAMPLE, nests[1][0]))), space)]


def grids(func: Any, numbers: Mapping[str, int] | None = None) -> list[tuple[int, int]]:
    """Return (blocks, threads of a block along x) of each nest of a scheduled function.

    Args:
        numbers: values of the run-time numbers that blocks depend on, by name; None makes every one BATCH, which is right where it is the batch.
    """
    load_tvm()
    from tvm import sym, tirx
    from tvm_ffi import structural_map

    found, threads = [], [1]

    def known(name: Any) -> Any:
        return tirx.const(BATCH if numbers is None else numbers[name.name], "int32")

    def look(loop: Any) -> Any:
        if loop.thread_binding is not None and loop.thread_binding.thread_tag == "threadIdx.x":
            threads.append(int(loop.extent))
        elif loop.thread_binding is not None and loop.thread_binding.thread_tag == "blockIdx.x":
            extent = structural_map(loop.extent, (tirx.Var, known))
            found.append((int(sym.Analyzer().simplify(extent)), max(threads)))
            threads[:] = [1]
        return loop

    structural_map(func.body, (tirx.For, look))  # inner loops come first
    return found
