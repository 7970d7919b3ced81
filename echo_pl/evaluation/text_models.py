"""Scores by language models and text encoders on the user's disk.

Nothing is downloaded and no remote code runs. transformers is imported when a model is loaded. A model with random weights is an
error. The detail of a model holds a digest of its weights and the version of transformers, for signatures.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from echo_pl.metrics.models import EmbeddingSimilarity, Perplexity

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""Patterns of weight files; transformers loads the first that matches."""
_POINTER = b"version https://git-lfs.github.com/spec/"


def load_language_model(path: Path | str, device: str = "cpu") -> Perplexity:
    """Perplexity under a causal language model in a folder, or in a ``.gguf`` file.

    With a bos token all tokens of a text are scored, without one all but the first. Texts longer than the context of the model
    are scored in windows.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is not a causal language model (an encoder with a language-model head is not one), or its files are damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    file = _present(path)
    gguf = file.name if file.suffix == ".gguf" else None
    folder = file.parent if gguf else file
    _check_architecture(file, _loaded(AutoConfig, folder, gguf).architectures)
    tokenizer = _loaded(AutoTokenizer, folder, gguf)
    model = _whole_model(AutoModelForCausalLM, folder, gguf).to(device).eval().requires_grad_(False)
    _check_causal(file, model)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    window = int(getattr(model.config, "max_position_embeddings", 1024))

    def score(text: str) -> tuple[float, int]:
        ids = torch.tensor(start + tokenizer(text, add_special_tokens=False)["input_ids"], device=device)
        return surprise(lambda ids_T: model(input_ids=ids_T[None]).logits[0], ids, window)

    first = "bos first" if start else "first token not scored"
    return Perplexity(score, f"{file.name}, {_origin(file)}, {first}, windows of {window} tokens")


@torch.no_grad()
def surprise(logits: Callable[[Tensor], Tensor], ids_T: Tensor, window: int) -> tuple[float, int]:
    """Sum of -log p of every token but the first, and the number of these tokens.

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


def load_text_encoder(path: Path | str, device: str = "cpu", batch_size: int = 32) -> EmbeddingSimilarity:
    """Cosine by a sentence encoder in a folder, with the pooling that its ``1_Pooling/config.json`` names (without one: mean of
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

    return EmbeddingSimilarity(encode, folder.name, f"{_origin(folder)}, pooling {pooling}, at most {longest} tokens")


def pooled(hidden_BTE: Tensor, present_BT: Tensor, pooling: str) -> Tensor:
    """(B, E): the first token, or the mean of all tokens but padding."""
    if pooling == "cls":
        return hidden_BTE[:, 0]
    weights = present_BT[..., None].to(hidden_BTE.dtype)
    return (hidden_BTE * weights).sum(1) / weights.sum(1).clamp(min=1)


def weight_files(path: Path) -> list[Path]:
    """Weight files of a folder by name, an adapter beside the weights included; a file is its own only weight file."""
    if path.is_file():
        return [path]
    found = next((files for files in map(sorted, map(path.glob, _WEIGHTS)) if files), [])
    return [*found, *sorted(path.glob("adapter_model*"))]


def weights_digest(path: Path) -> str:
    """First 12 hexadecimal digits of the SHA-256 of all bytes of :func:`weight_files`, one file after another.

    Reads every byte (about a second for a gigabyte), because names, sizes and shapes do not change with training. The same weights
    in other files have another digest. Tokenizer and configuration are not part of it.

    Raises:
        ValueError: there are no weights.
    """
    files = weight_files(path)
    if not files:
        raise ValueError(f"{path} has no weights: there is neither {' nor '.join(_WEIGHTS)}")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:12]


def check_not_pointers(path: Path) -> None:
    """Raise ValueError if weights, configuration or tokenizer are pointers of Git LFS instead of the files."""
    beside = [] if path.is_file() else [*path.glob("*.json"), *path.glob("*.model")]
    for file in [*weight_files(path), *sorted(beside)]:
        with file.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                raise ValueError(f"{file} is a pointer of Git LFS, not the file itself: run git lfs pull in {file.parent}")


def _pooling(folder: Path) -> str:
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    config = json.loads(file.read_text(encoding="utf-8"))
    chosen = {name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on is True}
    known = {frozenset({"mean_tokens"}): "mean", frozenset({"cls_token"}): "cls"}
    if frozenset(chosen) not in known:
        raise ValueError(f"{file} pools by {sorted(chosen)}; only mean_tokens and cls_token are supported")
    return known[frozenset(chosen)]


def _present(path: Path | str) -> Path:
    file = Path(path).resolve()
    if not file.exists():
        raise FileNotFoundError(f"no model at {path}: give a folder in the layout of Hugging Face; nothing is fetched")
    check_not_pointers(file)
    return file


def _origin(file: Path) -> str:
    import transformers

    return f"weights sha256 {weights_digest(file)}, transformers {transformers.__version__}"


def _loaded(kind: Any, folder: Path, gguf: str | None = None) -> Any:
    with _as_value_errors(kind.__name__, folder):
        return kind.from_pretrained(folder, gguf_file=gguf, local_files_only=True, trust_remote_code=False)


def _whole_model(kind: Any, folder: Path, gguf: str | None = None, *, unused: str = "(none)") -> Any:
    """Load a model whose weights are all in the folder; weights that begin with ``unused`` may be missing."""
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
    """Turn the errors of from_pretrained for other models and damaged files into ValueError."""
    try:
        yield
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        message = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} cannot be loaded by {kind}: {message or type(error).__name__}") from error


def _check_architecture(file: Path, architectures: Sequence[str] | None) -> None:
    """Check the architecture in the configuration before gigabytes are read; old configurations have none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if architectures and not set(architectures) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise ValueError(f"{file} is not a causal language model: its configuration names {', '.join(architectures)}")


@torch.no_grad()
def _check_causal(file: Path, model: Any) -> None:
    """Raise ValueError if the logits of a token depend on later tokens.

    ``is_decoder`` in the configuration is not enough: some families drop it, and a BertLMHeadModel without it sees the whole text.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    ids_T = torch.arange(8, device=model.device) % vocabulary
    others_T = (ids_T + 7) % vocabulary
    others_T[0] = ids_T[0]
    first_V, second_V = (model(input_ids=ids[None]).logits[0, 0] for ids in (ids_T, others_T))
    rounding = 16 * torch.finfo(first_V.dtype).eps * float(first_V.abs().max())
    if float((first_V - second_V).abs().max()) > rounding:
        raise ValueError(
            f"{file} is not a causal language model: its {type(model).__name__} reads tokens after the scored one, so a "
            "perplexity would be meaningless"
        )
