"""Build: a spec and a device to a kernel on disk, by the best record that the logs hold for each of its angles."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import anysize, cache, logs, schedules
from .device import Device, recorded_device
from .errors import EnvironmentProblem, InvalidArgument, Unsupported
from .lower import Choice, compile_library, generic_choices, is_generic, scheduled, workspace_shape
from .spec import ConvSpec
from .tvmkit import target

# environment variables that change what TVM's CUDA compiler does
_FLAGS = ("TVM_CUDA_COMPILE_MODE", "TVM_CUDA_NVRTC_EXTRA_OPTS", "TVM_CUDA_PTXAS_REG_LEVEL")
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
    return template.declines(part, device) or template.invalid(part, device, decisions)


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
        found = logs.lookup(part.plain, device, lambda record, part=part: accepts(part, device, record), mode=mode)  # type: ignore[misc]
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


def build(spec: ConvSpec, device: Device, choices: Sequence[Choice] | None = None, store: cache.KernelCache | None = None, *, compiling: bool = True) -> Path:
    """The path of the kernel.so of a spec: found in the cache, or compiled and published there, with how.json beside it.

    Args:
        choices: one for each part of the spec; None asks the logs, as `explain`.
        store: the cache; None is that of TVM_ORIENT_CACHE_DIR.
        compiling: False forbids compiling.

    Raises:
        Unsupported: no template serves it.
        BuildFailed: the compiler refused.
        EnvironmentProblem: not in the cache, and compiling
            is forbidden (TVM_ORIENT_BUILD=0) or impossible here.
    """
    chosen = tuple(choices) if choices is not None else tuple(e.choice for e in explain(spec, device))
    if not chosen:
        raise Unsupported(f"{spec} has no channels to compute")
    store = store or cache.KernelCache()
    key = build_key(spec, device, chosen)
    found = store.find(key)
    if found is not None:
        return found
    if not compiling:
        raise EnvironmentProblem(
            f"no kernel for {spec} on {device.slug} in {store.directory}, and compiling is off (TVM_ORIENT_BUILD=0): "
            "run `tvm-orient build --specs FILE`, or unset it"
        )
    return store.publish(key, lambda folder: make(spec, device, chosen, folder))


def make(spec: ConvSpec, device: Device, choices: Sequence[Choice], folder: Path, *, sources: bool = False) -> dict[str, Any]:
    """Compile a spec into folder/kernel.so; returns the facts that launching needs (workspace) and that people ask for.

    Args:
        sources: for CUDA, write kernel.cu and kernel.cubin beside it.

    Raises:
        BuildFailed, EnvironmentProblem: as `lower.compile_library`.
    """
    start = time.perf_counter()
    module = scheduled(spec, device, choices)
    lowered = time.perf_counter()
    cubins = compile_library(module, device, folder / cache.KERNEL)
    for source, cubin in cubins.items() if sources else ():  # one: a layer is one module
        (folder / "kernel.cu").write_text(source)
        (folder / "kernel.cubin").write_bytes(cubin)
    facts: dict[str, Any] = {
        "steps": [c.step for c in (choices[:1] if is_generic(choices) else choices)],
        "seconds": {"schedule": round(lowered - start, 3), "compile": round(time.perf_counter() - lowered, 3)},
    }
    if device.kind == "cpu":
        facts["mcpu"] = str(target(device).attrs["mcpu"])  # LLVM's name for the model that is in the key
    if spec.op == "conv_dw" and not is_generic(choices):
        facts["workspace"] = list(workspace_shape([module["main"]], spec.layout))
    return facts
