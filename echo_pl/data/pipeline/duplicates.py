"""Step 3: near-duplicates among the reports of the training split.

Validation and test keep all of theirs, as removing some would change what they measure. Who searches, and how, is another's;
this hands the texts over one by one and writes down which studies go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from echo_pl.data.pipeline.entries import Entry, read_entries
from echo_pl.data.pipeline.files import read_json
from echo_pl.data.pipeline.listing import Listing, chunk_path
from echo_pl.data.pipeline.parts import DuplicateSearch
from echo_pl.data.pipeline.settings import DuplicateText
from echo_pl.data.pipeline.splits import Splitter
from echo_pl.io.atomic import write_json


def find_duplicates(
    search: DuplicateSearch,
    threshold: float,
    *,
    what: DuplicateText,
    folder: Path,
    listing: Listing,
    base: Path,
    splitter: Splitter,
    kept: Path,
    result: Path,
    on_entries: Callable[[int], None],
) -> Mapping[int, str]:
    """Return the places of the studies that go, each with a sentence about which one it is like.

    Args:
        search: who finds them.
        threshold: cosine from which on a report goes.
        what: which text is compared.
        folder: of normalized entries.
        listing: how many files there are.
        base: of relative paths.
        splitter: says what the training split is.
        kept: folder of what a search that was ended had found out.
        result: file for the answer; if it is there, it is the answer.
        on_entries: told how many entries more were looked at; each is looked at twice.
    """
    if not result.is_file():

        def texts(train: bool) -> Iterator[tuple[str, str]]:
            for number in listing.chunks:
                count = 0
                for entry in read_entries(chunk_path(folder, number), base):
                    split = splitter.split_of(entry.study) if isinstance(entry, Entry) else None
                    if isinstance(entry, Entry) and split is not None and (split == "train") == train:
                        yield str(entry.place), _text(entry, what)
                    count += 1
                on_entries(count)

        found = {
            one.key: f"cosine {one.cosine:.3f} with entry {one.of}{' of a held-out split' if one.held_out else ''}"
            for one in search.find(texts(train=True), texts(train=False), threshold, kept)
        }
        write_json(result, {"left_out": found})
    return {int(place): detail for place, detail in read_json(result)["left_out"].items()}


def _text(entry: Entry, what: DuplicateText) -> str:
    if what == "original":
        return f"{entry.study.report.findings} {entry.study.report.impression}"
    assert entry.normalized is not None  # a study without one is left out by now
    text = entry.normalized.text
    return f"{text.findings} {text.impression}"
