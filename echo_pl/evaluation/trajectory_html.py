"""One decode in reading order: every token coloured by the step at which it was committed.

Shows the trajectories of docs/explain/method.md, "Stage 3: Direct Conditional Distillation". A
record (plain JSON) holds everything that the page draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from echo_pl.pages.document import render
from echo_pl.reports.response import format_response
from echo_pl.structs import ReportText, SpecialTokens, Trajectory

LOW_CONFIDENCE = 0.5
# Ends of a one-hue ramp; dark text reads well on both.
_FIRST_STEP, _LAST_STEP = (230, 240, 250), (110, 168, 222)
_BROKEN = "\ufffd"


def token_pieces(tokens: Tensor, detokenize: Callable[[Tensor], str], special: SpecialTokens) -> list[str]:
    """Text of each token; the pieces of ordinary tokens join to the whole text, spaces included.

    A piece is the difference between two decoded prefixes, because a token alone may lose its space. Half a character belongs to
    the token that completes it. Control tokens are named in angle brackets.
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
    """Trajectory as plain JSON; blocks and steps are counted from 1."""
    ids = trajectory.token_R.tolist()
    end = ids.index(special.eos) if special.eos in ids else len(ids)
    control = {*special.never_sampled, special.eos, special.mask, special.pad, special.image}
    # On the absolute grid the first block is short, as the context holds the rest of it.
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


def trajectory_view(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for the ``trajectory`` macro: tokens by block, with colour and tip.

    A confidence below 0.5 is outlined. An autoregressive decode (block size 1) is shown as one run.
    """
    last = max((token["step"] for token in record["tokens"]), default=1)
    tokens = [_token_view(token, last) for token in record["tokens"]]
    blocks = [list(block) for _, block in groupby(tokens, key=lambda token: record["block_size"] > 1 and token["block"])]
    return {
        "key": record["key"],
        "reference": record["reference"],
        "block_size": record["block_size"],
        "blocks": blocks,
        "colours": [_colour(step, last) for step in range(1, last + 1)],
        "low": any(map(_is_low, record["tokens"])),
        "low_confidence": f"{LOW_CONFIDENCE:g}",
    }


def trajectory_document(title: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Page with one section per record."""
    return render("trajectories.html", title=title, trajectories=[trajectory_view(record) for record in records])


def _token_view(token: Mapping[str, Any], last: int) -> dict[str, Any]:
    flags = {"low": _is_low(token), "control": token["control"], "after": token["after_eos"]}
    return {
        "block": token["block"],
        "text": token["text"].replace("\n", "⏎"),
        "style": " ".join(["token", *(name for name, on in flags.items() if on)]),
        "colour": _colour(token["step"], last),
        "tip": f"block {token['block']} · step {token['step']} · confidence {token['confidence']:.2f}",
    }


def _is_low(token: Mapping[str, Any]) -> bool:
    return token["confidence"] < LOW_CONFIDENCE and not token["after_eos"]


def _colour(step: int, last: int) -> str:
    share = (step - 1) / max(last - 1, 1)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_FIRST_STEP, _LAST_STEP, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
