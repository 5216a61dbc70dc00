"""show: the taps over the pixel grid, in the terminal or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidArgument
from ..problem.line_offsets import Anchor
from ..problem.spec import ConvSpec
from ..problem.taps import Taps
from .application import app, examples
from .output import Json, console, plain_file, print_json
from .spec_options import Anchoring, Angles, Dilation, KernelSize, asked_degrees, line_taps


@app.command(epilog=examples("show --kernel-size 31 --angles 0,22.5,45 -o taps.png", "show k7d2a45"))
def show(
    key: Annotated[str | None, typer.Argument(help="A taps key such as k31a22.5, or a spec key, instead of the options.")] = None,
    kernel_size: KernelSize = None,
    angles: Angles = None,
    dilation: Dilation = None,
    anchor: Anchoring = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a PNG there instead.")] = None,
    as_json: Json = False,
) -> None:
    """Draw which pixels the taps of an angle land on."""
    plain_file(out)
    taps = _taps(key, kernel_size, angles, dilation, anchor)
    asked = asked_degrees(angles) if key is None else []
    if out is not None:
        from ..tools.plots.taps import taps_png

        taps_png(taps, out, asked)
    if as_json:
        groups = [{"degrees": taps.group(g).degrees, "offsets": taps.table[g], "distinct": len(taps.distinct(g))} for g in range(taps.groups)]
        for group, angle in zip(groups, asked, strict=False):  # none beside a key
            group["asked_degrees"] = angle
        print_json({"key": taps.key, "kernel_size": taps.kernel_size, "groups": groups, "picture": None if out is None else str(out)})
    elif out is not None:
        console().print(f"wrote {out}", soft_wrap=True)
    else:
        from ..tools.plots.taps import taps_text

        printer = console()
        printer.print(taps_text(taps, printer.width, asked), soft_wrap=True)
        printer.print(f"\nkey {taps.key}", style="dim", soft_wrap=True)


def _taps(key: str | None, kernel_size: int | None, angles: str | None, dilation: int | None, anchor: str | None) -> Taps:
    if key is not None:
        given = {"--kernel-size": kernel_size, "--angles": angles, "--dilation": dilation, "--anchor": anchor}
        beside = [name for name, value in given.items() if value is not None]
        if beside:
            raise InvalidArgument(f"a key gives all the taps, so it stands alone, got {key} and {', '.join(beside)}: drop one or the other")
        return ConvSpec.from_key(key).taps if key.startswith("conv") else Taps.from_key(key)
    if kernel_size is None:
        raise InvalidArgument("taps need --kernel-size, or a key such as k31a22.5, got neither")
    chosen: Anchor = "start" if anchor == "start" else "center"
    if anchor not in (None, chosen):
        raise InvalidArgument(f"--anchor must be center or start, got {anchor!r}")
    return line_taps(angles, kernel_size, dilation, chosen)
