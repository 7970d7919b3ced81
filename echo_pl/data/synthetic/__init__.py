"""One reader or generator per corpus, and the judge of each."""

from __future__ import annotations

from echo_pl.data.store.study import Version
from echo_pl.data.synthetic.nih import nih_judge
from echo_pl.data.synthetic.synthetic import synthetic_judge
from echo_pl.reports.report import ReportJudge


def make_judge(corpus: str, version: Version) -> ReportJudge | None:
    """Return the judge of a corpus's reports in one version, or None if it has none."""
    if corpus == "synthetic":
        return synthetic_judge(version)
    if corpus == "nih":
        return nih_judge(version)
    return None
