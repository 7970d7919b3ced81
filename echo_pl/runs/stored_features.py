"""Output of the frozen vision tower over a corpus, stored once for stages 2 and 3 to read instead of images.

The tower is that of the newest stage-1 run, unless ``start`` names a checkpoint; stages 2 and 3 do not train it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm.auto import tqdm

from echo_pl.backbone.checkpoint import load_weights
from echo_pl.backbone.vlm import VLM
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.store.corpus_index import Shard
from echo_pl.data.store.feature_store import DTYPES, FeatureIndex, FeatureWriter, nothing_of
from echo_pl.data.store.shard_reader import RawSample, decode_study, read_samples
from echo_pl.data.store.study import StoredImages
from echo_pl.runs.lineage import check_same_data
from echo_pl.runs.run import prepare
from echo_pl.runs.start import read_start

log = logging.getLogger(__name__)


def store_features(config: DictConfig, out: Path, dtype: str, batch_size: int) -> FeatureIndex:
    """Store the features of every split of the corpus.

    Args:
        config: composed with ``stage=rad``; precision and device are those of its trainer.
        out: folder to make, or to finish.
        dtype: name of the type to store.
        batch_size: studies whose images go through the tower at once.

    Raises:
        FileNotFoundError: no stage-1 run to start from, or no corpus.
        ValueError: the folder holds something else; a checkpoint that does not fit.
    """
    precision = str(config.trainer.precision)
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"vision features are stored in precision 32-true or bf16-mixed, got trainer.precision={precision}")
    data = prepare(config)
    start = read_start(config)
    check_same_data(data, start)
    vlm = instantiate(config.backbone.factory, _convert_="all").build(data.special, data.vocab_size)
    if start is not None:
        load_weights(vlm, start.path, ("pretrain", "rad"))
    vlm = vlm.to("cuda" if config.trainer.accelerator == "gpu" else "cpu").eval().requires_grad_(False)
    writer = FeatureWriter(
        out,
        FeatureIndex(
            corpus_fingerprint=data.index.fingerprint,
            processing=data.image_processing,
            vision_fingerprint=vlm.vision_fingerprint or "",
            precision=precision,
            dtype=dtype,
            width=vlm.width,
            splits={},
        ),
    )
    if writer.complete:
        return writer.index
    splits = data.index.splits
    with tqdm(total=sum(map(data.index.count, splits)), desc="vision features", unit="study", disable=None) as bar:
        for split, shards in splits.items():
            for shard in shards:
                if not writer.has(split, shard.name):
                    writer.write(split, shard.name, _features_of(vlm, data, shard, writer.index, batch_size))
                bar.update(shard.samples)
    writer.finish()
    return writer.index


def _features_of(
    vlm: VLM, data: ReportDataModule, shard: Shard, index: FeatureIndex, batch_size: int
) -> Iterator[tuple[str, StoredImages]]:
    with data.corpus.folder.holding(shard) as folder:
        samples = (raw for _, raw in read_samples(folder, shard, range(shard.samples)))
        yield from _features_of_samples(vlm, data, shard, samples, index, batch_size)


def _features_of_samples(
    vlm: VLM, data: ReportDataModule, shard: Shard, samples: Iterator[RawSample], index: FeatureIndex, batch_size: int
) -> Iterator[tuple[str, StoredImages]]:
    mixed = index.precision == "bf16-mixed"  # as Lightning runs the same tower in training
    while some := list(islice(samples, batch_size)):
        read = [(raw.key, _patches_of(raw, data)) for raw in some]
        stored = _run_tower(vlm, data, shard, index, mixed, [patches for _, patches in read if patches is not None])
        for key, patches in read:
            yield key, nothing_of(index.width, index.dtype) if patches is None else next(stored)


def _patches_of(raw: RawSample, data: ReportDataModule) -> tuple[Tensor, Tensor] | None:
    try:
        return data.processor.patches(decode_study(raw))
    except ValueError as error:
        if not data.skips_bad_samples:
            raise
        log.warning("study %s has no vision features and will be skipped: %s", raw.key, error)
        return None


def _run_tower(
    vlm: VLM, data: ReportDataModule, shard: Shard, index: FeatureIndex, mixed: bool, patches: list[tuple[Tensor, Tensor]]
) -> Iterator[StoredImages]:
    if patches:
        pixels, grid = (torch.cat(parts).to(vlm.device) for parts in zip(*patches, strict=True))
        with torch.no_grad(), torch.autocast(vlm.device.type, torch.bfloat16, enabled=mixed):
            features = vlm.vision_features(pixels, grid).to("cpu", DTYPES[index.dtype])
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"vision features of shard {shard.name} are not finite in {index.dtype}; store them in --dtype bfloat16"
            )
        tokens = [int(own.prod(-1).sum()) // data.processor_config.merge_size**2 for _, own in patches]
        for (_, own), part in zip(patches, features.split(tokens), strict=True):
            yield StoredImages(features=part.clone(), grid_thw=own)
