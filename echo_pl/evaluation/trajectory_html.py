"""One decode as a person reads it: tokens in reading order, coloured by the step at which they were committed.

METHOD.md 3, phase 1, made visible. One record (plain JSON) holds everything; the HTML is drawn from it and from nothing
else. Knows neither models nor files.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from echo_pl.evaluation.document import html_document
from echo_pl.reports.response import format_response
from echo_pl.structs import ReportText, SpecialTokens, Trajectory

LOW_CONFIDENCE = 0.5
# Ends of a one-hue ramp; dark text reads well on both.
_FIRST_STEP, _LAST_STEP = (230, 240, 250), (110, 168, 222)
_BROKEN = "\ufffd"


def token_pieces(tokens: Tensor, detokenize: Callable[[Tensor], str], special: SpecialTokens) -> list[str]:
    """The text of each token, so that the pieces of ordinary tokens join to the whole text, spaces included.

    A token is read as what it adds to the text before it, because a token alone may lose its space or be half a
    character (the piece then goes to the token that completes it). Control tokens are named in angle brackets.
    """
    names = {special.eos: "⟨eos⟩", special.mask: "⟨mask⟩", special.pad: "⟨pad⟩", special.image: "⟨image⟩"}
    control = {*special.never_sampled, *names}
    pieces: list[str] = []
    start, known = 0, ""
    for index, token in enumerate(tokens.tolist()):
        if token in control:
            pieces.append(names.get(token, f"⟨{token}⟩"))
            start, known = index + 1, ""
            continue
        text = detokenize(tokens[start : index + 1])
        if text.endswith(_BROKEN):
            pieces.append("")
            continue
        pieces.append(text.removeprefix(known))
        known = text
    return pieces


def trajectory_record(
    trajectory: Trajectory, detokenize: Callable[[Tensor], str], special: SpecialTokens, reference: ReportText
) -> dict[str, Any]:
    """Everything there is to see, as plain JSON; blocks and steps are counted from 1."""
    ids = trajectory.token_R.tolist()
    end = ids.index(special.eos) if special.eos in ids else len(ids)
    control = {*special.never_sampled, special.eos, special.mask, special.pad, special.image}
    # On the absolute grid (METHOD.md 2) the first block is short: the context has the rest of it.
    before = -len(ids) % trajectory.block_size
    columns = zip(
        ids,
        token_pieces(trajectory.token_R, detokenize, special),
        trajectory.commit_step_R.tolist(),
        trajectory.confidence_R.tolist(),
        strict=True,
    )
    tokens = [
        {
            "id": token,
            "text": text,
            "block": (before + index) // trajectory.block_size + 1,
            "step": step,
            "confidence": round(confidence, 4),
            "control": token in control,
            "after_eos": index > end,
        }
        for index, (token, text, step, confidence) in enumerate(columns)
    ]
    return {
        "key": trajectory.key,
        "block_size": trajectory.block_size,
        "text": detokenize(trajectory.token_R[:end]),
        "reference": format_response(reference),
        "tokens": tokens,
    }


def trajectory_fragment(record: dict[str, Any], *, with_reference: bool = True) -> str:
    """A record as an HTML fragment; the style is in :mod:`echo_pl.evaluation.document`.

    Each token says its block, step and confidence on hover; a confidence under 0.5 is outlined.
    """
    last = max((token["step"] for token in record["tokens"]), default=1)
    in_blocks = record["block_size"] > 1
    blocks = [_block(block, last, numbered=in_blocks) for block in _blocks(record)]
    parts = [f'<div class="tokens">{"".join(blocks)}</div>']
    if record["tokens"]:
        parts.append(_legend(last, steps=in_blocks, low=any(map(_is_low, record["tokens"]))))
    if with_reference:
        parts.append(f'<div class="reference"><b>Reference.</b> {html.escape(record["reference"])}</div>')
    return f'<div class="trajectory">{"".join(parts)}</div>'


def trajectory_document(title: str, records: Sequence[dict[str, Any]]) -> str:
    """A page of its own with one section per record."""
    sections = [f"<h2>{html.escape(record['key'])}</h2>{trajectory_fragment(record)}" for record in records]
    return html_document(title, f"<h1>{html.escape(title)}</h1>{''.join(sections)}")


def _blocks(record: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Tokens by block; autoregressive decodes (block size 1) as a single run."""
    if record["block_size"] == 1:
        return [record["tokens"]] if record["tokens"] else []
    return [list(block) for _, block in groupby(record["tokens"], key=lambda token: token["block"])]


def _block(tokens: Sequence[dict[str, Any]], last: int, *, numbered: bool) -> str:
    spans = "".join(_token(token, last) for token in tokens)
    if not numbered:
        return f'<span class="block run">{spans}</span>'
    return f'<span class="block"><span class="number">{tokens[0]["block"]}</span>{spans}</span><wbr>'


def _token(token: dict[str, Any], last: int) -> str:
    flags = {"low": _is_low(token), "control": token["control"], "after": token["after_eos"]}
    classes = " ".join(["token", *(name for name, on in flags.items() if on)])
    tip = f"block {token['block']} · step {token['step']} · confidence {token['confidence']:.2f}"
    text = html.escape(token["text"]).replace("\n", "⏎")
    return f'<span class="{classes}" style="background:{_colour(token["step"], last)}" title="{tip}">{text}</span>'


def _legend(last: int, *, steps: bool, low: bool) -> str:
    swatches = "".join(f'<span class="token" style="background:{_colour(step, last)}">{step}</span>' for step in range(1, last + 1))
    lines = [f"committed at step {swatches}"] if steps else []
    if low:
        lines.append(f'<span class="token low">dashed</span> confidence under {LOW_CONFIDENCE:g}')
    return f'<div class="legend">{"&ensp;".join(lines)}</div>'


def _is_low(token: dict[str, Any]) -> bool:
    return token["confidence"] < LOW_CONFIDENCE and not token["after_eos"]


def _colour(step: int, last: int) -> str:
    share = (step - 1) / max(last - 1, 1)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_FIRST_STEP, _LAST_STEP, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
