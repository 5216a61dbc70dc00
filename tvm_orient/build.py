"""Build: a spec and a device to a kernel on disk, by the best record that the logs hold for each of its angles."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import anysize, cache, logs, schedules, shared
from .compiler import compiled
from .device import Device, recorded_device
from .errors import EnvironmentProblem, InvalidArgument, Unsupported
from .lookup import lookup
from .lower import Choice, generic_choices, is_generic
from .plausible import doubtful
from .spec import LIMIT, ConvSpec

# environment variables that change what TVM's CUDA compiler does
_FLAGS = ("TVM_CUDA_COMPILE_MODE", "TVM_CUDA_NVRTC_EXTRA_OPTS", "TVM_CUDA_PTXAS_REG_LEVEL")
_SPARE_ROWS = 256  # that a kernel may stage or fetch beyond a plane
_TOOLS = ("apache-tvm", "apache-tvm-ffi", "nvidia-cuda-nvrtc")


@dataclass(frozen=True)
class Explained:
    """Where one angle group's choice came from: the step of the lookup that answered, and why the earlier ones did not."""

    part: ConvSpec  #: the group alone, over all channels
    choice: Choice  #: template, version, decisions and step
    record: logs.Record | None  #: None where no record answered
    source: Path | None  #: the record's file
    tried: tuple[tuple[str, str], ...]  #: (step, why it did not answer), in order


def accepts(part: ConvSpec, device: Device, record: logs.Record) -> str | None:
    """None where a record still makes a valid kernel for this part on this device, else why not."""
    template = next((t for t in schedules.TEMPLATES if t.name == record.template), None)
    if template is None:
        return f"template {record.template} does not exist in this version"
    if template.version != record.template_version:
        return f"template {record.template} is version {template.version}, the record is for {record.template_version}"
    decisions = {name: value for name, value in record.decisions.items() if isinstance(value, int)}
    noise = doubtful(record.spec, record.median_us, record.spread_us, record.floor_us, record.provenance)
    return noise or template.declines(part, device) or template.invalid(part, device, decisions)


def outdated(record: logs.Record) -> str | None:
    """None where a record still makes a valid kernel for its own problem on the device that it was made on, else why lookup passes over it."""
    try:
        device = recorded_device(record.device, str(record.provenance.get("cc")), int(record.provenance.get("units") or 1))
    except InvalidArgument as problem:
        return str(problem)
    return accepts(ConvSpec.from_key(record.spec), device, record)


def explain(spec: ConvSpec, device: Device, mode: str | None = None) -> list[Explained]:
    """How each angle group of a spec would be built here, and why; compiles nothing.

    Where no template serves one of them, all are given to the generic kernel, which runs the whole layer.

    Args:
        mode: "strict", "nearest" or "default"; None reads TVM_ORIENT_LOOKUP.

    Raises:
        InvalidArgument: another mode.
        Unsupported: the mode forbids untuned kernels, and no record answers.
    """
    answers = []
    parts = [part for _, _, part in spec.parts()]
    for place, part in enumerate(parts):
        found = lookup(part.plain, device, lambda record, part=part: accepts(part, device, record), mode=mode)  # type: ignore[misc]
        if found.step == "none":
            raise Unsupported(
                f"no record may answer for {part} on {device.slug} (TVM_ORIENT_LOOKUP forbids the default): "
                + "; ".join(f"{step}: {why}" for step, why in found.tried)
            )
        if found.record is None:
            try:
                choice = Choice.of(*schedules.together(parts, device)[place])
            except Unsupported as reason:
                return _all_generic(spec, device, found.tried, str(reason))
        else:
            decisions = tuple(sorted((k, v) for k, v in found.record.decisions.items() if isinstance(v, int)))
            choice = Choice(found.record.template, found.record.template_version, decisions, found.step)
        answers.append(Explained(part, choice, found.record, found.source, found.tried))
    return answers


def _all_generic(spec: ConvSpec, device: Device, tried: tuple[tuple[str, str], ...], reason: str) -> list[Explained]:
    choices = generic_choices(spec, device)
    return [Explained(part, choice, None, None, (*tried, ("default", reason))) for (_, _, part), choice in zip(spec.parts(), choices, strict=True)]


@functools.cache
def toolchain() -> tuple[tuple[str, str], ...]:
    """Versions that the bytes of a kernel depend on, without importing any of them; read once, which takes milliseconds."""
    found = []
    for name in _TOOLS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "absent"))
    return tuple(found)


def build_key(spec: ConvSpec, device: Device, choices: Sequence[Choice]) -> cache.BuildKey:
    """The cache key of a spec with the given choices."""
    flags = tuple((name, os.environ[name]) for name in _FLAGS if name in os.environ)
    one = is_generic(choices)  # whatever the layer
    chosen = tuple((c.template, c.version, c.decisions) for c in (choices[:1] if one else choices))
    layer = anysize.key(spec) if one else spec.key
    return cache.BuildKey(layer, chosen, device.kin, device.arch, toolchain(), cache.source_hash(), flags, device.model, device.features)


def build(
    spec: ConvSpec,
    device: Device,
    choices: Sequence[Choice] | None = None,
    store: cache.KernelCache | None = None,
    *,
    compiling: bool = True,
    limit: float | None = None,
    instead_of: Path | None = None,
) -> Path:
    """The path of the kernel.so of a spec: found in a cache, or compiled and published in the user's, with how.json beside it.

    It is compiled in a process of its own (`tvm_orient.compiler`): a compiler that dies takes nothing along.

    Args:
        choices: one for each part of the spec; None asks the logs, as `explain`.
        store: the cache; None is that of TVM_ORIENT_CACHE_DIR, after those that are shared.
        compiling: False forbids compiling.
        limit: seconds that compiling may take, and `tvm_orient.cache.Busy` is raised where another process is at it; None waits for both.
        instead_of: a path that was answered before and cannot be loaded: it counts as a miss, and is replaced once another is there.

    Raises:
        Unsupported: no template serves it, or an image is too large for 32 bits.
        BuildFailed: the compiler refused, or took longer than the limit.
        EnvironmentProblem: not in the cache, and compiling is forbidden (TVM_ORIENT_BUILD=0) or impossible here.
    """
    chosen = tuple(choices) if choices is not None else tuple(e.choice for e in explain(spec, device))
    if not chosen:
        raise Unsupported(f"{spec} has no channels to compute")
    key = build_key(spec, device, chosen)
    found = shared.find(key) if store is None else None
    if found is not None and found != instead_of:
        return found
    store = store or cache.KernelCache()
    found = store.find(key)
    if found is not None and found != instead_of:
        return found
    if not compiling:
        raise EnvironmentProblem(
            f"no kernel for {spec} on {device.slug} in {store.directory}, and compiling is off (TVM_ORIENT_BUILD=0): "
            "run `tvm-orient build --specs FILE`, or unset it"
        )
    if not is_generic(chosen):
        _refuse_large(spec)
    return store.publish(key, lambda folder: compiled(spec, device, chosen, folder, limit), waiting=limit is None, instead_of=instead_of)


def _refuse_large(spec: ConvSpec) -> None:
    """Kernels of their own hold places in a padded image as numbers of 32 bits, of which TVM says only that a literal is too large."""
    row = max(spec.width, spec.out_width) * (spec.channels if spec.layout == "nhwc" else 1)
    image, spare = spec.channels * spec.height * spec.width, _SPARE_ROWS * row
    if image + spare > LIMIT:
        raise Unsupported(
            f"a kernel of its own needs images of at most {LIMIT - spare} elements, C * H * W, so that 32 bits count {_SPARE_ROWS} rows more, "
            f"got {image} in {spec}: cut the plane into tiles, or leave it to the generic kernel"
        )
