"""Print to the console that the benchmark scripts share, and name the exit status of one that its time ended."""

from __future__ import annotations

from rich.console import Console

UNFINISHED = 3  # exit status of a script whose time was over before its work

console = Console(markup=False, emoji=False, highlight=False)
if not console.is_terminal:
    console.width = 120


def say(text: str) -> None:
    """Print one line, however long."""
    console.print(text, soft_wrap=True)
