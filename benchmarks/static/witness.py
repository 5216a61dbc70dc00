"""Hash generated code: every template on small problems, so that a change that must leave kernels alone can be seen to do so.

    python -m benchmarks.static.witness --out before.json                        (a few minutes on one core; needs no GPU)
    python -m benchmarks.static.witness --against before.json                    (make witness WITNESS=before.json)

Hashed are the offsets of the taps, the scheduled module as TVM prints it, and what TVM makes of it for a device that need not be here: the CUDA source
after every rewrite, or the object file of each angle for a level of x86-64. A few layers are compiled to machine code by NVRTC, where it is installed.
Beside the hashes stand the choices, the build key without the hash of the sources, and what `tvm-orient explain` says.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from typer.testing import CliRunner

from tvm_orient.cli import app
from tvm_orient.compiler.assemble import assembled
from tvm_orient.compiler.layer_plan import planned
from tvm_orient.compiler.library import cuda_source, last_line
from tvm_orient.compiler.lower import scheduled
from tvm_orient.env import shipped_log_dir
from tvm_orient.errors import EnvironmentProblem, InvalidArgument, Unsupported
from tvm_orient.kernels.build_key import build_key
from tvm_orient.problem.device import Device, arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice, default_choices, generic_choices, is_generic
from tvm_orient.toolchain.tvm import load_tvm, target

from ..report.terminal import say

# one pair a line: arch; template with its own decisions, `default` for the analytic choice of all angles, or `generic`; spec; then decisions that are
# given other values, and `cubin` where NVRTC compiles the layer too. Planes that no tile divides, halos beyond the plane,
# every dtype and padding mode; what no template serves is an entry with its reason
_TABLE = """
x86-64-v3 cpu_rows      conv-c8h20w22-s1-zeros-float32-nchw-k7a22.5
x86-64-v3 cpu_rows      conv-c4h9w37-s1-circular-float32-nchw-k7a0 prefetch_planes=0 vector=4
x86-64-v3 cpu_rows      conv_dx-c4h21w18-s2-zeros-float32-nchw-k15a90
x86-64-v3 cpu_rows      conv+bias+gelu-c6h12w13-s1-zeros-bfloat16-nchw-k9a67.5_112.5
x86-64-v3 cpu_rows      conv-c4h10w9-s2x1-zeros-float64-nchw-k5d2a45
x86-64-v3 default       conv+relu-c16h15w14-s1-zeros-float32-nchw-k7a0_22.5_45_67.5_90_112.5_135_157.5
x86-64-v4 default       conv_dx-c16h15w20-s1-circular-float32-nchw-k7a22.5_135
x86-64-v3 cpu_rows_dw   conv_dw-c4h14w14-s1-zeros-float32-nchw-k15a45
x86-64-v3 cpu_rows_dw   conv_dw-c4h11w12-s2-circular-float16-nchw-k7a0_157.5
x86-64-v2 default       conv_dw-c8h9w10-s1-zeros-float32-nchw-k5a22.5_90
x86-64-v3 cpu_pixels    conv+bias+silu-c16h14w14-s1-zeros-float32-nhwc-k7a45
x86-64-v3 cpu_pixels    conv_dx-c12h11w10-s2-zeros-bfloat16-nhwc-k9a112.5
x86-64-v3 default       conv-c16h12w13-s1-circular-float32-nhwc-k5a0_67.5
x86-64-v3 cpu_pixels_dw conv_dw-c16h14w13-s1-zeros-float32-nhwc-k7a45
x86-64-v3 cpu_pixels_dw conv_dw-c12h9w10-s2-circular-float16-nhwc-k5a22.5_90
x86-64-v3 default       conv-c6h8w9-s1-zeros-float32-nchw-t0.0.1.2.-3.1
x86-64-v3 generic       conv-c8h12w13-s1-zeros-float32-nchw-k7a22.5
x86-64-v3 generic       conv_dx-c8h12w13-s2-circular-float64-nchw-k7a22.5_90
x86-64-v3 generic       conv_dw-c8h12w13-s1-zeros-bfloat16-nchw-k7a45
sm_90a    shared_patch  conv-c8h28w28-s1-zeros-float32-nchw-k15a22.5 cubin
sm_90a    shared_patch  conv+bias+relu-c8h28w28-s1-zeros-float16-nchw-k7a45
sm_90a    shared_patch  conv_dx-c8h21w18-s2-zeros-float32-nchw-k9a67.5
sm_90a    shared_patch  conv-c8h12w16-s1-circular-float32-nchw-k7a0
sm_90a    shared_patch  conv-c8h28w28-s1-zeros-float32-nchw-k7a112.5 tiles_per_block=2 stages=2 channels_per_block=1
sm_90a    shared_patch  conv-c8h28w28-s1-zeros-bfloat16-nchw-k7a45_90 tiles_per_block=2 channels_per_block=2
sm_90a    shared_patch  conv-c8h20w100-s1-zeros-float32-nchw-k15a157.5 tile=28 patch_w=4 vector=4 store_via_smem=0 weights_shared=1
sm_90a    shared_patch  conv-c8h28w28-s1-zeros-float16-nchw-k15a67.5 smem_native_dtype=1
sm_90a    strips        conv-c8h28w28-s1-zeros-float32-nchw-k31a45 cubin
sm_90a    strips        conv-c8h20w22-s1-zeros-float32-nchw-k15a22.5
sm_90a    strips        conv_dx-c8h28w28-s1-zeros-bfloat16-nchw-k15a90
sm_90a    strips        conv+bias+gelu-c8h14w14-s1-zeros-float16-nchw-k15a135 tiles_per_block=2 channels_per_block=1
sm_90a    strips        conv-c8h28w28-s1-zeros-float32-nchw-k15a112.5 tiles_per_block=2 stages=2 channels_per_block=1 plane_skew=0
sm_90a    lines         conv-c8h14w14-s1-zeros-float32-nchw-k15a45
sm_90a    lines         conv_dx-c8h14w14-s1-zeros-float16-nchw-k15a90
sm_90a    lines         conv-c8h14w14-s1-zeros-float32-nchw-k7a90 tiles_per_block=2 stages=2 channels_per_block=1
sm_90a    whole_plane   conv-c8h7w7-s1-zeros-float32-nchw-k7a22.5
sm_90a    whole_plane   conv_dx-c8h7w7-s1-circular-bfloat16-nchw-k7a67.5
sm_90a    plane_lanes   conv-c16h14w14-s1-zeros-float32-nchw-k7a22.5 cubin
sm_90a    plane_lanes   conv_dx-c16h14w14-s1-zeros-float16-nchw-k15a112.5
sm_90a    direct        conv-c8h21w18-s2-zeros-float32-nchw-k7a22.5
sm_90a    direct        conv_dx-c8h12w13-s1-circular-float32-nchw-k5d2a45
sm_90a    direct        conv+silu-c4h12w13-s3x2-zeros-bfloat16-nchw-k5a0_90
sm_90a    two_pass_dw   conv_dw-c8h14w14-s1-zeros-float32-nchw-k7a45 cubin
sm_90a    two_pass_dw   conv_dw-c8h15w13-s2-circular-float16-nchw-k5a22.5
sm_90a    two_pass_dw   conv_dw-c8h28w28-s1-zeros-float32-nchw-k7a22.5_90 whole=0
sm_90a    strips_dw     conv_dw-c8h14w14-s1-zeros-float32-nchw-k7a22.5
sm_90a    strips_dw     conv_dw-c8h28w28-s1-zeros-bfloat16-nchw-k7a135
sm_90a    pixels        conv-c16h14w14-s1-zeros-float32-nhwc-k7a45 cubin
sm_90a    pixels        conv+bias+gelu-c16h12w13-s1-circular-float16-nhwc-k5a22.5_90
sm_90a    pixels        conv_dx-c16h11w10-s2-zeros-bfloat16-nhwc-k9a112.5
sm_90a    pixels_dw     conv_dw-c16h14w14-s1-zeros-float32-nhwc-k7a45
sm_90a    pixels_dw     conv_dw-c16h9w10-s2-circular-float16-nhwc-k5a22.5_90
sm_90a    generic       conv-c8h12w13-s1-zeros-float32-nchw-k7a22.5
sm_90a    generic       conv_dx-c8h12w13-s2-circular-float16-nchw-k7a22.5_90
sm_90a    generic       conv_dw-c8h12w13-s1-zeros-float64-nchw-k7a45
sm_90a    default       conv-c16h14w14-s1-zeros-float32-nchw-k7a0_22.5_45_67.5_90_112.5_135_157.5
sm_90a    default       conv_dx-c16h14w14-s1-zeros-bfloat16-nchw-k15a0_45_90
sm_90a    default       conv_dw-c16h14w14-s1-zeros-float32-nchw-k7a0_45_67.5
sm_90a    default       conv-c8h10w9-s1-zeros-float32-nchw-t0.0.1.2.-3.1
sm_90a    default       conv-c512h56w56-s1-zeros-float32-nchw-k31a22.5
sm_90a    default       conv_dw-c512h7w7-s1-zeros-float32-nchw-k7a22.5
sm_80     default       conv-c16h14w14-s1-zeros-float16-nchw-k7a22.5_90 cubin
sm_80     strips        conv-c8h28w28-s1-zeros-float32-nchw-k15a45 tiles_per_block=2 stages=2 channels_per_block=1
sm_80     default       conv_dw-c8h14w14-s1-zeros-bfloat16-nchw-k7a45
sm_90a    direct        conv-c8h12w13-s1-zeros-float64-nchw-k5a45
sm_75     default       conv-c8h14w14-s1-zeros-float32-nchw-k7a45
sm_120    default       conv-c16h28w28-s1-zeros-float32-nchw-k15a45_112.5
"""
# words of the table
_DEFAULT = "default"  # the choice that is made without a record
_GENERIC = "generic"  # the generic kernel
_CUBIN = "cubin"  # the machine code is hashed too
_QUICK = 3  # one pair of so many is left in a quick run
_LONGEST = 160  # characters of a value that a difference shows
_ABSENT = "absent"  # what a difference shows for a value that one of two witnesses lacks
_SETTINGS = "TVM_"  # what the environment variables begin with that change a choice, a kernel or a key

Entry = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A problem on a device, and how it is scheduled."""

    arch: str  #: as `arch_device` takes it
    template: str  #: of every angle; "default" and "generic" as in the table
    spec: ConvSpec  #: the whole layer
    decisions: tuple[tuple[str, int], ...]  #: that replace the template's own
    cubin: bool  #: whether NVRTC compiles the source

    @property
    def name(self) -> str:
        """Return what the entry is called: the line of the table, without `cubin`."""
        return " ".join((self.arch, self.template, self.spec.key, *(f"{knob}={value}" for knob, value in self.decisions)))

    def choices(self, device: Device) -> tuple[Choice, ...]:
        """Return the choices for the angles, in order.

        Raises:
            Unsupported: the template declines an angle, or the decisions make no valid kernel of it.
            InvalidArgument: no such template.
        """
        if self.template == _DEFAULT:
            return default_choices(self.spec, device)
        if self.template == _GENERIC:
            return generic_choices(self.spec, device)
        template, chosen = registry.find(self.template), []
        for _, _, part in self.spec.parts():
            reason = template.declines(part, device)
            decisions = {**template.default(part, device).decisions(), **dict(self.decisions)} if reason is None else {}
            reason = reason or template.invalid(part, device, decisions)
            if reason is not None:
                raise Unsupported(f"{self.template} does not serve {part}: {reason}")
            chosen.append(Choice.of(template, template.config(decisions)))
        return tuple(chosen)


def pairs() -> list[Pair]:
    """Return every pair of the table, in its order."""
    found = []
    for arch, template, key, *rest in (line.split() for line in _TABLE.strip().splitlines()):
        given = [word.partition("=") for word in rest if word != _CUBIN]
        found.append(Pair(arch, template, ConvSpec.from_key(key), tuple((knob, int(value)) for knob, _, value in given), _CUBIN in rest))
    return found


def entry(pair: Pair) -> Entry:
    """Return what is generated for a pair; `error` says why that ended early, where it did."""
    device, spec = arch_device(pair.arch), pair.spec
    found: Entry = {
        "spec": spec.key,
        "taps": {"key": spec.taps.key, "offsets": _digest(repr(spec.taps.table))},
        "explain": _explained(spec.key, pair.arch),
    }
    try:
        choices = pair.choices(device)
        found["choices"] = [{"template": c.template, "version": c.version, "decisions": dict(c.decisions)} for c in choices]
        key = dataclasses.asdict(build_key(spec, device, choices))
        found["build_key"] = json.loads(json.dumps({part: value for part, value in key.items() if part != "source"}))
        module = scheduled(spec, device, choices)
        found["tir"] = _digest(module.script())
        if device.kind == "cpu" and is_generic(choices):
            found["assembly"] = _digest(load_tvm().compile(module, target=target(device)).mod.inspect_source("s"))
        elif device.kind == "cpu":
            found["objects"] = [hashlib.sha256(part.code).hexdigest() for part in planned(spec, device, choices).compiled]
        else:
            found["cuda"] = _digest(cuda_source(module, device))
            if pair.cubin:
                found["cubin"] = _cubin(spec, device, choices)
    except Exception as problem:  # TVM's too, and what a broken change raises: the other pairs are still told
        found["error"] = f"{type(problem).__name__}: {last_line(problem)}"
    return found


def _cubin(spec: ConvSpec, device: Device, choices: Sequence[Choice]) -> str | None:
    """Return the hash of a layer's machine code as NVRTC assembles it; None where it is not installed."""
    try:
        return hashlib.sha256(assembled(planned(spec, device, choices))).hexdigest()
    except EnvironmentProblem:
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _explained(key: str, arch: str) -> Any:
    """Return what `explain --json` prints of a spec, without the folders of logs and the number of this machine's cores; its message where it fails."""
    done, device = CliRunner().invoke(app, ["explain", key, "--arch", arch, "--json"]), arch_device(arch)
    if done.exit_code:
        return {"error": done.output.strip() or repr(done.exception)}
    text = done.stdout.replace(os.environ["TVM_ORIENT_LOG_DIR"], "USER").replace(str(shipped_log_dir()), "SHIPPED")
    if device.kind == "cpu":
        text = text.replace(device.slug, device.kin).replace(f"with {device.units} units", "with as many units")
    plain = json.loads(text)
    if device.kind == "cpu":
        del plain["device"]["units"]
    return plain


def witness(chosen: Sequence[Pair]) -> dict[str, Entry]:
    """Return the entries of pairs by name; says each as it is done. The user's own logs and settings count for nothing."""
    found: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        for variable in [name for name in os.environ if name.startswith(_SETTINGS)]:
            del os.environ[variable]
        os.environ["TVM_ORIENT_LOG_DIR"] = folder
        _explained.cache_clear()
        for number, pair in enumerate(chosen, 1):
            start = time.perf_counter()
            made = found[pair.name] = entry(pair)
            failed = f", {made['error']}" if "error" in made else ""
            say(f"[{number}/{len(chosen)}] {pair.name}: {time.perf_counter() - start:.1f} s{failed}")
    return found


def differences(before: Mapping[str, Entry], now: Mapping[str, Entry], whole: bool = True) -> list[str]:
    """Return every difference between two witnesses in words, by entry.

    Args:
        whole: whether an entry of `before` that is not among those of now is a difference.

    A cubin that either side could not compile is none.
    """
    found = [f"{name}: is no longer made" for name in sorted(before.keys() - now.keys())] if whole else []
    for name in sorted(now):
        if name not in before:
            found.append(f"{name}: was not there before")
            continue
        old, new = dict(_leaves(before[name])), dict(_leaves(now[name]))
        for place in sorted(old.keys() | new.keys()):
            one, other = old.get(place, _ABSENT), new.get(place, _ABSENT)
            if one != other and not (place == _CUBIN and None in (one, other)):
                found.append(f"{name}: {place} was {_short(one)}, is {_short(other)}")
    return found


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value in nested JSON with where it stands, such as choices[0].decisions.planes; an empty list or object is a value."""
    if isinstance(value, dict) and value:
        for name in value:
            yield from _leaves(value[name], f"{place}.{name}" if place else name)
    elif isinstance(value, list) and value:
        for index, one in enumerate(value):
            yield from _leaves(one, f"{place}[{index}]")
    else:
        yield place, value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _read(path: Path) -> dict[str, Entry]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InvalidArgument(f"--against takes a file that --out wrote, got {path}: {problem}") from problem
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise InvalidArgument(f"--against takes a file that --out wrote, got {path}, whose entries are not objects")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes a witness, writes it and compares it; the exit status: 1 where something differs, 2 where an option makes no sense."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the witness there, as JSON")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with a witness that was written before; 1 where something differs")
    parser.add_argument("--quick", action="store_true", help=f"one pair of {_QUICK} only")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only pairs whose name holds this; may be given again")
    options = parser.parse_args(arguments)
    if options.out is None and options.against is None:
        parser.error("give --out FILE, --against FILE, or both")
    chosen = [pair for pair in pairs() if not options.only or any(text in pair.name for text in options.only)][:: _QUICK if options.quick else 1]
    if not chosen:
        parser.error(f"--only must name a pair, got {', '.join(options.only)}: such as --only strips")
    try:
        before = None if options.against is None else _read(options.against)
    except InvalidArgument as problem:
        parser.error(str(problem))
    if options.out is not None:  # a folder that cannot be made is told now, not after minutes
        options.out.parent.mkdir(parents=True, exist_ok=True)
    found = witness(chosen)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if before is None:
        return 0
    different = differences(before, found, whole=not (options.quick or options.only))
    for line in different:
        say(line)
    say(f"{len(found)} pairs compared with {options.against}: " + (f"{len(different)} differences" if different else "all equal"))
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
