"""logs: the tuning logs as files: where they are, whether they are sound, and how to bring them together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .. import env
from ..errors import InvalidArgument, LogFileError
from ..problem.spec import ConvSpec
from ..records.plausible import doubtful
from .application import app, complain, examples
from .output import Json, console, microseconds, plain_file, print_json, size, speedup, table

if TYPE_CHECKING:
    from ..records.record import Record

_EXAMPLES = examples("logs list", "logs merge a.jsonl b.jsonl -o both.jsonl")
logs_app = typer.Typer(no_args_is_help=True, help="Tuning logs: list, show, check, merge and prune them.", epilog=_EXAMPLES)
app.add_typer(logs_app, name="logs")

Force = Annotated[bool, typer.Option("--force", help="Replace the file even where that drops records or lines that cannot be read.")]


@logs_app.command(epilog=examples("logs where"))
def where(as_json: Json = False) -> None:
    """Print the folders that lookup reads, first to last."""
    folders = _folders()
    if as_json:
        print_json({name: str(folder) for name, folder in folders.items()})
        return
    if "user" not in folders:
        console().print("user     none: no home, and TVM_ORIENT_LOG_DIR is not set", soft_wrap=True)
    for name, folder in folders.items():
        note = "" if folder.is_dir() else "  (not made yet)"
        console().print(f"{name:<8} {folder}{note}", soft_wrap=True)


def _folders() -> dict[str, Path]:
    """Returns the folders of logs by what they are called; a user without a home has none of their own."""
    return dict(zip(["user"], env.user_log_dirs(), strict=False)) | {"shipped": env.shipped_log_dir()}


@logs_app.command("list", epilog=examples("logs list", "logs list --json"))
def list_files(as_json: Json = False) -> None:
    """List the log files of this machine: the user's and those that came with the package."""
    rows = [{"source": name, **_summary(path)} for name, folder in _folders().items() for path in sorted(folder.glob("*/*.jsonl"))]
    if as_json:
        print_json(rows)
        return
    printer = console()
    if not rows:
        printer.print("no tuning logs yet: `tvm-orient tune` writes them")
        return
    shown = table("from", "device", "op", "records", "bad lines", "size", right=("records", "bad lines", "size"), fold=("device",))
    for row in rows:
        path = Path(row["file"])
        bad = Text("unreadable" if row["error"] else str(row["bad"]), style="red" if row["bad"] or row["error"] else "")
        shown.add_row(row["source"], path.parent.name, path.stem, str(row["records"]), bad, size(path.stat().st_size))
    printer.print(shown)


@logs_app.command(epilog=examples("logs check tuning_logs/nvidia-h200/conv.jsonl", "logs check tuning_logs --json"))
def check(files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Log files, or folders of them.")], as_json: Json = False) -> None:
    """Read every line; exit 1 where one is bad, blank, of another schema, of an older template, slower than the default, or impossible.

    Impossible are times that contradict themselves, such as a kernel faster than a copy: the machine was busy. Such a record never answers.
    """
    rows = [_summary(path) for path in _expanded(files)]
    wrong = [row for row in rows if row["error"] or any(row[name] for name in _FLAWS)]
    if as_json:
        print_json(rows)
    else:
        _print_check(rows)
    for row in rows:
        if row["error"]:
            complain(row["error"])
        for reason in row["reasons"]:
            complain(f"{row['file']}: {reason}")
    if wrong:
        raise typer.Exit(1)


_FLAWS = {"bad": "bad", "blank": "blank", "foreign": "schema", "old": "old", "slow": "slower", "impossible": "doubtful"}


def _expanded(files: list[Path]) -> list[Path]:
    """Returns the files themselves, and the log files under each folder.

    Raises:
        InvalidArgument: a folder without log files.
    """
    found = []
    for path in files:
        inside = [path]
        if path.is_dir():  # hidden folders hold the journals of tuning, which are no logs
            inside = sorted(file for file in path.rglob("*.jsonl") if not any(name.startswith(".") for name in file.relative_to(path).parts))
        if not inside:
            raise InvalidArgument(f"a folder of tuning logs holds .jsonl files, got none under {path}")
        found += inside
    return found


def _summary(path: Path) -> dict[str, Any]:
    """Returns what a file holds, counted; error says why where it cannot be read as a whole."""
    from ..records import store

    try:
        log, error = store.read(path), None
    except LogFileError as problem:
        log, error = store.LogFile(path), str(problem)
    slow = sum(record.median_us > record.default_us for record in log.records)
    counts = {"records": len(log.records), "bad": log.bad, "blank": log.blank, "foreign": log.foreign, "old": _old(log.records), "slow": slow}
    why = [f"{record.spec}: {reason}" for record in log.records if (reason := _doubt(record)) is not None]
    return {"file": str(path), **counts, "impossible": len(why), "reasons": why, "error": error}


def _doubt(record: Record) -> str | None:
    """Returns why the times of a record cannot be believed."""
    return doubtful(record.spec, record.median_us, record.spread_us, record.floor_us, record.provenance)


def _old(records: Iterable[Record]) -> int:
    """Returns how many records lookup passes over, whatever their times: their template is gone or has another version now, or does not take them."""
    from ..kernels.resolve import outdated

    return sum((why := outdated(record)) is not None and why != _doubt(record) for record in records)


def _print_check(rows: list[dict[str, Any]]) -> None:
    shown = table("file", "records", *_FLAWS.values(), right=("records", *_FLAWS.values()), fold=("file",))
    for row in rows:
        counts = [Text(str(row[name]), style="red" if row[name] else "dim") for name in _FLAWS]
        shown.add_row("/".join(Path(row["file"]).parts[-2:]), Text("unreadable", style="red") if row["error"] else str(row["records"]), *counts)
    console().print(shown)


@logs_app.command("show", epilog=examples("logs show conv-c512h14w14-s1-zeros-float32-nchw-k31a22.5", "logs show tuning_logs/nvidia-h200/conv.jsonl"))
def show_records(
    what: Annotated[str, typer.Argument(metavar="SPEC|FILE", help="A spec key, whose records are looked for in all folders; or a log file.")],
    as_json: Json = False,
) -> None:
    """Show the records of a problem, or of a file, best first: what was decided, how fast it is, and where and when it was measured."""
    from ..records import store

    path = Path(what)
    if path.suffix == ".jsonl" or path.is_file():
        found = [(record, path) for records in store.read(path).by_spec.values() for record in records]
    else:
        keys = {part.plain.key for _, _, part in ConvSpec.from_key(what).parts()}
        files = [file for folder in _folders().values() for file in sorted(folder.glob("*/*.jsonl"))]
        found = [(record, file) for file in files for key, records in store.read(file).by_spec.items() if key in keys for record in records]
    if as_json:
        print_json([{"file": str(file), "impossible": _doubt(record), "record": record.model_dump(by_alias=True)} for record, file in found])
        return
    printer = console()
    if not found:
        printer.print(f"no record of {what}: `tvm-orient tune {what}` may make one, `tvm-orient explain {what}` says what answers now", soft_wrap=True)
    for record, file in found:
        printer.print(Text(record.spec, style="bold"), soft_wrap=True)
        for name, value in _facts(record, file).items():
            printer.print(f"  {name:<10} {value}", soft_wrap=True)


def _facts(record: Record, file: Path) -> dict[str, str]:
    """Returns a record in words."""
    times = f"{microseconds(record.median_us)} (spread {microseconds(record.spread_us)})"
    facts = {
        "kernel": f"{record.template} v{record.template_version}: {' '.join(f'{name}={value}' for name, value in record.decisions.items())}",
        "time": f"{times}, {speedup(record.default_us, record.median_us)} as fast as the default, {record.floor_us / record.median_us:.0%} of a copy's speed",
        "error": f"{record.error:.1g}, relative",
        "device": record.device,
        "measured": " ".join(f"{name}={value}" for name, value in record.provenance.items()),
        "file": str(file),
    }
    doubt = _doubt(record)
    old = ["of an older template: it does not answer"] if _old([record]) else []
    flaws = [*old, *([f"impossible: {doubt}"] if doubt else [])]
    return facts | ({"flaws": "; ".join(flaws)} if flaws else {})


@logs_app.command(epilog=examples("logs merge here.jsonl there.jsonl -o conv.jsonl"))
def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Log files of one device and op.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Bring files together: the best record of each problem and template. Order and repetition do not matter."""
    from ..records.merge import merge as merged

    _write(merged(files), files, out, force, as_json)


@logs_app.command(epilog=examples("logs prune conv.jsonl", "logs prune conv.jsonl -o best.jsonl"))
def prune(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A log file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write there and leave FILE as it is.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Keep only the best record of each problem."""
    from ..records import store
    from ..records.merge import prune as pruned

    _write(pruned(store.read(file).records), [file], file if out is None else out, force, as_json)


def _write(records: list[Record], files: list[Path], out: Path, force: bool, as_json: bool) -> None:
    """Write records that came from files, and say what that did."""
    from ..records import store

    plain_file(out)
    read = [store.read(path) for path in files]
    before, skipped = sum(len(log.records) for log in read), sum(log.bad + log.foreign for log in read)
    store.write(records, out, force)
    homes = sorted({f"{record.device}/{ConvSpec.op_of_key(record.spec)}.jsonl" for record in records})
    if as_json:
        print_json({"file": str(out), "records_read": before, "records": len(records), "lines_skipped": skipped, "belongs_in": homes})
        return
    printer = console()
    skips = f", {skipped} lines skipped that this version cannot read" if skipped else ""
    printer.print(f"{out}: {len(records)} records, from {before} in {len(files)} {'file' if len(files) == 1 else 'files'}{skips}", soft_wrap=True)
    if len(homes) > 1:
        printer.print(f"these belong in {len(homes)} files, lookup reads one for each device and op: {', '.join(homes)}", style="yellow", soft_wrap=True)
