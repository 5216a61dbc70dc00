# mypy: disable-error-code="valid-type,misc,no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"
"""The stage of the generic kernel of a CPU: macros that copy a band of the source into it, between its halo.

A stage has `rows` rows of `across` parts of `columns` elements, of which `lead` stand before it. Its places are those of `generic_args.generic_args`.
"""

from __future__ import annotations

from typing import Any


def inside(lanes: int, vector: Any, width: Any) -> Any:
    """Returns which lanes of a vector, counted from the start of a row, lie inside it."""
    from tvm.script import tirx as T

    return T.Ramp(vector * lanes, 1, lanes) < T.Broadcast(width, lanes)


def row_copy(dtype: str, sums: str, lanes: int) -> Any:
    """Returns a macro that copies a row by whole vectors, the last of them filled up with zeros."""
    from tvm.script import tirx as T

    kind = f"{sums}x{lanes}"

    @T.inline
    def copy(stage, start, source, a, b, row, width):
        for j in T.serial(width // lanes):
            stage[T.Ramp(start + j * lanes, 1, lanes)] = T.Cast(kind, source[a, b, row, T.Ramp(j * lanes, 1, lanes)])
        if width % lanes != 0:
            edge = T.bind(width // lanes)
            stage[T.Ramp(start + edge * lanes, 1, lanes)] = T.Select(
                inside(lanes, edge, width),
                T.Cast(kind, T.masked_load(f"{dtype}x{lanes}", source, a, b, row, T.Ramp(edge * lanes, 1, lanes), inside(lanes, edge, width))),
                T.Broadcast(T.Cast(sums, 0), lanes),
            )

    return copy


def fill(dtype: str, sums: str, lanes: int, circular: bool) -> Any:
    """Returns a macro that fills the stage from source row `first` on: zeros, and what lies inside, columns parted by the stride or spread out."""
    from tvm.script import tirx as T

    whole = (_repeated_rows if circular else _rows_between_zeros)(dtype, sums, lanes)
    apart = _wrapped(sums) if circular else _parted(sums, lanes)

    @T.inline
    def filled(stage, source, a, b, first, rows, height, width, across, columns, left, hole_h, hole_w, lead):
        if across * hole_h * hole_w == 1:
            whole(stage, source, a, b, first, rows, height, width, columns, left, lead)
        else:
            apart(stage, source, a, b, first, rows, height, width, across, columns, left, hole_h, hole_w, lead)

    return filled


def _clearing(sums: str, lanes: int) -> Any:
    """Returns a macro that writes vectors of zeros."""
    from tvm.script import tirx as T

    @T.inline
    def clear(stage, start, count):
        for j in T.serial(count):
            stage[T.Ramp(start + j * lanes, 1, lanes)] = T.Broadcast(T.Cast(sums, 0), lanes)

    return clear


def _rows_between_zeros(dtype: str, sums: str, lanes: int) -> Any:
    """Returns a macro that copies whole rows: after each stand the zeros up to the next one, which may be the halo of both."""
    from tvm.script import tirx as T

    copy, clear = row_copy(dtype, sums, lanes), _clearing(sums, lanes)

    @T.inline
    def fill_rows(stage, source, a, b, first, rows, height, width, columns, left, lead):
        above = T.bind(T.min(rows, T.max(0, -first)))
        below = T.bind(T.max(above, T.min(rows, height - first)))
        clear(stage, 0, (lead + left + above * columns) // lanes)
        for r in T.serial(below - above):
            start = T.bind(lead + left + (above + r) * columns)
            covered = T.bind((width + lanes - 1) // lanes)
            copy(stage, start, source, a, b, first + above + r, width)
            clear(stage, start + covered * lanes, columns // lanes - covered)
        clear(stage, lead + left + below * columns, (rows - below) * columns // lanes + 1)

    return fill_rows


def _repeated_rows(dtype: str, sums: str, lanes: int) -> Any:
    """Returns a macro that copies whole rows of a plane without end, each over and over: a row of the stage begins where one of the source does."""
    from tvm.script import tirx as T

    copy, clear = row_copy(dtype, sums, lanes), _clearing(sums, lanes)

    @T.inline
    def fill_rows(stage, source, a, b, first, rows, height, width, columns, left, lead):
        clear(stage, lead + rows * columns, 1)  # which the last vector of the last row may read
        for r, piece in T.grid(rows, (columns + width - 1) // width):  # what stands beyond the end of one is written over by the next
            copy(stage, lead + r * columns + piece * width, source, a, b, (first + r) % height, width)

    return fill_rows


def _wrapped(sums: str) -> Any:
    """Returns a macro that parts or spreads out a plane without end, element by element."""
    from tvm.script import tirx as T

    @T.inline
    def fill_elements(stage, source, a, b, first, rows, height, width, across, columns, left, hole_h, hole_w, lead):
        for r, phase, j in T.grid(rows, across, columns):
            stage[lead + (r * across + phase) * columns + j] = T.Cast(sums, 0)
            if (first + r) % height % hole_h == 0 and (j * across + phase - left) % width % hole_w == 0:
                stage[lead + (r * across + phase) * columns + j] = T.Cast(
                    sums, source[a, b, (first + r) % height // hole_h, (j * across + phase - left) % width // hole_w]
                )

    return fill_elements


def _parted(sums: str, lanes: int) -> Any:
    """Returns a macro that parts or spreads out the columns between zeros: at a stride of 2, the usual one, by whole vectors."""
    from tvm.script import tirx as T

    clear, wide = _clearing(sums, lanes), 2 * lanes

    def every_second(values: Any, first: int) -> Any:
        """Returns every second lane of a vector, from the first one or from the one after it on."""
        return T.Shuffle([T.Cast(f"{sums}x{wide}", values)], list(range(first, wide, 2)))

    @T.inline
    def halve(stage, start, source, a, b, row, width, columns):
        for j in T.serial(width // wide):
            stage[T.Ramp(start + j * lanes, 1, lanes)] = every_second(source[a, b, row, T.Ramp(j * wide, 1, wide)], 0)
            stage[T.Ramp(start + columns + j * lanes, 1, lanes)] = every_second(source[a, b, row, T.Ramp(j * wide, 1, wide)], 1)
        for j in T.serial(width % wide):
            rest = T.bind(width // wide * wide + j)
            stage[start + rest % 2 * columns + rest // 2] = T.Cast(sums, source[a, b, row, rest])

    @T.inline
    def fill_columns(stage, source, a, b, first, rows, height, width, across, columns, left, hole_h, hole_w, lead):
        clear(stage, 0, (lead + left + rows * across * columns) // lanes + 1)
        for r in T.serial(T.max(0, -first), T.min(rows, height - first)):
            if across == 2:
                halve(stage, lead + r * 2 * columns + left // 2, source, a, b, first + r, width, columns)
            elif (first + r) % hole_h == 0:
                for phase in T.serial(across):
                    for j in T.serial(((width - phase + across - 1) // across + hole_w - 1) // hole_w):
                        stage[lead + (r * across + phase) * columns + left // across + j * hole_w] = T.Cast(
                            sums, source[a, b, (first + r) // hole_h, j * across + phase]
                        )

    return fill_columns
