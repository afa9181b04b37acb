"""Tables as plain text, for the end of a job."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """``rows`` under ``heads`` in aligned columns: the first flush left, the others right."""
    grid = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in grid) for column in range(len(heads))]
    grid.insert(1, ["-" * width for width in widths])
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in grid)
    return "\n".join(line.rstrip() for line in lines)
