"""The loss of every stage against the method's text, computed the long way: sequence, mask and sum written out here.

Sequences are laid out token by token, run one sample at a time by the library's own network under the table of
``tests/method.py``, and summed in Python. Networks are float32; the sums agree to 1e-5.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from method import allowed_QK, rad_tokens
from models import SPECIAL, VOCABULARY, make_batch, rows_of, stock_network
from stage_parts import BACKBONE, DECODE, dcd, lively, pretrain, rad, record, write_checkpoint
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from echo_pl.diffusion.losses import DistillationConfig
from echo_pl.diffusion.noise import NoiseConfig, draw_noise
from echo_pl.diffusion.objectives import DirectConditional, NestedConsistency, SequenceLevel
from echo_pl.stages.validation import TextTools
from echo_pl.structs import Batch, ReportText, Trajectory

L, E = 8, SPECIAL.eos
CONTEXTS, RESPONSES = [9, 12, 11], [13, 16, 6]
REL = 1e-5


@pytest.fixture(scope="module")
def text() -> TextTools:
    return TextTools(
        special=SPECIAL,
        vocab_size=VOCABULARY,
        labels=(),
        to_report=lambda tokens: ReportText(findings="", impression=""),
        judge=None,
        fingerprint="",
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    vlm = lively(BACKBONE.build(SPECIAL, VOCABULARY), SPECIAL)
    folder = tmp_path_factory.mktemp("start")
    write_checkpoint(folder / "pretrain.ckpt", vlm, record("pretrain"))
    write_checkpoint(folder / "rad-absolute.ckpt", vlm, record("rad", grid="absolute"))
    return write_checkpoint(folder / "rad.ckpt", vlm, record("rad")).parent


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(CONTEXTS, RESPONSES)


@torch.no_grad()
def log_probs(
    network: Qwen2_5_VLForConditionalGeneration, sample: Batch, context: list[int], noisy: list[list[int]], clean: list[int]
) -> Tensor:
    """Log-softmax over ``[context | noisy copies | clean]`` of one sample."""
    tokens = rad_tokens(len(context), len(context), len(clean), L, len(noisy))
    ids = torch.tensor([context])
    positions, _ = network.model.get_rope_index(
        ids, mm_token_type_ids=(ids == SPECIAL.image).int(), image_grid_thw=sample.image_grid_thw
    )
    behind = int(positions.max()) + 1
    response = torch.arange(behind, behind + len(clean)).repeat(len(noisy) + 1).expand(3, 1, -1)
    return (
        network(
            input_ids=torch.tensor([context + [token for copy in noisy for token in copy] + clean]),
            position_ids=torch.cat([positions, response], dim=2),
            attention_mask={"full_attention": allowed_QK(tokens, tokens, "causal")[None, None]},
            pixel_values=sample.pixel_values,
            image_grid_thw=sample.image_grid_thw,
            use_cache=False,
        )
        .logits[0]
        .log_softmax(-1)
    )


def test_pretrain_is_the_mean_cross_entropy_of_the_response(text, start, batch):
    module = pretrain(text, None)
    module.configure_model()
    network = stock_network(module.model)
    total, count = 0.0, 0
    for row, r in enumerate(RESPONSES):
        sample = rows_of(batch, row)
        ids = torch.cat([sample.context_ids_BP, sample.response_ids_BR], dim=1)
        with torch.no_grad():
            out = (
                network(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    mm_token_type_ids=(ids == SPECIAL.image).int(),
                    pixel_values=sample.pixel_values,
                    image_grid_thw=sample.image_grid_thw,
                )
                .logits[0]
                .log_softmax(-1)
            )
        p = sample.context_ids_BP.shape[1]
        for i in range(r):  # token i of the response is predicted by the token before it
            total -= float(out[p + i - 1, sample.response_ids_BR[0, i]])
            count += 1
    assert count == sum(RESPONSES)
    with torch.no_grad():
        assert float(module.loss(batch)) == pytest.approx(total / count, rel=REL)


@pytest.mark.parametrize("loss_weight", ["elbo", "mean"])
@pytest.mark.parametrize(("grid", "copies", "fill"), [("response", 1, True), ("response", 3, False), ("absolute", 2, True)])
def test_rad_is_the_masked_cross_entropy_of_the_method(text, start, batch, grid, copies, fill, loss_weight):
    noise = NoiseConfig(seed=3, noise_copies=copies)
    decode = replace(DECODE, grid=grid)
    module = rad(text, start / "pretrain.ckpt", decode=decode, noise=noise, loss_weight=loss_weight, supervise_eos_fill=fill)
    module.configure_model()
    network = stock_network(module.model)
    weighted, plain, masked_count, supervised = 0.0, 0.0, 0, 0
    for row, (p, r) in enumerate(zip(CONTEXTS, RESPONSES, strict=True)):
        sample = rows_of(batch, row)
        tail = p % L if grid == "absolute" else 0
        context = sample.context_ids_BP[0, : p - tail].tolist()
        clean = sample.context_ids_BP[0, p - tail :].tolist() + sample.response_ids_BR[0].tolist()
        clean += [E] * (-len(clean) % L)
        scored = [tail <= i < (len(clean) if fill else tail + r) for i in range(len(clean))]
        maskable = torch.tensor([[i >= tail for i in range(len(clean))]])
        drawn = draw_noise(noise, sample.keys, 5, maskable, L)
        noisy = [
            [SPECIAL.mask if masked else token for token, masked in zip(clean, copy, strict=True)]
            for copy in drawn.masked_BKR[0].tolist()
        ]
        out = log_probs(network, sample, context, noisy, clean)
        for k in range(copies):
            for i, token in enumerate(clean):
                supervised += scored[i]
                if scored[i] and noisy[k][i] == SPECIAL.mask:
                    loss = -float(out[len(context) + k * len(clean) + i, token])  # same position, no shift
                    weighted += loss / float(drawn.t_BKR[0, k, i])
                    plain += loss
                    masked_count += 1
    expected = weighted / supervised if loss_weight == "elbo" else plain / masked_count
    with torch.no_grad():
        assert float(module.loss(batch, epoch=5)) == pytest.approx(expected, rel=REL)


def trajectories(grid: str) -> list[Trajectory | None]:
    """Made-up teacher trajectories: two blocks, none, one block; on the absolute grid less what the context tail takes."""
    generator = torch.Generator().manual_seed(6)
    out: list[Trajectory | None] = []
    for row, blocks in enumerate([2, 0, 1]):
        if not blocks:
            out.append(None)
            continue
        length = blocks * L - (CONTEXTS[row] % L if grid == "absolute" else 0)
        token = torch.randint(0, 90, (length,), generator=generator)
        token[length - 3 :] = E
        target = torch.rand(length, VOCABULARY, generator=generator)
        target[:, list(SPECIAL.never_sampled)] = 0.0
        out.append(
            Trajectory(
                key=f"study-{row}",
                block_size=L,
                token_R=token,
                commit_step_R=torch.randint(1, 5, (length,), generator=generator),
                confidence_R=torch.ones(length),
                target_RV=target / target.sum(-1, keepdim=True),
            )
        )
    return out


@pytest.mark.parametrize("objective", ["dcd", "ce"])
@pytest.mark.parametrize("grid", ["response", "absolute"])
def test_dcd_scores_the_fully_masked_response_over_the_pseudo_labels(text, start, batch, grid, objective):
    config = DistillationConfig(eos_weight=0.7)
    name = "rad.ckpt" if grid == "response" else "rad-absolute.ckpt"
    module = dcd(
        text,
        start / name,
        decode=replace(DECODE, grid=grid),
        objective=DirectConditional(config=config) if objective == "dcd" else SequenceLevel(),
    )
    module.configure_model()
    module._trainer = SimpleNamespace(estimated_stepping_batches=10, global_step=0)
    network = stock_network(module.model)
    made = trajectories(grid)
    weighted, weights, cross, eos = 0.0, 0.0, [], []
    for row, (p, trajectory) in enumerate(zip(CONTEXTS, made, strict=True)):
        if trajectory is None:
            continue
        sample = rows_of(batch, row)
        tail = p % L if grid == "absolute" else 0
        context = sample.context_ids_BP[0, : p - tail].tolist()
        opening = sample.context_ids_BP[0, p - tail :].tolist()
        clean = opening + trajectory.token_R.tolist()
        noisy = opening + [SPECIAL.mask] * len(trajectory.token_R)
        out = log_probs(network, sample, context, [noisy], clean)[len(context) + tail :]
        for i, token in enumerate(trajectory.token_R.tolist()):
            P, w = trajectory.target_RV[i], float(trajectory.commit_step_R[i])
            there = P > 0
            weighted += w * float((P[there] * (P[there].log() - out[i][there])).sum())
            weights += w
            cross.append(-float(out[i, token]))
            if token == E:
                eos.append(-float(out[i, E]))
    expected = weighted / weights + 0.7 * sum(eos) / len(eos) if objective == "dcd" else sum(cross) / len(cross)
    with torch.no_grad():
        loss, _ = module.loss(batch, made, epoch=0)
    assert float(loss) == pytest.approx(expected, rel=REL)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("stage", "two_rows"), [("pretrain", 40), ("rad", 96), ("dcd", 60), ("dscd", 60)])
def test_several_studies_in_a_row_have_the_same_loss(text, start, batch, stage, two_rows, rows):
    """Two studies in a row, or all three; the noise is the same. dscd also asks the teacher, whose rows are packed too."""
    pack_tokens = two_rows if rows == 2 else 10_000
    losses = []
    for tokens in (None, pack_tokens):
        if stage == "pretrain":
            module = pretrain(text, None, pack_tokens=tokens)
            arguments = (batch,)
        elif stage == "rad":
            noise = NoiseConfig(seed=3, noise_copies=2)
            module = rad(text, start / "pretrain.ckpt", noise=noise, pack_tokens=tokens)
            arguments = (batch, 5)
        else:
            objective = DirectConditional() if stage == "dcd" else NestedConsistency()
            module = dcd(text, start / "rad.ckpt", objective=objective, pack_tokens=tokens)
            module._trainer = SimpleNamespace(estimated_stepping_batches=10, global_step=0)
            arguments = (batch, trajectories("response"), 0)
        module.configure_model()
        loss = module.loss(*arguments)
        loss = loss if stage in ("pretrain", "rad") else loss[0]
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        losses.append((float(loss.detach()), float(norm)))
    assert losses[0] == pytest.approx(losses[1], rel=REL)
    # A single row has no padding; two of different lengths have some, and not as much as three.
    assert (module.logits.padding["train/padding"] == 0) == (rows == 1)
    assert module.logits.padding["train/padding"] != pytest.approx(module.logits.padding["train/padding_unpacked"])
