"""Tokenizers: ours and a saved one of Qwen's."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from echo_pl.data.loading.tokenizer import CONTROL_TOKENS, MASK, load_tokenizer, train_tokenizer, word_starts
from echo_pl.data.synthetic.synthetic import SyntheticCorpus
from echo_pl.reports.response import FORMS, format_response


@pytest.fixture(scope="module")
def texts():
    studies = SyntheticCorpus(seed=2).studies("train", 300)
    return [FORMS["en"].instruction, *(format_response(study.normalized) for study in studies)]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    target = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts, target)
    return target


def test_training_is_deterministic(texts, folder, tmp_path):
    train_tokenizer(texts, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_text_comes_back(texts, folder):
    tokenizer, _ = load_tokenizer(folder)
    for text in [*texts, "Unseen: naïve 所见 \t 12.5 cm?"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_words_are_mostly_single_tokens(texts, folder):
    tokenizer, _ = load_tokenizer(folder)
    pieces = [len(tokenizer(f" {word}")["input_ids"]) for text in texts[1:] for word in text.strip(".").split()]
    assert sum(count <= 2 for count in pieces) / len(pieces) > 0.95  # a word, or a word and its full stop


def test_word_starts_are_a_space_and_a_letter(texts, folder):
    """Every word behind another in the corpus begins with one; figures, signs, ends of words and control tokens are none."""
    tokenizer, special = load_tokenizer(folder)
    starts = set(word_starts(tokenizer))
    assert not starts & {special.eos, *special.never_sampled}
    for text in texts[1:50]:
        for word in text.split()[1:]:
            first, *others = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            assert (first in starts) == (tokenizer.decode([first])[1:2].isalpha()), word
            assert not starts & set(others)
    for sign in ("1", " 1", ".", "\n", " (", "所"):
        assert not starts & set(tokenizer(sign, add_special_tokens=False)["input_ids"][:1])


def test_special_tokens(folder):
    tokenizer, special = load_tokenizer(folder)
    assert len({special.pad, special.eos, special.mask, special.image}) == 4
    assert special.eos not in special.never_sampled
    assert {special.pad, special.mask, special.image} <= set(special.never_sampled)
    assert len(special.never_sampled) == len(CONTROL_TOKENS) - 1
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (special.pad, special.eos)


def test_qwen_tokenizer(shared_data):
    folder = shared_data / "qwen2_tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    _, special = load_tokenizer(folder)
    assert (special.pad, special.eos, special.image, special.mask) == (151643, 151645, 151655, 151669)
    assert special.eos not in special.never_sampled
    assert 151644 in special.never_sampled


def test_a_missing_mask_token_is_added_and_reported(folder, tmp_path, caplog):
    stripped = tmp_path / "stripped"
    AutoTokenizer.from_pretrained(folder).save_pretrained(stripped)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (stripped / name).read_text().replace(MASK, "<|other|>")
        (stripped / name).write_text(content)
    tokenizer, special = load_tokenizer(stripped)
    assert special.mask == len(tokenizer) - 1
    assert special.mask in special.never_sampled
    assert "had no mask token" in caplog.text


def test_bad_tokenizers(folder, texts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*corpus make"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="vocab_size must be at least 263, got 100"):
        train_tokenizer(texts, tmp_path, vocab_size=100)
    foreign = tmp_path / "foreign"
    AutoTokenizer.from_pretrained(folder).save_pretrained(foreign)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (foreign / name).write_text((foreign / name).read_text().replace("<|vision_start|>", "<|other|>"))
    with pytest.raises(ValueError, match=r"lacks \['<\|vision_start\|>'\]"):
        load_tokenizer(foreign)
