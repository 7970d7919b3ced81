"""Language models and text encoders that the user has on disk, as the callables that scores ask for.

Nothing is fetched: a path that is not there is an error. No remote code is run. transformers is imported when a model is loaded.
A model is refused if any of its weights would be random; what it is called says which weights they are, and whose code ran them.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from echo_pl.evaluation.model_files import refuse_pointers, weights_digest


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A causal language model as a score."""

    name: str
    detail: str
    """What else a signature must say."""
    score: Callable[[str], tuple[float, int]]
    """From a text to the sum of -log p over its tokens, and their number."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A sentence encoder."""

    name: str
    detail: str
    encode: Callable[[Sequence[str]], Tensor]
    """From N texts to (N, E)."""


def load_language_model(path: Path | str, device: str = "cpu") -> LanguageModel:
    """Load a causal language model from a folder, or from a ``.gguf`` file.

    With a bos token (as the tokenizer says) all tokens of a text are scored, without one all but the first. Texts that are
    longer than the model are scored in windows.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is not a causal language model (an encoder is none, whatever head it has), or its files are damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    file = _present(path)
    gguf = file.name if file.suffix == ".gguf" else None
    folder = file.parent if gguf else file
    _refuse_other_architectures(file, _loaded(AutoConfig, folder, gguf).architectures)
    tokenizer = _loaded(AutoTokenizer, folder, gguf)
    model = _whole_model(AutoModelForCausalLM, folder, gguf).to(device).eval().requires_grad_(False)
    _refuse_bidirectional(file, model)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    window = int(getattr(model.config, "max_position_embeddings", 1024))

    def score(text: str) -> tuple[float, int]:
        ids = torch.tensor(start + tokenizer(text, add_special_tokens=False)["input_ids"], device=device)
        return surprise(lambda ids_T: model(input_ids=ids_T[None]).logits[0], ids, window)

    first = "bos first" if start else "first token not scored"
    return LanguageModel(name=file.name, detail=f"{_origin(file)}, {first}, windows of {window} tokens", score=score)


@torch.no_grad()
def surprise(logits: Callable[[Tensor], Tensor], ids_T: Tensor, window: int) -> tuple[float, int]:
    """Sum of -log p of every token but the first, and how many these are.

    Args:
        logits: from (T,) token ids to (T, V).
        ids_T: the text.
        window: most tokens at once; the next window begins with the last token of the one before.
    """
    total, scored = 0.0, 0
    for begin in range(0, len(ids_T) - 1, window - 1):
        part = ids_T[begin : begin + window]
        log_probs = logits(part)[:-1].float().log_softmax(-1)
        total -= float(log_probs.gather(-1, part[1:, None]).double().sum())
        scored += len(part) - 1
    return total, scored


def load_text_encoder(path: Path | str, device: str = "cpu", batch_size: int = 32) -> TextEncoder:
    """Load a sentence encoder from a folder, with the pooling that its ``1_Pooling/config.json`` names (without one: mean of
    tokens).

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is not an encoder, its files are damaged, or it pools in another way.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = _present(path)
    tokenizer = _loaded(AutoTokenizer, folder)
    model = _whole_model(AutoModel, folder, unused="pooler.").to(device).eval().requires_grad_(False)
    pooling = _pooling(folder)
    longest = int(getattr(model.config, "max_position_embeddings", 512))

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        parts = []
        for begin in tqdm(range(0, len(texts), batch_size), desc=f"embeddings by {folder.name}", unit="batch", leave=False):
            tokens = tokenizer(
                list(texts[begin : begin + batch_size]), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            ).to(device)
            hidden_BTE = model(**tokens).last_hidden_state.float()
            parts.append(pooled(hidden_BTE, tokens["attention_mask"], pooling).cpu())
        return torch.cat(parts)

    detail = f"{_origin(folder)}, pooling {pooling}, at most {longest} tokens"
    return TextEncoder(name=folder.name, detail=detail, encode=encode)


def pooled(hidden_BTE: Tensor, present_BT: Tensor, pooling: str) -> Tensor:
    """(B, E): the first token, or the mean of those that are no padding."""
    if pooling == "cls":
        return hidden_BTE[:, 0]
    weights = present_BT[..., None].to(hidden_BTE.dtype)
    return (hidden_BTE * weights).sum(1) / weights.sum(1).clamp(min=1)


def _pooling(folder: Path) -> str:
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    config = json.loads(file.read_text(encoding="utf-8"))
    chosen = {name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on is True}
    known = {frozenset({"mean_tokens"}): "mean", frozenset({"cls_token"}): "cls"}
    if frozenset(chosen) not in known:
        raise ValueError(f"{file} pools by {sorted(chosen)}; only mean_tokens or cls_token is known here")
    return known[frozenset(chosen)]


def _present(path: Path | str) -> Path:
    file = Path(path).resolve()
    if not file.exists():
        raise FileNotFoundError(f"no model at {path}: give a folder in the layout of Hugging Face; nothing is fetched")
    refuse_pointers(file)
    return file


def _origin(file: Path) -> str:
    import transformers

    return f"weights sha256 {weights_digest(file)}, transformers {transformers.__version__}"


def _loaded(kind: Any, folder: Path, gguf: str | None = None) -> Any:
    with _as_value_errors(kind.__name__, folder):
        return kind.from_pretrained(folder, gguf_file=gguf, local_files_only=True, trust_remote_code=False)


def _whole_model(kind: Any, folder: Path, gguf: str | None = None, *, unused: str = "none is") -> Any:
    """A model all of whose weights are in the folder, but for those that begin with ``unused``: nobody asks them."""
    with _as_value_errors(kind.__name__, folder):
        model, found = kind.from_pretrained(
            folder, gguf_file=gguf, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(unused))
    if missing:
        raise ValueError(
            f"{folder} does not hold all of a {type(model).__name__}: {len(missing)} of its weights would be random "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
        )
    return model


@contextmanager
def _as_value_errors(kind: str, folder: Path) -> Iterator[None]:
    """What from_pretrained raises for folders that are no such model, and for damaged files, as one error."""
    try:
        yield
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} cannot be loaded by {kind}: {said or type(error).__name__}") from error


def _refuse_other_architectures(file: Path, architectures: Sequence[str] | None) -> None:
    """Before gigabytes are read: what the configuration itself says that it is. Old ones do not say."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if architectures and not set(architectures) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise ValueError(f"{file} is no causal language model, its configuration says {', '.join(architectures)}")


@torch.no_grad()
def _refuse_bidirectional(file: Path, model: Any) -> None:
    """Ask the model itself whether a token sees those behind it: ``is_decoder`` of a configuration is kept by some families only,
    and a BertLMHeadModel without it sees the whole text."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids_T = torch.arange(8, device=model.device) % vocabulary
    others_T = (ids_T + 7) % vocabulary
    others_T[0] = ids_T[0]
    first_V, second_V = (model(input_ids=ids[None]).logits[0, 0] for ids in (ids_T, others_T))
    rounding = 16 * torch.finfo(first_V.dtype).eps * float(first_V.abs().max())
    if float((first_V - second_V).abs().max()) > rounding:
        raise ValueError(
            f"{file} is no causal language model: its {type(model).__name__} reads the tokens behind the one it scores, so a "
            "perplexity would mean nothing"
        )
