from __future__ import annotations

import json
from html.parser import HTMLParser

import torch
from evaluation_fakes import REPORTS, SPECIAL, FakeSampler, detokenize, make_batch, tokenize

from echo_pl.evaluation.trajectory_html import token_pieces, trajectory_document, trajectory_record
from echo_pl.sampling import TrajectoryRecorder
from echo_pl.structs import ReportText, SpecialTokens, Trajectory


class Tokens(HTMLParser):
    """Collects class and title of every token, and fails on tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[dict[str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag not in ("wbr", "meta", "img"):
            self.open.append(tag)
        if "token" in values.get("class", "").split() and "title" in values:
            self.tokens.append(values)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def trajectory(tokens: list[int], block_size: int, confidence: list[float] | None = None) -> Trajectory:
    size = len(tokens)
    return Trajectory(
        key="study",
        block_size=block_size,
        token_R=torch.tensor(tokens),
        commit_step_R=torch.arange(size) % 3 + 1,
        confidence_R=torch.tensor(confidence or [0.9] * size),
    )


def body(page: str) -> str:
    return page[page.index("<body>") :].replace("</html>", "")


def parse(fragment: str) -> Tokens:
    parser = Tokens()
    parser.feed(fragment)
    assert not parser.open
    return parser


def test_record_of_a_real_recorder() -> None:
    batch, recorder = make_batch([0, 1]), TrajectoryRecorder()
    FakeSampler(4).generate(batch, recorder)
    records = [
        trajectory_record(t, detokenize, SPECIAL, reference)
        for t, reference in zip(recorder.trajectories(batch.keys), batch.references, strict=True)
    ]
    assert records[0]["text"] == records[0]["reference"]  # this sampler writes the reference
    assert [token["block"] for token in records[1]["tokens"][:9]] == [1] * 4 + [2] * 4 + [3]
    assert [token["step"] for token in records[1]["tokens"][:4]] == [1, 2, 1, 2]
    assert json.loads(json.dumps(records)) == records


def test_pieces_join_to_the_text() -> None:
    tokens = torch.tensor([*tokenize("the lungs are clear. the heart"), SPECIAL.eos, SPECIAL.eos])
    pieces = token_pieces(tokens, detokenize, SPECIAL)
    assert "".join(pieces[:-2]) == detokenize(tokens)
    assert pieces[-2:] == ["⟨eos⟩", "⟨eos⟩"]


NO_CONTROL = SpecialTokens(pad=-1, eos=-2, mask=-3, image=-4, never_sampled=())


def test_half_characters_wait_for_the_rest() -> None:
    encoded = "心影".encode()
    pieces = token_pieces(
        torch.tensor(list(encoded)),
        lambda tokens: bytes(tokens.tolist()).decode(errors="replace"),
        NO_CONTROL,
    )
    assert "".join(pieces) == "心影"
    assert len(pieces) == len(encoded)


def test_everything_is_escaped() -> None:
    hostile = '<script>alert("x")</script>'
    reference = ReportText(findings=hostile, impression="")
    record = trajectory_record(trajectory([7, 8], 2), lambda tokens: hostile * len(tokens), SPECIAL, reference)
    page = trajectory_document(hostile, [record | {"key": hostile}])
    assert "<script" not in page
    assert '<script>alert("x")' not in page
    parse(body(page))


def test_tokens_say_step_and_confidence_and_low_ones_are_marked() -> None:
    shown = trajectory([*tokenize("the lungs are"), SPECIAL.eos, SPECIAL.eos, SPECIAL.eos], 3, [0.9, 0.3, 0.8, 0.4, 0.1, 0.9])
    parser = parse(body(trajectory_document("t", [trajectory_record(shown, detokenize, SPECIAL, REPORTS[0])])))
    assert parser.tokens[1]["title"] == "block 1 · step 2 · confidence 0.30"
    low = ["low" in token["class"].split() for token in parser.tokens]
    assert low == [False, True, False, True, False, False]  # the fill after eos is not marked
    assert ["after" in token["class"].split() for token in parser.tokens] == [False] * 4 + [True] * 2


def test_first_block_of_the_absolute_grid_is_short() -> None:
    record = trajectory_record(trajectory(tokenize("the lungs are clear the"), 4), detokenize, SPECIAL, REPORTS[0])
    assert [token["block"] for token in record["tokens"]] == [1, 2, 2, 2, 2]


def test_an_autoregressive_decode_has_no_block_numbers() -> None:
    fragment = body(trajectory_document("t", [trajectory_record(trajectory([7, 8], 1), detokenize, SPECIAL, REPORTS[0])]))
    assert 'class="number"' not in fragment
    assert "committed at step" not in fragment
