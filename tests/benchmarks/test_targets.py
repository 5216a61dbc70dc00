"""The verdict over a results file: every target in both directions, partial files, and the cells that it names."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.report import plot, roofline
from benchmarks.report import targets as verdict
from tvm_orient.bench import grids
from tvm_orient.bench.methods import angles_text
from tvm_orient.bench.peers.published import NAME as PUBLISHED
from tvm_orient.bench.rows import DEFAULT, TUNED, Row, write_csv
from tvm_orient.problem.spec import ConvSpec

TABLE = grids.table("cuda")
RIVALS = ("compiled_gather", "compiled_shift", "grouped_raster")
Time = Callable[[ConvSpec], float]


def row(spec: ConvSpec, method: str, ms: float, floor: float, batch: int = 64, **more: Any) -> Row:
    fields: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(Row)), "text")
    fields |= {name: getattr(spec, name) for name in ("op", "channels", "height", "width", "kernel_size", "padding_mode", "dtype")}
    fields |= {"spec": spec.key, "angles": angles_text(spec), "stride": str(spec.stride[0]), "batch": batch, "method": method, "cache": "cold", "note": ""}
    fields |= {
        "median_ms": ms,
        "p20_ms": ms,
        "p80_ms": ms,
        "gbps": 1.0,
        "floor_ratio": floor / ms,
        "vs_ours": 1.0,
        "error": 1e-7,
        "checked": True,
        "busy": None,
    }
    return Row(**{**fields, "threads": 1, **more})


def cell(spec: ConvSpec, ours: float = 1.0, peer: float = 2.0, old: float | None = 6.0, floor: float = 0.95, batch: int = 64) -> list[Row]:
    """A cell with ours tuned, slower untuned, three peers and the published kernel; floor: its time."""
    made = [row(spec, TUNED, ours, floor, batch), row(spec, DEFAULT, 1.01 * ours, floor, batch), row(spec, "copy", floor, floor, batch, checked=False)]
    made += [row(spec, name, peer * (1 + i), floor, batch) for i, name in enumerate(RIVALS)]
    return made + ([row(spec, PUBLISHED, old, floor, batch)] if old and spec.dtype == "float32" else [])


def rows(change: Callable[[ConvSpec], dict[str, Any]] = lambda spec: {}, specs: Sequence[ConvSpec] = TABLE.specs) -> list[Row]:
    return [made for spec in specs for made in cell(spec, **change(spec))]


def line(found: list[verdict.Line], op: str, dtype: str, kernel_size: int, what: str) -> verdict.Line:
    (one,) = [line for line in found if (line.op, line.dtype, line.kernel_size, line.what) == (op, dtype, kernel_size, what)]
    return one


@pytest.fixture(scope="module")
def good() -> list[Row]:
    return rows()


def test_a_whole_table_passes(good: list[Row]) -> None:
    found = verdict.lines(good)
    assert {line.verdict for line in found} == {"pass"}
    # per op, dtype and K: evenness, merging, peers; the floor but for conv_dw in halves; the published kernel in float32
    assert len(found) == 3 * 3 * 2 * 3 + (3 * 3 * 2 - 2 * 2) + 3 * 2
    assert verdict.report(found)[-1] == "74 pass, 0 missed, 0 hold so far with cells missing, 0 not measured"
    assert all(len(line.values) == line.wanted for line in found)


ISSUE = [  # what the issue asks for, once more, by hand
    ("conv", "float32", 7, "copy / ours", 0.92), ("conv", "float32", 31, "copy / ours", 0.85), ("conv_dx", "float32", 7, "copy / ours", 0.92),
    ("conv_dx", "float32", 31, "copy / ours", 0.85), ("conv", "float16", 7, "copy / ours", 0.85), ("conv", "bfloat16", 31, "copy / ours", 0.60),
    ("conv_dx", "bfloat16", 7, "copy / ours", 0.85), ("conv_dx", "float16", 31, "copy / ours", 0.60), ("conv_dw", "float32", 7, "dot / ours", 0.85),
    ("conv_dw", "float32", 31, "dot / ours", 0.75),
]  # fmt: skip


@pytest.mark.parametrize(("op", "dtype", "kernel_size", "what", "least"), ISSUE)
@pytest.mark.parametrize("step", [1, -1])
def test_the_floor(op: str, dtype: str, kernel_size: int, what: str, least: float, step: int) -> None:
    bad = next(spec for spec in reversed(TABLE.specs) if (spec.op, spec.dtype, spec.kernel_size) == (op, dtype, kernel_size))
    found = verdict.lines(rows(lambda spec: {"floor": least + 0.001 * step} if spec == bad else {}))
    judged = line(found, op, dtype, kernel_size, what)
    assert judged.verdict == ("pass" if step > 0 else "miss")
    assert judged.worst is not None
    assert judged.worst[0] == pytest.approx(least + 0.001 * step)
    assert f"{bad.height}x{bad.width} K={kernel_size} 157.5°" in judged.worst[1]
    assert sum(line.verdict == "miss" for line in found) == (step < 0)


@pytest.mark.parametrize(("kernel_size", "most"), [(7, 1.08), (31, 1.15)])
@pytest.mark.parametrize("step", [1, -1])
def test_the_slowest_angle(kernel_size: int, most: float, step: int) -> None:
    bad = grids.spec("conv_dx", (512, 14, 14), kernel_size, (67.5,))
    found = verdict.lines(rows(lambda spec: {"ours": most + 0.001 * step, "floor": 2.0} if spec == bad else {}))
    judged = line(found, "conv_dx", "float32", kernel_size, "slowest angle / fastest")
    assert judged.verdict == ("miss" if step > 0 else "pass")
    assert judged.worst is not None
    assert "14x14" in judged.worst[1]
    assert "67.5° N=64 against 0°" in judged.worst[1]


@pytest.mark.parametrize(("kernel_size", "most"), [(7, 1.03), (31, 1.05)])
@pytest.mark.parametrize("step", [1, -1])
def test_eight_in_one_call(kernel_size: int, most: float, step: int) -> None:
    bad = grids.spec("conv_dw", (512, 28, 28), kernel_size, dtype="bfloat16")
    found = verdict.lines(rows(lambda spec: {"ours": most + 0.001 * step} if spec == bad else {}))
    judged = line(found, "conv_dw", "bfloat16", kernel_size, "eight angles / mean alone")
    assert judged.verdict == ("miss" if step > 0 else "pass")
    assert judged.worst is not None
    assert "28x28" in judged.worst[1]


@pytest.mark.parametrize(("kernel_size", "least"), [(7, 1.6), (31, 5.0)])
@pytest.mark.parametrize("step", [1, -1])
def test_the_published_kernel(kernel_size: int, least: float, step: int) -> None:
    found = verdict.lines(rows(lambda spec: {"old": least + 0.001 * step} if spec.kernel_size == kernel_size else {}))
    judged = [line for line in found if line.what == "published kernel / ours" and line.kernel_size == kernel_size]
    assert {line.verdict for line in judged} == {"pass" if step > 0 else "miss"}


@pytest.mark.parametrize("step", [1, -1])
def test_the_fastest_peer(step: int) -> None:
    bad = grids.spec("conv", (512, 56, 56), 7, (0.0,), dtype="float16")
    found = verdict.lines(rows(lambda spec: {"peer": 1 + 0.001 * step} if spec == bad else {}))
    judged = line(found, "conv", "float16", 7, "fastest peer / ours")
    assert judged.verdict == ("pass" if step > 0 else "miss")
    assert judged.worst is not None
    assert judged.worst[1].endswith(": compiled_gather")


def test_a_partial_table_is_open_or_missed_but_never_passed() -> None:
    specs = [spec for spec in TABLE.specs if angles_text(spec) in ("0", "45", verdict.ALL)]
    found = verdict.lines(rows(specs=specs))
    assert {line.verdict for line in found} == {"open", "none"}
    assert {line.what for line in found if line.verdict == "none"} == {"slowest angle / fastest", "eight angles / mean alone"}
    assert line(found, "conv", "float32", 7, "copy / ours").values.__len__() == 9
    bad = grids.spec("conv", (512, 14, 14), 7, (45.0,))
    found = verdict.lines(rows(lambda spec: {"ours": 1.2, "floor": 2.0} if spec == bad else {}, specs))
    assert line(found, "conv", "float32", 7, "slowest angle / fastest").verdict == "miss"  # more angles cannot mend it
    assert {line.verdict for line in verdict.lines([])} == {"none"}


def test_ours_is_what_a_caller_gets(good: list[Row]) -> None:
    spec = TABLE.specs[0]
    mine = [made for made in good if made.spec == spec.key]
    assert verdict.served(mine).method == TUNED  # type: ignore[union-attr]  # though it were the slower
    assert verdict.served([made for made in mine if made.method != TUNED]).method == DEFAULT  # type: ignore[union-attr]
    assert verdict.served([dataclasses.replace(made, cache="warm") for made in mine]) is None


@pytest.mark.parametrize(("op", "dtype", "what"), [("conv", "float32", "copy / ours"), ("conv_dw", "bfloat16", "fastest peer / ours")])
def test_a_wrong_kernel_is_a_miss(op: str, dtype: str, what: str, good: list[Row]) -> None:
    spec = grids.spec(op, (512, 28, 28), 31, (90.0,), dtype=dtype)
    wrong = dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "floor_ratio"), None) | {"cache": "", "checked": False, "note": "wrong: off by 3"}
    bad = [dataclasses.replace(made, **wrong) if made.spec == spec.key and made.method == TUNED else made for made in good]
    judged = line(verdict.lines(bad), op, dtype, 31, what)
    assert judged.verdict == "miss"
    assert "N=64: wrong: off by 3" in judged.broken[0]
    assert "wrong: off by 3" in "\n".join(verdict.report([judged]))


def test_other_problems_are_beside_the_table() -> None:
    stem = grids.networks().specs[0]
    odd = [*cell(stem, peer=0.9), *cell(grids.spec("conv", (512, 56, 56), 7), batch=1), *cell(grids.spec("conv", (128, 56, 56), 7))]
    assert {line.verdict for line in verdict.lines(odd)} == {"none"}
    text = verdict.notes(odd, False)
    assert text[0] == "other problems: ours is the fastest in 2 of 3 cells with a peer"
    assert "stride 2 N=64: compiled_gather takes 0.900 of our time" in text[1]
    assert sum(len(line.values) for line in verdict.lines(odd, anywhere=True) if line.what == "copy / ours") == 2


def test_files_are_joined_and_printed(tmp_path: Path) -> None:
    spec, other = TABLE.specs[0], TABLE.specs[1]
    write_csv([*cell(spec, ours=3.0), *cell(other)], tmp_path / "first.csv")
    write_csv(cell(spec), tmp_path / "second.csv")
    paths = [tmp_path / "first.csv", tmp_path / "second.csv"]
    joined = verdict.joined(paths)
    assert [made.median_ms for made in joined if made.method == TUNED] == [1.0, 1.0]
    app = typer.Typer()
    app.command()(verdict.main)
    done = CliRunner().invoke(app, [str(path) for path in paths])
    assert done.exit_code == 0, done.output
    assert "0 missed" in done.output
    done = CliRunner().invoke(app, ["--strict", str(paths[0])])
    assert done.exit_code == 1
    assert "| miss |" in done.output
    assert CliRunner().invoke(app, [str(tmp_path / "absent.csv")]).exit_code == 1


# ---- pictures -----------------------------------------------------------------------------------


def test_the_roofline_is_drawn(good: list[Row], tmp_path: Path) -> None:
    clocked = [dataclasses.replace(made, hardware="NVIDIA H200", clocks="sm 1980 MHz, memory 3201 MHz", gbps=4300.0) for made in good]
    assert roofline.bandwidth(clocked) == 4300
    assert roofline.peak(clocked) == pytest.approx(132 * 128 * 2 * 1.98)
    assert roofline.peak(good) is None
    intensity, speed, _ = roofline.place(good[0])  # conv, K=31, 56x56 in 1 ms
    assert intensity == pytest.approx(31 * 2 / 8, rel=0.01)
    assert speed == pytest.approx(2 * 31 * 64 * 512 * 56 * 56 / 1e6)
    assert len(list(roofline.points(good))) == len(TABLE.specs)
    for name, rows in (("all", clocked), ("plain", good)):
        picture = roofline.draw(rows, tmp_path / f"{name}.png")
        assert picture is not None
        assert picture.stat().st_size > 10_000
    assert roofline.draw([], tmp_path / "none.png") is None


def test_a_large_table_is_drawn_in_part(good: list[Row], tmp_path: Path) -> None:
    from PIL import Image

    with Image.open(plot.draw(good, tmp_path / "bars.png")) as image:
        assert image.size[1] < 6000


# ---- the grids ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "quick"), list(itertools.product(grids.GRIDS, ("cpu", "cuda"), (False, True))))
def test_grids_hold_different_problems(name: str, kind: str, quick: bool) -> None:
    grid = grids.GRIDS[name](kind, quick)
    assert grid.specs
    assert len(set(grid.specs)) == len(grid.specs)
    assert grid.batch >= 1


def test_the_cuda_table_is_the_issues() -> None:
    wanted = {
        (op, side, taps, dtype, angles)
        for op, side, taps, dtype, angles in itertools.product(verdict.OPS, (14, 28, 56), (7, 31), verdict.DTYPES, (*verdict.ALONE, verdict.ALL))
    }
    assert {(spec.op, spec.height, spec.kernel_size, spec.dtype, angles_text(spec)) for spec in TABLE.specs} == wanted
    assert TABLE.batch == 64
    assert {spec.channels for spec in TABLE.specs} == {512}
    assert all(len(spec.parts()) == 8 for spec in TABLE.specs[:54])  # the eight-angle cells come first, float32 before halves
    assert {spec.dtype for spec in TABLE.specs[:18]} == {"float32"}


def test_the_published_grid_has_the_angles_that_were_run() -> None:
    grid = grids.published("cuda")
    assert {spec.op for spec in grid.specs} == {"conv", "conv_dw"}  # no gradient of x
    ran = {spec.taps for spec in grid.specs}
    assert grids.spec("conv", (1, 1, 1), 31, (209.155,)).taps in ran
    assert grids.spec("conv", (1, 1, 1), 31, (116.62,)).taps in ran
    assert grids.spec("conv", (1, 1, 1), 31, (90.0,)).taps not in ran
    assert (grid.batch, {spec.channels for spec in grid.specs}, {spec.height for spec in grid.specs}) == (64, {512}, {14, 28, 56})


def test_stems_and_one_image_are_there() -> None:
    assert {(spec.height, spec.stride) for spec in grids.networks().specs[:12]} == {(224, (2, 2)), (112, (2, 2))}
    single = grids.batch_of_one("cuda")
    assert single.batch == 1
    assert {"float32", "bfloat16"} == {spec.dtype for spec in single.specs}
