"""tvm-orient bench: rows printed and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import TINY, fake, orient, printed_json
from tvm_orient.problem.spec import ConvSpec


def test_bench_prints_and_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rich.table import Table

    @dataclass(frozen=True)
    class Row:
        spec: str
        method: str
        ms: float
        note: str = ""
        ours: bool = True

    def bench(specs: list[ConvSpec], device: Any, *, batch: int, peers: bool, repeats: int, report: Callable[[str], None]) -> list[Row]:
        report("conv: ours")
        report("conv: theirs")
        return [Row(spec.key, "peers" if peers else "alone", batch * repeats, "wrong: off by 1" if spec.op == "conv_dw" else "") for spec in specs]

    def table(rows: list[Row]) -> Table:
        made = Table("spec", "ms")
        for row in rows:
            made.add_row(row.spec, str(row.ms))
        return made

    fake(monkeypatch, "bench.bench", bench=bench)
    fake(monkeypatch, "bench.tables", table=table)
    fake(monkeypatch, "bench.rows", write_csv=lambda rows, path: path.write_text(f"{len(rows)} rows\n"))
    result = orient("bench", "--target", "cpu", *TINY, "--angles", "0", "--batch", 4, "--repeats", 3, "--csv", tmp_path / "speed.csv")
    assert "12" in result.stdout
    assert result.stderr == "conv: ours\n"  # now and then a line
    assert (tmp_path / "speed.csv").read_text() == "1 rows\n"
    found = printed_json("bench", "--target", "cpu", *TINY, "--angles", "0", "--no-peers", "--op", "all", code=1)  # one kernel of ours is wrong
    assert [row["method"] for row in found["rows"]] == ["alone"] * 3
    assert found["batch"] == 8
