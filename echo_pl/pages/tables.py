"""One table as aligned text or as Markdown; ``templates/macros.html`` draws the same table as HTML."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MISSING = "–"
Record = Mapping[str, Any]


class Column(NamedTuple):
    """Heading of a column, the text of its cell for a record, and its meaning for the legend."""

    heading: str
    cell: Callable[[Record], str]
    meaning: str = ""
    left: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text under headings.

    Args:
        headings: one for each column.
        rows: cells as text, as many as there are headings.
        left: places of the columns that are aligned left; the others are aligned right.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Collection[int] = (0,)

    @classmethod
    def from_records(cls, columns: Sequence[Column], records: Iterable[Record]) -> Table:
        """Table with one row for each record."""
        rows = [[column.cell(record) for column in columns] for record in records]
        return cls([column.heading for column in columns], rows, [i for i, column in enumerate(columns) if column.left])

    def text(self) -> str:
        """Table for a terminal: columns padded with spaces, a rule below the headings.

        >>> print(Table(["model", "tps"], [["ar", "9"], ["dcd", "120"]]).text())
        model  tps
        -----  ---
        ar       9
        dcd    120
        """
        widths = [max(map(len, column)) for column in zip(self.headings, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            padded = (
                cell.ljust(width) if place in self.left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join(padded).rstrip()

        return "\n".join(map(line, [self.headings, ["-" * width for width in widths], *self.rows]))

    def markdown(self) -> str:
        r"""Table in Markdown; a vertical bar or a line break inside a cell does not end the cell.

        >>> print(Table(["model", "tps"], [["a|b", "9"]]).markdown())
        | model | tps |
        | :-- | --: |
        | a\|b | 9 |
        """
        rule = [":--" if place in self.left else "--:" for place in range(len(self.headings))]
        lines = [[" ".join(cell.split("\n")).replace("|", "\\|") for cell in row] for row in (self.headings, rule, *self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(name: str) -> Callable[[Record], str]:
    """Cell that shows a value as it is."""
    return lambda record: MISSING if record[name] is None else str(record[name])


def number(name: str, digits: int, *, scale: float = 1.0) -> Callable[[Record], str]:
    """Cell that shows ``scale`` times a value with a fixed number of digits after the point."""
    return lambda record: MISSING if record[name] is None else f"{record[name] * scale:.{digits}f}"
