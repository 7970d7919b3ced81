"""Scores by models on disk: a tiny language model and a tiny encoder, made and saved here."""

from __future__ import annotations

import hashlib
import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    __version__,
)

from echo_pl.evaluation.text_models import load_language_model, load_text_encoder, surprise

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 12345\n"
WORDS = ["<pad>", "<unk>", "<bos>", "the", "heart", "is", "normal", "."]


def save_tokenizer(folder, **special: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", **special).save_pretrained(folder)


@pytest.fixture
def language_model(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=32, bos_token_id=2, **sizes)).eval()
    model.save_pretrained(tmp_path / "tiny-lm")
    save_tokenizer(tmp_path / "tiny-lm", bos_token="<bos>")
    return tmp_path / "tiny-lm", model


@pytest.mark.parametrize("bos", [True, False])
def test_the_surprise_is_that_of_the_models_own_loss(language_model, bos):
    folder, model = language_model
    if not bos:
        save_tokenizer(folder)
    ids = torch.tensor([[2, 3, 4, 5, 6]] if bos else [[3, 4, 5, 6]])
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    loaded = load_language_model(folder)
    total, tokens = loaded.score("the heart is normal")
    assert tokens == (4 if bos else 3)
    assert total == pytest.approx(expected, rel=1e-5)
    assert loaded.variant.startswith("perplexity|model:tiny-lm, weights sha256 ")
    assert ("bos first" in loaded.variant) == bos
    assert loaded.score("")[1] == 0


def test_long_texts_are_scored_in_windows_that_leave_no_token_out():
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    seen = []

    def logits(part):
        seen.append(part.tolist())
        return torch.zeros(len(part), 8)

    total, tokens = surprise(logits, ids, 3)
    assert seen == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert (tokens, total) == (6, pytest.approx(6 * math.log(8)))
    assert surprise(logits, ids[:1], 3) == (0.0, 0)


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes)).eval()
    model.save_pretrained(tmp_path / "tiny-encoder")
    save_tokenizer(tmp_path / "tiny-encoder")
    return tmp_path / "tiny-encoder", model


def test_embeddings_are_means_over_tokens_whatever_the_padding(encoder):
    folder, model = encoder
    loaded = load_text_encoder(folder, batch_size=2)
    found = loaded.encode(["the heart is normal .", "heart", "the"])
    for row, ids in zip(found, ([3, 4, 5, 6, 7], [4], [3]), strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert torch.allclose(row, expected, atol=1e-5)
    assert "pooling mean" in loaded.variant
    assert loaded.names == ("cosine_tiny-encoder",)


def test_the_pooling_of_the_folder_is_used(encoder):
    folder, model = encoder
    (folder / "1_Pooling").mkdir()
    config = folder / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[3, 4]])).last_hidden_state[0, 0]
    loaded = load_text_encoder(folder)
    assert torch.allclose(loaded.encode(["the heart"])[0], expected, atol=1e-5)
    assert "pooling cls" in loaded.variant
    config.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="max_tokens"):
        load_text_encoder(folder)


def test_what_is_not_there_is_not_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is fetched"):
        load_language_model("gpt2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_text_encoder(tmp_path / "empty")


def says_architectures(folder, architectures) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": architectures}))


BERT = {"vocab_size": len(WORDS), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_an_encoder_is_no_language_model_whatever_its_configuration_calls_it(kind, tmp_path):
    torch.manual_seed(0)
    kind(BertConfig(**BERT)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bos_token="<bos>")
    with pytest.raises(ValueError, match=f"not a causal language model: its configuration names {kind.__name__}"):
        load_language_model(tmp_path)
    for unsaid in (["BertLMHeadModel"], None):
        says_architectures(tmp_path, unsaid)
        headless = r"6 of its weights would be random \(cls\.predictions"
        message = headless if kind is BertModel else "its BertLMHeadModel reads tokens after the scored one"
        with pytest.raises(ValueError, match=message):
            load_language_model(tmp_path)


def test_a_decoder_of_an_encoders_family_is_a_language_model(tmp_path):
    torch.manual_seed(0)
    BertLMHeadModel(BertConfig(**BERT, is_decoder=True)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bos_token="<bos>")
    assert load_language_model(tmp_path).score("the heart")[1] == 2


def test_an_encoder_may_lack_its_pooler_and_nothing_else(encoder):
    folder, _ = encoder
    BertForMaskedLM(BertConfig(**BERT)).save_pretrained(folder)
    load_text_encoder(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.embeddings.word_embeddings.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of its weights would be random \(embeddings\.word_embeddings\.weight\)"):
        load_text_encoder(folder)


def test_damaged_files_are_one_error_that_names_the_folder(language_model, encoder):
    for (folder, _), load in ((language_model, load_language_model), (encoder, load_text_encoder)):
        file = folder / "model.safetensors"
        whole = file.read_bytes()
        for content, message in (
            (POINTER, f"{file} is a pointer of Git LFS"),
            (b"no weights", f"{folder} cannot be loaded"),
            (whole[:-100], f"{folder} cannot be loaded"),
        ):
            file.write_bytes(content)
            with pytest.raises(ValueError, match=re.escape(message)):
                load(folder)
        file.unlink()
        for content in (b"", b"PK\x03\x04abc", b"no pickle"):
            (folder / "pytorch_model.bin").write_bytes(content)
            with pytest.raises(ValueError, match=re.escape(f"{folder} cannot be loaded")):
                load(folder)
    (folder / "pytorch_model.bin").unlink()
    file.write_bytes(whole)
    (folder / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"tokenizer\.json is a pointer of Git LFS"):
        load_text_encoder(folder)


def test_a_model_is_called_by_its_weights_and_library_as_folders_of_two_models_may_have_one_name(language_model, encoder):
    for (folder, model), load in ((language_model, load_language_model), (encoder, load_text_encoder)):
        first = load(folder).variant
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]
        assert f"weights sha256 {digest}, transformers {__version__}, " in first
        assert load(folder).variant == first
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1
        model.save_pretrained(folder)
        assert load(folder).variant != first
