"""Compiles a part of a layer by itself: to an object file for a CPU, to PTX for a GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..errors import BuildFailed, OrientError, last_line
from ..problem.device import Device
from .library import cuda_source, refusals, skipped_passes
from .lower import schedule_part, workspace_shape
from .parts import CompiledPart, Part, PartLaunch


def compile_part(part: Part, device: Device) -> CompiledPart:
    """Return a part of a layer, compiled for a device.

    Raises:
        BuildFailed: TVM or the compiler behind it refused, or a pass over its CUDA source found less than it must.
        EnvironmentProblem: TVM is missing or of another version; NVRTC or its headers are missing.
    """
    from ..toolchain.tvm import load_tvm

    load_tvm()
    from tvm import te

    from ..codegen.tir.fuse_groups import Group, nests_of

    n = te.var("n", "int32")
    try:
        func = schedule_part(part.spec, part.channels, device, part.choice, n)
    except OrientError:
        raise
    except Exception as problem:
        raise BuildFailed(f"{part.choice.template} {part.choice.by_name}: {last_line(problem)}") from problem
    space = workspace_shape(part.spec, [func])
    operands = part.spec.operands(n, space or (1, 1))
    shapes, origins = [], []
    for operand, param in zip(operands, func.params, strict=True):
        own = operand.role == "workspace"  # each part has a place of its own there
        shapes.append(tuple(param.shape) if own else operand.shape)
        origins.append(operand.origin(0 if own else part.offset))
    group = Group(func, tuple(origins))
    launched = [_tasks(nest, n) for nest in nests_of(func)]
    if device.kind == "cpu":
        code, scratch = _object(group, shapes, part.symbol, device)
        launches = [PartLaunch(each, more, 1, (), sizes) for (each, more), sizes in zip(launched, scratch, strict=True)]
        return CompiledPart(tuple(launches), space, code, "")
    return _cuda(group, shapes, launched, space, device)


def _tasks(nest: Any, n: Any) -> tuple[int, int]:
    """Return the tasks of a nest for each image, and those beside them.

    Raises:
        BuildFailed: their number is another function of the images.
    """
    from tvm import sym, tirx
    from tvm_ffi import structural_map

    def at(value: int) -> int:
        extent = structural_map(nest.extent, (tirx.Var, lambda one: tirx.const(value, "int32") if one.same_as(n) else one))
        return int(sym.Analyzer().simplify(extent))

    none, one, two = (at(value) for value in (0, 1, 2))
    if two - one != one - none:
        raise BuildFailed(f"a nest must have so many tasks for each image, got {nest.extent}: split other loops than that over images")
    return one - none, none


def _object(group: Any, shapes: Any, symbol: str, device: Device) -> tuple[bytes, list[tuple[int, ...]]]:
    """Return the object file of a part's functions, and the sizes of the arrays that each is lent."""
    import tvm

    from ..codegen.tir.part_functions import part_functions, with_scratch
    from ..toolchain.tvm import lowering_pipeline, target

    functions = {str(func.attrs["global_symbol"]): func for func in part_functions(group, shapes, symbol)}
    scratch: dict[str, tuple[int, ...]] = {}

    def lent(func: Any) -> Any:
        func, sizes = with_scratch(func)
        scratch[str(func.attrs["global_symbol"])] = sizes
        return func

    pipeline = lowering_pipeline("tvm_orient_part", lent)
    skipped = ["tirx.AnnotateEntryFunc", *skipped_passes(group.func)]  # a single function would be taken for the library's entry
    with refusals(device), tvm.transform.PassContext(disabled_pass=skipped), tempfile.TemporaryDirectory() as folder:
        made = tvm.compile(tvm.IRModule(functions), target(device), tir_pipeline=pipeline)
        path = Path(folder) / "part.o"
        made.mod.write_to_file(str(path), "o")
        return path.read_bytes(), [scratch[name] for name in functions]


def _cuda(group: Any, shapes: Any, launched: Any, space: tuple[int, int] | None, device: Device) -> CompiledPart:
    """Return a part for a GPU."""
    import tvm

    from ..codegen.cuda.cuda_text import definitions
    from ..codegen.cuda.ptx import kernels
    from ..codegen.tir.fuse_groups import merge
    from ..toolchain import nvrtc

    source = cuda_source(tvm.IRModule({"main": merge([group], shapes, "cuda")}), device)
    text, defined = nvrtc.compile_ptx(source, device.arch), definitions(source)
    found = kernels(text)
    if not len(found) == len(defined) == len(launched):
        raise BuildFailed(f"each of {len(launched)} nests must become a kernel, got {len(defined)} in CUDA source and {len(found)} in PTX")
    launches = [PartLaunch(each, more, one.bound, one.names) for (each, more), one in zip(launched, defined, strict=True)]
    return CompiledPart(tuple(launches), space, text.encode(), source)
