"""Step 3: near-duplicates among the reports of the training split.

Validation and test keep all of theirs, as removing some would change what they measure. Who searches, and how, is another's;
this hands the texts over one by one and writes down which studies go.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from echo_pl.data.pipeline.entries import Entry, read_entries
from echo_pl.data.pipeline.files import read_json, write_json
from echo_pl.data.pipeline.listing import Listing, chunk_path
from echo_pl.data.pipeline.parts import DuplicateSearch
from echo_pl.data.pipeline.settings import DuplicateText
from echo_pl.data.pipeline.splits import Splitter


def find_duplicates(
    search: DuplicateSearch,
    threshold: float,
    *,
    what: DuplicateText,
    folder: Path,
    listing: Listing,
    base: Path,
    splitter: Splitter,
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
        result: file for the answer; if it is there, it is the answer.
        on_entries: told how many entries more were handed over.
    """
    if not result.is_file():
        places = array("q")

        def texts() -> Iterator[str]:
            for number in listing.chunks:
                count = 0
                for entry in read_entries(chunk_path(folder, number), base):
                    count += 1
                    if isinstance(entry, Entry) and splitter.split_of(entry.study) == "train":
                        places.append(entry.place)
                        yield _text(entry, what)
                on_entries(count)

        found = {
            str(places[one.place]): f"cosine {one.similarity:.3f} with entry {places[one.of]}" for one in search(texts(), threshold)
        }
        write_json(result, {"left_out": found})
    return {int(place): detail for place, detail in read_json(result)["left_out"].items()}


def _text(entry: Entry, what: DuplicateText) -> str:
    if what == "original":
        return f"{entry.study.report.findings} {entry.study.report.impression}"
    assert entry.normalized is not None  # a study without one is left out by now
    text = entry.normalized.text
    return f"{text.findings} {text.impression}"
