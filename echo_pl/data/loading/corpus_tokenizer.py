"""The tokenizer of one corpus or several: the one they were made with, or one that is given."""

from __future__ import annotations

from pathlib import Path

from echo_pl.data.loading.corpus_set import CorpusSet
from echo_pl.data.loading.tokenizer import ReportTokenizer, load_tokenizer, vocabulary_fingerprint
from echo_pl.structs import SpecialTokens


def corpus_tokenizer(corpora: CorpusSet, given: Path | None) -> tuple[ReportTokenizer, SpecialTokens]:
    """Load the tokenizer, and what samplers and mathematics have to know of it.

    Args:
        corpora: Whose reports are tokenized.
        given: Folder of a saved tokenizer; None: the corpora's own, which must be one and the same.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If two corpora have other vocabularies, naming both.
    """
    if given is not None:
        return load_tokenizer(given)
    of = {corpus: load_tokenizer(corpus.folder.tokenizer(corpus.index)) for corpus in corpora.corpora}
    corpora.common(
        "vocabulary",
        lambda corpus: vocabulary_fingerprint(of[corpus][0]),
        "give data.tokenizer_path=<the tokenizer for both>; reports are tokenized as they are read",
    )
    return of[corpora.corpora[0]]
