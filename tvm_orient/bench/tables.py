"""Tables of measured speeds, for terminals and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .rows import DEFAULT, STATES, TUNED, Row, cells, pick

if TYPE_CHECKING:
    from rich.table import Table


# ---- tables -------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """Returns a table for a terminal: one block a cell, one line a method; cold times with their spread, what they mean, and warm times."""
    from rich.table import Table

    sheet = Table.grid(padding=(0, 0, 1, 0))
    for group in cells(rows).values():
        sheet.add_row(_block(group))
    return sheet


def _block(group: list[Row]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    floor = next((row.method for row in group if row.floor), "floor")
    block = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", title=group[0].problem, title_style="bold", title_justify="left")
    for name, width in (("method", 22), ("cold ms", 8), ("spread", 6), ("warm ms", 8), ("GB/s", 6), (f"of {floor}", 7), ("vs ours", 7)):
        block.add_column(name, min_width=width, no_wrap=True, justify="left" if name == "method" else "right")
    block.add_column("result", overflow="fold")
    for method in dict.fromkeys(row.method for row in group):
        own = {row.cache: row for row in group if row.method == method}
        first = next(iter(own.values()))
        shown = own.get("cold", own.get("warm", first))
        style = "bold" if first.ours else "dim" if first.floor or shown.median_ms is None else ""
        times = [_digits(own[state].median_ms) if state in own else "" for state in STATES]
        numbers = [_digits(shown.gbps), _percent(shown.floor_ratio), _times(shown.vs_ours)]
        block.add_row(Text(method, style=style), times[0], _spread(own.get("cold")), times[1], *numbers, _result(shown))
    return block


def _result(row: Row) -> Any:
    from rich.text import Text

    if row.checked:
        return Text(f"error {row.error:.0e}" + (f", {row.note}" if row.note else ""), style="green")
    if row.note.startswith(("wrong", "failed")):
        return Text(row.note, style="red")
    return Text(row.note.partition(":")[0], style="dim")  # the reasons stand in the file


def _spread(row: Row | None) -> str:
    if row is None or not row.median_ms or row.p20_ms is None or row.p80_ms is None:
        return ""
    return f"±{50 * (row.p80_ms - row.p20_ms) / row.median_ms:.0f} %"


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _times(value: float | None) -> str:
    return "" if value is None else f"{_digits(value)}x"


def markdown(rows: Sequence[Row], state: str = "cold") -> str:
    """Returns a table for a page, in Markdown: one line a cell with our times, what they are of the floor's speed, and the fastest peer."""
    head = ("problem", "tuned ms", "of floor", "untuned ms", "floor ms", "fastest peer", "its ms", "peer / ours")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" + " ---: |" * 4 + " --- | ---: | ---: |"]
    for group in cells(rows).values():
        own = {row.method: row for row in group if row.cache == state}
        tuned, default = own.get(TUNED), own.get(DEFAULT)
        best, floor, peer = tuned or default, pick(group, state, floor=True), pick(group, state)
        ratio = _times(peer.vs_ours) if peer else ""
        if peer and peer.vs_ours and peer.vs_ours < 1:
            ratio = f"**{ratio}**"
        texts = [_ms(tuned), _percent(best.floor_ratio if best else None), _ms(default), _ms(floor), peer.method if peer else "none", _ms(peer), ratio]
        lines.append(f"| {' | '.join([group[0].problem, *texts])} |")
    return "\n".join(lines)


def _ms(row: Row | None) -> str:
    return _digits(row.median_ms) if row else ""
