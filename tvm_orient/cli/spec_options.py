"""A problem on the command line: the same options for every verb, turned into specs in one place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..errors import InvalidArgument
from ..problem.device import Device, arch_device, device_for
from ..problem.line_offsets import Anchor, from_degrees
from ..problem.spec import ACTIVATIONS, DTYPES, LAYOUTS, OPS, PADDING_MODES, ConvSpec
from ..problem.taps import Taps

EIGHT = "0,22.5,45,67.5,90,112.5,135,157.5"  # degrees: the angles where --angles is left out
_WHOLE_PROBLEMS = ("keys", "specs")  # fields of ProblemOptions that give whole problems, so that they stand alone


def whole(text: Any) -> int:
    """Returns the count that an option was given.

    Raises:
        typer.BadParameter: not a whole number >= 1; typer adds the name of the option.
    """
    if not (str(text).isascii() and str(text).isdigit() and int(text) >= 1):
        raise typer.BadParameter(f"must be a whole number >= 1, got {str(text)!r}")
    return int(text)


def _option(metavar: str, text: str, default: str = "") -> Any:
    return typer.Option(metavar=metavar, help=text, show_default=default or False, rich_help_panel="The problem")


def _count(text: str, default: str = "") -> Any:
    return typer.Option(parser=whole, metavar="N", help=text, show_default=default or False, rich_help_panel="The problem")


Angles = Annotated[str | None, _option("A,B,...", "Angles in DEGREES, counter-clockwise with y up, one per group of channels.", EIGHT)]
Anchoring = Annotated[str | None, _option("center|start", "Which tap lies on the pixel itself.", "center")]
KernelSize = Annotated[int | None, _count("Taps per channel, odd.")]
Dilation = Annotated[int | None, _count("Distance between taps.", "1")]
Target = Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="auto is a GPU where there is one.", show_default="auto")]
Arch = Annotated[str | None, typer.Option(metavar="ARCH", help="A GPU that need not be here, such as sm_90a, or a level of x86-64, such as x86-64-v3.")]


@dataclass(frozen=True)
class ProblemOptions:
    """The options of a problem as they were given: None for one that was not. The verbs have one parameter for each field."""

    keys: Annotated[list[str] | None, typer.Argument(metavar="[SPEC]...", help="Spec keys, instead of the options.", show_default=False)] = None
    op: Annotated[str | None, _option("|".join((*OPS, "all")), "Forward, or a gradient; all is the three.", "conv")] = None
    channels: Annotated[int | None, _count("Channels of x.")] = None
    height: Annotated[int | None, _count("Rows of x.")] = None
    width: Annotated[int | None, _count("Columns of x.")] = None
    kernel_size: KernelSize = None
    angles: Angles = None
    stride: Annotated[str | None, _option("S", "2, or 2x1 for vertical x horizontal.", "1")] = None
    dilation: Dilation = None
    padding_mode: Annotated[str | None, _option("|".join(PADDING_MODES), "What lies beyond the edges.", "zeros")] = None
    dtype: Annotated[str | None, _option("|".join(DTYPES), "Element type.", "float32")] = None
    layout: Annotated[str | None, _option("|".join(LAYOUTS), "How images lie in memory; nhwc is torch's channels_last.", "nchw")] = None
    epilogue: Annotated[str | None, _option("bias+" + "|".join(ACTIVATIONS[1:]), "What conv does to a sum before it stores it, such as bias+gelu.")] = None
    specs: Annotated[Path | None, _option("FILE", "Spec keys instead, one a line; # begins a comment.")] = None

    @property
    def given(self) -> dict[str, Any]:
        """Returns the options that tell of one problem and were given, by their names; neither the keys nor the file, which give whole problems."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None and name not in _WHOLE_PROBLEMS}


def problem_specs(options: ProblemOptions) -> list[ConvSpec]:
    """Returns the specs that the options mean, each once.

    Raises:
        InvalidArgument: an option is missing, at odds with a key or --specs, or breaks a rule of the operator.
    """
    given = options.given
    if options.keys:
        beside = [*map(_flag, given), *(["--specs"] if options.specs is not None else [])]
        if beside:
            raise InvalidArgument(f"a spec key gives the whole problem, so it stands alone, got {', '.join(beside)} too: drop one or the other")
        return list(dict.fromkeys(map(ConvSpec.from_key, options.keys)))
    if options.specs is not None:
        if given:
            raise InvalidArgument(f"--specs gives whole problems, so it stands alone, got {', '.join(map(_flag, given))} too: drop one or the other")
        return read_specs(options.specs)
    return _specs_of_one_problem(options)


def _specs_of_one_problem(options: ProblemOptions) -> list[ConvSpec]:
    """Returns a spec for each op of the problem that the options tell of.

    Raises:
        InvalidArgument: an option is missing, or breaks a rule of the operator.
    """
    channels, height, width, kernel_size = options.channels, options.height, options.width, options.kernel_size
    if channels is None or height is None or width is None or kernel_size is None:
        absent = [_flag(name) for name in ("channels", "height", "width", "kernel_size") if name not in options.given]
        raise InvalidArgument(f"a problem needs --channels, --height, --width and --kernel-size, a spec key, or --specs FILE, got no {', '.join(absent)}")
    taps = line_taps(options.angles, kernel_size, options.dilation)
    if taps.groups > channels:
        raise InvalidArgument(f"every angle needs a channel, got {taps.groups} angles for {channels} channels: give fewer with --angles")
    ops = OPS if options.op == "all" else (options.op or "conv",)
    bias, activation = _epilogue(options.epilogue)
    like: dict[str, Any] = {
        "stride": _stride(options.stride or "1"),
        "padding_mode": options.padding_mode or "zeros",
        "dtype": options.dtype or "float32",
        "layout": options.layout or "nchw",
    }
    ending: dict[str, Any] = {"bias": bias, "activation": activation}
    return [ConvSpec(name, channels, height, width, taps, **like, **(ending if name == "conv" or options.op != "all" else {})) for name in ops]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def line_taps(angles: str | None, kernel_size: int, dilation: int | None = None, anchor: Anchor = "center") -> Taps:
    """Returns the taps of lines at angles in degrees, separated by commas.

    Raises:
        InvalidArgument: not finite numbers, or a rule of Taps.oriented is broken.
    """
    return Taps.oriented(from_degrees(asked_degrees(angles)), kernel_size, 1 if dilation is None else dilation, anchor)


def asked_degrees(angles: str | None) -> list[float]:
    """Returns the numbers of --angles, in degrees.

    Raises:
        InvalidArgument: not finite numbers.
    """
    degrees = []
    for word in (angles if angles is not None else EIGHT).split(","):
        try:
            degrees.append(float(word))
        except ValueError:
            degrees.append(math.nan)
        if not math.isfinite(degrees[-1]):
            raise InvalidArgument(f"--angles takes finite numbers of degrees separated by commas, got {word.strip()!r}: such as --angles 0,22.5,45")
    return degrees


def _epilogue(text: str | None) -> tuple[bool, str]:
    words = [] if text is None else text.split("+")
    bias = words[:1] == ["bias"]
    rest = words[1:] if bias else words
    if len(rest) > 1 or not all(word in ACTIVATIONS[1:] for word in rest):
        raise InvalidArgument(f"--epilogue takes bias, {', '.join(ACTIVATIONS[1:])}, or bias and one of them, got {text!r}: such as bias+gelu")
    return bias, rest[0] if rest else "none"


def _stride(text: str) -> tuple[int, int]:
    words = text.lower().split("x")
    if len(words) > 2 or not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise InvalidArgument(f"--stride takes a whole number >= 1, or two of them (vertical x horizontal), got {text!r}: such as 2 or 2x1")
    return int(words[0]), int(words[-1])


def read_specs(path: Path) -> list[ConvSpec]:
    """Returns the specs of a file of keys, in order, each once; # begins a comment.

    Raises:
        InvalidArgument: the file cannot be read or holds no key, or a line is not a key (the line is named).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8 text"
        raise InvalidArgument(f"cannot read the specs file {path}: {reason}: give a text file of spec keys, one a line") from problem
    found: dict[ConvSpec, None] = {}
    for number, line in enumerate(lines, 1):
        key = line.partition("#")[0].strip()
        if key:
            try:
                found[ConvSpec.from_key(key)] = None
            except InvalidArgument as problem:
                raise InvalidArgument(f"{path}, line {number}: {problem}") from problem
    if not found:
        raise InvalidArgument(f"a specs file holds at least one spec key, got none in {path}: a key reads like conv-c512h56w56-s1-zeros-float32-nchw-k31a22.5")
    return list(found)


def takes_problem(verb: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of a problem before the verb's own; the verb gets the list of specs as its first argument.

    A verb that has a parameter `asked` is told the angles in degrees that the options ask for, one for each group; none where a file has the specs.
    """
    types = get_type_hints(ProblemOptions, include_extras=True)
    shared = {
        field.name: inspect.Parameter(field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=field.default, annotation=types[field.name])
        for field in dataclasses.fields(ProblemOptions)
    }
    own = [one for one in list(inspect.signature(verb, eval_str=True).parameters.values())[1:] if one.name != "asked"]
    tells = "asked" in inspect.signature(verb).parameters

    @functools.wraps(verb)
    def with_problem(**given: Any) -> None:
        options = ProblemOptions(**{name: given.pop(name) for name in shared})
        specs = problem_specs(options)
        if tells:
            given["asked"] = asked_degrees(options.angles) if options.specs is None else []
        verb(specs, **given)

    with_problem.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
    return with_problem


def chosen_device(target: str | None, arch: str | None = None) -> Device:
    """Returns the device that --target or --arch means.

    Raises:
        InvalidArgument: both, or an unknown one. EnvironmentProblem: cuda was asked for and there is none.
    """
    if target is not None and arch is not None:
        raise InvalidArgument(f"--target is a device here and --arch one elsewhere, got both ({target}, {arch}): drop one")
    return arch_device(arch) if arch is not None else device_for("auto" if target is None else target)
