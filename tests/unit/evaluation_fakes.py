"""Stand-ins for samplers, judges and data, small enough to check by eye."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_pl.sampling import Recorder
from echo_pl.structs import Batch, DecodeResult, ReportText, SpecialTokens

SPECIAL = SpecialTokens(pad=0, eos=1, mask=2, image=3, never_sampled=(0, 2, 3))
SENTENCES = {
    "the lungs are clear": None,
    "the heart is enlarged": "cardiomegaly",
    "there is a left pleural effusion": "effusion",
    "the bones are intact": None,
    "no acute disease": None,
    "cardiomegaly": "cardiomegaly",
}
WORDS = sorted({word for sentence in SENTENCES for word in [*sentence.split(), "."]} | {"Findings:", "Impression:"})
IDS = {word: index + 4 for index, word in enumerate(WORDS)}


@dataclass(frozen=True)
class Parsed:
    findings: frozenset[str]
    sentences: tuple[tuple[str, bool], ...]
    well_formed: bool


class FakeJudge:
    signature = "six sentences"

    def parse(self, report: ReportText) -> Parsed:
        parts = [part.strip() for part in f"{report.findings} {report.impression}".split(".") if part.strip()]
        sentences = tuple((part + ".", part in SENTENCES) for part in parts)
        found = {SENTENCES[part] for part in parts if SENTENCES.get(part)}
        return Parsed(frozenset(found), sentences, bool(parts) and all(valid for _, valid in sentences))


def detokenize(tokens: Tensor) -> str:
    """Words with a space before each, a full stop without, and nothing for control tokens."""
    words = [WORDS[token - 4] for token in tokens.tolist() if token >= 4]
    return " ".join(words).replace(" .", ".")


def tokenize(text: str) -> list[int]:
    return [IDS[word] for word in text.replace(".", " .").split()]


REPORTS = (
    ReportText(findings="the lungs are clear. the heart is enlarged.", impression="cardiomegaly."),
    ReportText(findings="there is a left pleural effusion. the bones are intact.", impression="no acute disease."),
    ReportText(findings="the lungs are clear. the bones are intact.", impression="no acute disease."),
)


def make_batch(indices: range | list[int]) -> Batch:
    size = len(indices)
    return Batch(
        keys=tuple(f"study-{index}" for index in indices),
        context_ids_BP=torch.tensor([[index] for index in indices]),
        context_lengths_B=torch.ones(size, dtype=torch.long),
        response_ids_BR=torch.zeros(size, 1, dtype=torch.long),
        response_lengths_B=torch.ones(size, dtype=torch.long),
        pixel_values=torch.zeros(size, 1),
        image_grid_thw=torch.ones(size, 3, dtype=torch.long),
        references=tuple(REPORTS[index % len(REPORTS)] for index in indices),
    )


def batches(studies: int, size: int) -> list[Batch]:
    return [make_batch(list(range(start, min(start + size, studies)))) for start in range(0, studies, size)]


class FakeSampler:
    """Writes the reference, ``block_size`` tokens per forward; with ``stutter`` it writes every "the" twice."""

    def __init__(self, block_size: int = 8, stutter: bool = False, seconds: float = 0.5) -> None:
        self.block_size, self.stutter, self.seconds = block_size, stutter, seconds
        self.seen: list[tuple[str, ...]] = []

    def generate(self, batch: Batch, recorder: Recorder | None = None) -> DecodeResult:
        self.seen.append(batch.keys)
        torch.rand(3)  # a sampler may draw, e.g. with a temperature
        tokens = [self._response(report) for report in batch.references]
        L = self.block_size
        blocks = torch.tensor([(len(row) + 1 + L - 1) // L for row in tokens])  # + 1: eos
        if recorder is not None:
            self._record(tokens, blocks, recorder)
        none = torch.zeros(len(batch), dtype=torch.bool)
        return DecodeResult(
            tokens=tuple(torch.tensor(row) for row in tokens),
            stopped_B=~none,
            looped_B=none,
            nfe_B=blocks,
            kv_write_nfe_B=torch.zeros_like(blocks),
            written_B=blocks * L,
            forwards=int(blocks.max()),
            prefill_seconds=0.1,
            decode_seconds=self.seconds,
            block_size=L,
        )

    def _response(self, report: ReportText) -> list[int]:
        tokens = tokenize(f"Findings: {report.findings} Impression: {report.impression}")
        return [token for token in tokens for _ in range(2 if self.stutter and token == IDS["the"] else 1)]

    def _record(self, tokens: list[list[int]], blocks: Tensor, recorder: Recorder) -> None:
        """Even places of a block are committed in step 1, odd ones in step 2."""
        L = self.block_size
        for block in range(int(blocks.max())):
            rows = [row for row in range(len(tokens)) if block < blocks[row]]
            padded = [tokens[row] + [SPECIAL.eos] * L * 2 for row in rows]
            token_AL = torch.tensor([row[block * L : (block + 1) * L] for row in padded])
            for step in (1, 2) if L > 1 else (1,):
                committed = (torch.arange(L) % 2 == step - 1).expand(len(rows), L)
                scores = torch.nn.functional.one_hot(token_AL, len(WORDS) + 4) * (1.5 + 3 * step)
                recorder.on_commit(
                    rows_A=torch.tensor(rows),
                    block=block,
                    step=step,
                    committed_AL=committed,
                    token_AL=token_AL,
                    log_probs_ALV=scores.float().log_softmax(-1),
                )
