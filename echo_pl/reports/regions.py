"""The seven regions of a normalized report, in the order of every report (``tables/regions.yaml``).

docs/explain/data.md, describes the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from echo_pl.reports.tables import build_rows, read_table


@dataclass(frozen=True, kw_only=True)
class Region:
    """One region of the chest and the sentences that state that it is normal."""

    name: str
    """Identifier, as in :attr:`echo_pl.reports.report.Statement.section`."""
    title: str
    normal: tuple[str, ...]
    """Whole sentences, the most frequent first."""
    title_zh: str
    normal_zh: tuple[str, ...]
    fillings: tuple[Mapping[str, Any], ...]
    """Sentences for a report that does not mention the region; see ``canonical.filling``."""


REGIONS: Final = tuple(build_rows(Region, "regions", read_table("regions")).values())
REGION_NAMES: Final = tuple(region.name for region in REGIONS)
OTHER: Final = "other"
"""Section of the statements that belong to none of the seven regions; it comes last."""
SECTIONS: Final = (*REGION_NAMES, OTHER)
