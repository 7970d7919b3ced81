"""Last step of the demo: all methods on the same held-out studies, as rows, report, page and plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import load_weights
from echo_pl.backbone.vlm import VLM
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.evaluation.comparison_report import render_page, shown_studies, write_report
from echo_pl.evaluation.harness import EvaluatedMethod, Method, evaluate_methods
from echo_pl.evaluation.rows import KVCache, Setting, comparison_table
from echo_pl.evaluation.trajectory_html import trajectory_record
from echo_pl.io.atomic import write_text_atomic
from echo_pl.sampling import DecodeConfig, TrajectoryRecorder
from echo_pl.sampling.decoder import StageDecoder

BATCH_SIZES = (1, 16)
SHOWN = 6
"""Studies on the page."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The models that are compared."""

    ar: Path
    base: Path
    distilled: Mapping[str, Path]
    """Checkpoints by objective."""


@dataclass(frozen=True, kw_only=True)
class DemoResults:
    """Results, and what is needed to show them."""

    evaluated: Sequence[EvaluatedMethod]
    data: ReportDataModule
    trajectories: Mapping[tuple[str, str], Mapping[str, Any]]
    threads: int

    def write(self, folder: Path, seconds: Mapping[str, float], title: str, command: str) -> dict[str, Any]:
        """Print the table, write report.md and index.html, and return the rows and what belongs to them."""
        rows = [item.row for item in self.evaluated]
        signatures = self.evaluated[0].outcome.signatures
        print("\n" + comparison_table(rows).text())
        notes = [
            winner(rows),
            speed_account(rows),
            f"{self.threads} CPU threads, float32, eager; tokens per second are decode only.",
        ]
        print("\n".join(notes))
        write_report(
            folder / "report.md",
            title,
            rows,
            introduction=notes[0],
            notes=notes[1:],
            signatures=signatures,
            seconds=dict(seconds),
            reproduce=command,
        )
        shown = [item for item in self.evaluated if item.setting.batch_size == 1]
        decoded = set(self.evaluated[0].outcome.keys)
        references = {key: reference for key, reference in _references(self.data).items() if key in decoded}
        studies = shown_studies(shown, references, self.data.images("test", list(references)), self.trajectories)
        page = render_page(
            title, rows, studies, self.data.judge, introduction=" ".join(notes), signatures=signatures, reproduce=command
        )
        write_text_atomic(folder / "index.html", page)
        return {
            "rows": rows,
            "threads": self.threads,
            "signatures": signatures,
        }


def winner(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence about the objective that gives the better one-step model, by finding F1, then by valid sentences."""
    most = max(rows, key=lambda r: r["studies"])  # the first row at a batch size that decodes all studies
    rows = [r for r in rows if r["batch_size"] == most["batch_size"]]
    one = [r for r in rows if r["method"] == "distilled" and r["kv_cache"] == "fused"]
    native = [r for r in rows if r["method"] == "base_one_step"]
    best = max(one, key=lambda r: (r["finding_f1"], r["valid_sentences"]))
    parts = [f"{r['objective']} {r['finding_f1']:.3f} / {r['valid_sentences']:.3f}" for r in one]
    undistilled = "".join(f"; undistilled {r['finding_f1']:.3f} / {r['valid_sentences']:.3f}" for r in native[:1])
    return (
        f"One step per block, finding F1 / valid sentences: {', '.join(parts)}{undistilled}. "
        f"The best one-step model here is {best['objective']}."
    )


def speed_account(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence about the speed at batch 1 relative to the ratio of tokens per forward."""
    ar = next(r for r in rows if r["method"] == "ar" and r["batch_size"] == 1)
    one = [r for r in rows if r["method"] == "distilled" and r["batch_size"] == 1 and r["kv_cache"] == "fused"]
    fast = max(one, key=lambda r: (r["finding_f1"], r["valid_sentences"]))
    ar_ms, fast_ms = (1000 * r["tpf"] / r["tps"] for r in (ar, fast))
    return (
        f"At batch 1 the distilled model ({fast['objective']}) writes {fast['tps'] / ar['tps']:.1f} x the tokens per second of AR "
        f"at {fast['tpf'] / ar['tpf']:.1f} x its tokens per forward: a fused forward of {2 * fast['block_size']} positions takes "
        f"{fast_ms:.2f} ms, an AR forward of one {ar_ms:.2f} ms, {fast_ms / ar_ms:.2f} x as long."
    )


def evaluate_demo(config: DictConfig, checkpoints: Checkpoints, studies: int, single_studies: int | None = None) -> DemoResults:
    """Decode the first ``studies`` test studies with every method at every batch size, the methods in turns.

    Args:
        config: composed with ``stage=rad``.
        checkpoints: the models.
        studies: how many are decoded at the largest batch size.
        single_studies: how many of them are decoded one at a time; None: all. At least :data:`SHOWN` are.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data: ReportDataModule = instantiate(config.data, _convert_="all")
    data.setup()
    factory = instantiate(config.backbone.factory, _convert_="all")
    decode: DecodeConfig = instantiate(config.stage.module.decode, _convert_="all")

    def model(path: Path, stage: str) -> VLM:
        vlm = factory.build(data.special, data.vocab_size).eval().requires_grad_(False)
        load_weights(vlm, path, (stage,))
        return vlm

    methods = _methods(
        model(checkpoints.ar, "pretrain"),
        model(checkpoints.base, "rad"),
        {objective: model(path, "dcd") for objective, path in checkpoints.distilled.items()},
        data,
        decode,
    )
    single = studies if single_studies is None else min(studies, max(single_studies, SHOWN))
    batches = {size: data.held_out_batches("test", size, single if size == 1 else studies) for size in BATCH_SIZES}
    evaluated = []
    for size, own in batches.items():
        chosen = [method for method in methods if method.setting.batch_size == size]
        name = f"evaluation, batch {size}"
        evaluated += evaluate_methods(chosen, {size: own}, data.detokenize, data.judge, description=name)
    return DemoResults(
        evaluated=evaluated,
        data=data,
        trajectories=_trajectories([m for m in methods if m.setting.batch_size == 1], data),
        threads=torch.get_num_threads(),
    )


def _methods(ar: VLM, base: VLM, distilled: Mapping[str, VLM], data: ReportDataModule, decode: DecodeConfig) -> list[Method]:
    def block(vlm: VLM, steps: int | None, setting: Setting) -> Method:
        assert setting.kv_cache is not None
        sampler = decoder.multi_step(vlm, denoising_steps=steps, kv_cache=setting.kv_cache)
        return Method(setting=setting, sampler=sampler)

    decoder = StageDecoder(special=data.special, max_response_tokens=decode.max_response_tokens, decode=decode)
    caches: tuple[KVCache, ...] = ("vanilla", "fused")
    methods = []
    for size in BATCH_SIZES:
        setting = Setting(method="ar", batch_size=size)
        methods.append(Method(setting=setting, sampler=decoder.autoregressive(ar)))
        multi = Setting(method="base", block_size=decode.block_size, kv_cache="fused", batch_size=size)
        methods += [block(base, None, replace(multi, kv_cache=cache)) for cache in caches]
        native = replace(multi, method="base_one_step")
        methods.append(block(base, 1, native))
        for objective, student in distilled.items():
            one = replace(native, method="distilled", objective=objective)
            methods += [block(student, 1, replace(one, kv_cache=cache)) for cache in caches]
    return methods


def _references(data: ReportDataModule) -> dict[str, Any]:
    batch = data.held_out_batches("test", SHOWN, SHOWN)[0]
    return dict(zip(batch.keys, batch.references, strict=True))


def _trajectories(methods: Sequence[Method], data: ReportDataModule) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Trajectories of the shown studies; not timed."""
    records: dict[tuple[str, str], Mapping[str, Any]] = {}
    for batch in data.held_out_batches("test", 1, SHOWN):
        for method in methods:
            recorder = TrajectoryRecorder()
            method.sampler.generate(batch, recorder)
            (trajectory,) = recorder.trajectories(batch.keys)
            records[(method.setting.label, batch.keys[0])] = trajectory_record(
                trajectory, data.detokenize, data.special, batch.references[0]
            )
    return records
