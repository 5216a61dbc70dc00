"""Put what a GPU run left to its places in a checkout: tables by the name of the card, tuning records, and the comparison with the targets.

    python -m benchmarks.gpu.collect DIR

A file that is there keeps its rows; those of the same problem are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tvm_orient.bench.rows import FLOORS, Row, cells, read_csv, write_csv
from tvm_orient.errors import InvalidArgument, OrientError
from tvm_orient.kernels import resolve, source_hash
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.records import merge, store
from tvm_orient.records.plausible import impossible
from tvm_orient.records.record import Record
from tvm_orient.tuning.winner import MARGIN

from ..report import sheets
from ..report.plot import draw
from ..report.targets import joined, lines, notes, report
from ..report.terminal import say
from ..static import model_error
from . import counters
from .jobs import choices_of
from .results import FACTS, RESULTS, read

TRIALS = ("device", "part", "problem", "spec", "template", "version", "decisions", "batch", "median_us", "spread_us", "gbps", "error", "failure", "date")
_TRIAL_KEY = ("device", "part", "spec", "template", "version", "decisions", "batch")
LOGS = Path(__file__).resolve().parents[2] / "tuning_logs"
_Result = dict[str, Any]


def collect(folder: Path, results: Path, shipped: Path, any_source: bool = False, predict: bool = False) -> Iterator[str]:
    """Write tables to results and records to shipped from a run's output; says what went where, and the verdict.

    Args:
        any_source: make records of kernels whose generating code is not known to be that of this checkout.
        predict: compare the table with the static model too, which compiles and traces every kernel of it.

    Raises:
        InvalidArgument: folder holds no results, or those of several cards.
    """
    found, known = list(read(folder).values()), folder / FACTS
    if not found:
        raise InvalidArgument(f"a run leaves {RESULTS}, got none in {folder}: give the folder that the run was told with --out")
    facts = json.loads(known.read_text()) if known.exists() else {}
    device = _device(found, facts, folder)
    results.mkdir(parents=True, exist_ok=True)
    table, fresh = results / f"{device}.csv", dict[tuple[str, int], list[Row]]()
    for result in found:
        fresh |= cells(Row(**row) for row in result.get("rows", ()))
    rows = [row for cell in fresh.values() for row in cell]
    if rows:
        kept = cells(read_csv(table) if table.exists() else []) | fresh
        every = [row for cell in kept.values() for row in cell]
        write_csv(every, table)
        yield f"{table}: {len(fresh)} cells of this run, {len(kept)} in all"
        if any(row.floor and row.median_ms for row in every):
            yield f"{draw(every, table.with_suffix('.png'))}: the layers among them"
    if tried := [row for result in found if (row := _trial(result, device)) is not None]:
        path = results / f"{device}-trials.csv"
        yield f"{path}: {len(tried)} trials of this run, {sheets.add(path, TRIALS, tried, _TRIAL_KEY)} in all"
    if launches := [row for report in sorted(folder.glob("ncu-*.csv")) for row in counters.rows(report, report.with_suffix(".jsonl"))]:
        path = results / f"{device}-counters.csv"
        if others := {row["device"] for row in launches} - {device}:
            raise InvalidArgument(f"the counters must be of the card of the results, {device}, got {min(others)} in {folder}: collect each card by itself")
        yield f"{path}: {len(launches)} launches of this run, {sheets.add(path, counters.COLUMNS, launches, counters.KEY)} in all"
    yield from _records(found, facts, rows, shipped, any_source)
    if predict and rows:
        model_error.compare(str(table))
    if table.exists():
        all_rows = joined([table])
        yield from ["", *report(lines(all_rows)), *notes(all_rows, False)]


def _device(found: Sequence[_Result], facts: dict[str, Any], folder: Path) -> str:
    """Returns the slug of the one card that the results are of."""
    slugs = {row["device"] for result in found for row in result.get("rows", ())} | {result["device"] for result in found if "device" in result}
    slugs |= {facts["device"]["slug"]} if "device" in facts else set()
    if len(slugs) != 1:
        named = ", ".join(sorted(slugs)) or "none that is named"
        raise InvalidArgument(f"results must be of one card, got {named} in {folder}: collect each card's folder by itself")
    return str(slugs.pop())


def _trial(result: _Result, device: str) -> dict[str, Any] | None:
    """Returns the row of a kernel that was timed by itself, or that was to be and failed; None for other results."""
    if result.get("do", "time") != "time" or not ({"median", "error"} & set(result)) or len(result["choices"]) != 1:
        return None
    name, version, decisions, _ = result["choices"][0]
    times = {f"{what}_us": f"{1e6 * result[what]:.3f}" if what in result else None for what in ("median", "spread")}
    numbers = {"gbps": f"{result['gbps']:.1f}" if "gbps" in result else None, "error": f"{result['error_of']:.3g}" if "error_of" in result else None}
    chosen = json.dumps(dict(decisions), sort_keys=True, separators=(",", ":"))
    what = {"device": device, "part": result["part"], "problem": result["name"], "spec": result["spec"], "template": name, "version": version}
    return {**what, "decisions": chosen, "batch": result["batch"], **times, **numbers, "failure": result.get("error"), "date": result.get("date")}


# ---- records ------------------------------------------------------------------------------------


def _records(found: Sequence[_Result], facts: dict[str, Any], rows: Sequence[Row], shipped: Path, any_source: bool) -> Iterator[str]:
    """Adds a record for each problem whose best candidate beat the default in turn by the tuner's margin; says what came of it."""
    finals = [result for result in found if result.get("do") == "final"]
    if not finals:
        yield "records: none, as no candidate was timed in turn with its default"
        return
    source = facts.get("kit", {}).get("source")
    if source != source_hash.source_hash() and not any_source:
        yield f"records: none of {len(finals)}, as other code than this checkout's generated the kernels; --any-source makes them all the same"
        return
    made: dict[str, list[Record]] = {}
    for result in finals:
        record, why = record_of(result, facts, rows)
        if record is None:
            yield f"no record: {result['name']}: {why}"
        else:
            made.setdefault(ConvSpec.op_of_key(record.spec), []).append(record)
    for op, fresh in sorted(made.items()):
        place = store.log_path(shipped, fresh[0].device, op)
        old = list(store.read(place).records) if place.exists() else []
        kept = merge.prune([*old, *fresh])
        store.write(kept, place)
        yield f"{place}: {len(fresh)} records of this run, {len(kept)} in all"


def record_of(result: _Result, facts: dict[str, Any], rows: Iterable[Row]) -> tuple[Record | None, str]:
    """Returns (the record of a comparison between a problem's best candidate and its default, ""), or (None, why there is none)."""
    if "error" in result:
        return None, result["error"]
    best, base = result["median"], result["default"]
    if best > base * (1 - MARGIN):
        return None, f"the default is within {MARGIN:.0%} of the best found"
    spec, device = ConvSpec.from_key(result["spec"]), Device(**facts["device"])
    floor = result.get("floor") or _floor(spec, result["batch"], rows)
    if floor is None:
        return None, "no copy was timed in this run, by which a record says its floor"
    if why := impossible(spec, result["batch"], 1e6 * best, 1e6 * floor):
        return None, f"times that cannot be true: {why}"
    (choice,) = choices_of(result)
    record = Record(
        spec=spec.key, template=choice.template, template_version=choice.version, decisions={**choice.by_name}, device=device.slug,
        median_us=1e6 * best, spread_us=1e6 * result["spread"], default_us=1e6 * base, floor_us=1e6 * floor, error=result["error_of"],
        provenance={
            "gpu": device.name, "cc": device.arch, "units": device.units, "driver": facts.get("driver"), "date": result["date"], "trials": result["trials"],
            "seed": 0, "batch": result["batch"], **facts["kit"].get("versions", {}),
        },
    )  # fmt: skip
    refused = resolve.accepts(spec, device, record)
    return (None, refused) if refused else (record, "")


def _floor(spec: ConvSpec, batch: int, rows: Iterable[Row]) -> float | None:
    """Returns the seconds that a copy takes to move the problem's bytes, by the copy of the nearest size that was timed in the run."""
    speeds = [(abs(row.height * row.width - spec.height * spec.width), row.gbps) for row in rows if row.method == FLOORS[0] and row.gbps]
    return spec.bytes_moved(batch) / (1e9 * min(speeds)[1]) if speeds else None


# ---- the command --------------------------------------------------------------------------------


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What the run was told with --out.")],
    any_source: Annotated[bool, typer.Option("--any-source", help="Make records of kernels that other code generated too.")] = False,
    predict: Annotated[bool, typer.Option("--predict/--no-predict", help="Compare with the static model, for minutes.")] = True,
) -> None:
    """Put what a GPU run left to its places in this checkout, and print how it compares with the targets."""
    try:
        for line in collect(folder, sheets.RESULTS, LOGS, any_source, predict):
            say(line)
    except OrientError as problem:
        say(f"error: {problem}")
        raise typer.Exit(1) from problem


if __name__ == "__main__":
    typer.run(main)
