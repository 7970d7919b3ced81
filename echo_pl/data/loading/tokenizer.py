"""Tokenizers: a small one trained on a corpus, and any saved one (Qwen2.5-VL's, say), with the ids the method needs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from echo_pl.structs import SpecialTokens

logger = logging.getLogger(__name__)

ReportTokenizer: TypeAlias = PreTrainedTokenizerFast
"""Type of all tokenizers here."""

PAD, EOS, MASK, IMAGE = "<|endoftext|>", "<|im_end|>", "<|MASK|>", "<|image_pad|>"
VISION_START, VISION_END, TURN_START = "<|vision_start|>", "<|vision_end|>", "<|im_start|>"
CONTROL_TOKENS = (PAD, TURN_START, EOS, VISION_START, VISION_END, IMAGE, MASK)
"""The control tokens of Qwen2.5-VL that a chest X-ray prompt uses, and the mask token (docs/explain/method.md)."""


def train_tokenizer(texts: Iterable[str], folder: Path, *, vocab_size: int = 640) -> ReportTokenizer:
    """Train a byte-level BPE tokenizer and save it. Any text can be written with it, and read back exactly.

    Args:
        texts: The corpus to learn merges from.
        folder: Where the tokenizer is saved, in the transformers format.
        vocab_size: Most ids, the 256 bytes and the control tokens included.

    Raises:
        ValueError: If ``vocab_size`` leaves no room for the bytes and the control tokens.
    """
    if vocab_size < 256 + len(CONTROL_TOKENS):
        raise ValueError(f"vocab_size must be at least {256 + len(CONTROL_TOKENS)}, got {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        mask_token=MASK,
        additional_special_tokens=[t for t in CONTROL_TOKENS if t not in (PAD, EOS, MASK)],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def load_tokenizer(path: Path | str) -> tuple[ReportTokenizer, SpecialTokens]:
    """Load a saved tokenizer and find the ids the method needs.

    A tokenizer without a mask token gets one at the end of its vocabulary, for which the model's embeddings need room.

    Raises:
        FileNotFoundError: If there is no tokenizer in ``path``.
        ValueError: If it lacks a control token of Qwen2.5-VL.
    """
    folder = Path(path)
    if not (folder / "tokenizer_config.json").is_file():
        raise FileNotFoundError(
            f"no tokenizer in {folder}; name a folder with a saved tokenizer, or make a corpus, which trains one: "
            f"`echo-pl corpus make synthetic --out {folder.parent}`"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    vocabulary = tokenizer.get_vocab()
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"the tokenizer in {folder} is a {type(tokenizer).__name__}, a fast one is needed")
    missing = [token for token in CONTROL_TOKENS if token not in vocabulary and token != MASK]
    if missing:
        raise ValueError(f"the tokenizer in {folder} lacks {missing}: it is not one of the Qwen2.5-VL kind")
    if MASK not in vocabulary:
        tokenizer.add_special_tokens({"mask_token": MASK})
        logger.warning("the tokenizer in %s had no mask token: %s added as id %d", folder, MASK, len(tokenizer) - 1)
    return tokenizer, _special_tokens(tokenizer)


def vocabulary_fingerprint(tokenizer: ReportTokenizer) -> str:
    """Hash of what every token id means."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def word_starts(tokenizer: ReportTokenizer) -> list[int]:
    """Return the ids whose text begins with a space and a letter: they begin a word after another."""
    control = tokenizer.added_tokens_decoder
    ids = [number for number in range(len(tokenizer)) if number not in control]
    texts = tokenizer.batch_decode([[number] for number in ids], clean_up_tokenization_spaces=False)
    return [number for number, text in zip(ids, texts, strict=True) if text[:1] == " " and text[1:2].isalpha()]


def _special_tokens(tokenizer: ReportTokenizer) -> SpecialTokens:
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in CONTROL_TOKENS}
    control = {*tokenizer.added_tokens_decoder, *ids.values()} - {ids[EOS]}
    return SpecialTokens(
        pad=ids[PAD],
        eos=ids[EOS],
        mask=ids[MASK],
        image=ids[IMAGE],
        never_sampled=tuple(sorted(control)),
    )
