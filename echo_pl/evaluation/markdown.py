"""``report.md``: the table, the plot and how to reproduce them. Knows rows and file names only."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from echo_pl.evaluation.plot import quality_speed_figure
from echo_pl.evaluation.rows import Row
from echo_pl.evaluation.table import comparison_table, legend, score_variants
from echo_pl.io.atomic import write_bytes_atomic, write_text_atomic
from echo_pl.pages.tables import Table


def write_report(
    path: Path | str,
    title: str,
    rows: Sequence[Row],
    *,
    introduction: str = "",
    notes: Sequence[str] = (),
    signatures: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    reproduce: str = "",
) -> Path:
    """Write the report, and its plot as ``<name>.png`` beside it; both atomically.

    Args:
        path: where the Markdown goes.
        title: heading.
        rows: rows of the comparison.
        introduction: a paragraph under the title.
        notes: what the figures say, one bullet each.
        signatures: the variant of every score, for the small print.
        seconds: wall time per step of the run.
        reproduce: the command that makes the report.
    """
    path = Path(path)
    plot = path.with_suffix(".png")
    buffer = io.BytesIO()
    quality_speed_figure(rows).savefig(buffer, format="png", dpi=130)
    write_bytes_atomic(plot, buffer.getvalue())
    variants = f"<sub>{score_variants(signatures)}</sub>" if signatures else ""
    parts = [
        f"# {title}",
        introduction,
        comparison_table(rows).markdown(),
        legend(),
        variants,
        "\n".join(f"- {note}" for note in notes),
    ]
    parts.append(f"![Finding F1 and valid sentences over speed]({plot.name})")
    if seconds:
        steps = Table(["step", "seconds"], [[step, f"{value:.0f}"] for step, value in seconds.items()])
        parts += ["## Wall time", steps.markdown()]
    if reproduce:
        parts += ["## How to reproduce", f"```sh\n{reproduce}\n```"]
    return write_text_atomic(path, "\n\n".join(part for part in parts if part) + "\n")
