"""Several corpora as one: shares by weight, every pass complete, the same on any number of ranks and after a resume."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from http_folder import serving

from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.loading.order import mixed_order, shuffled_order, visits_of_an_epoch
from echo_pl.data.pipeline.make_corpus import make_synthetic
from echo_pl.data.store.corpus_index import CorpusIndex, attach_folder
from echo_pl.data.store.shard_writer import write_corpus
from echo_pl.data.synthetic.synthetic import SyntheticCorpus

COUNTS = [[10, 10, 7], [4, 5]]
LARGE, SMALL = 27, 9


@pytest.mark.parametrize(
    ("sizes", "weights", "visits"),
    [
        ([60, 40], [1.0, 1.0], (50, 50)),
        ([60, 40], [60.0, 40.0], (60, 40)),
        ([10, 1], [1.0, 2.0], (4, 7)),  # 3.67 and 7.33
        ([3, 3, 3], [1.0, 1.0, 1.0], (3, 3, 3)),
        ([7], [0.25], (7,)),
    ],
)
def test_visits_are_shared_out_by_weight(sizes, weights, visits):
    assert visits_of_an_epoch(sizes, weights) == visits


@pytest.mark.parametrize("seed", range(20))
def test_visits_are_within_one_of_their_share(seed):
    rng = np.random.default_rng(seed)
    sizes, weights = rng.integers(1, 1000, 5), rng.random(5) + 0.01
    visits = visits_of_an_epoch(sizes.tolist(), weights.tolist())
    assert sum(visits) == sizes.sum()
    assert np.abs(np.array(visits) - sizes.sum() * weights / weights.sum()).max() < 1


def studies(order, counts=COUNTS) -> list[tuple[int, int]]:
    """(corpus, study) of every visit, by what the shards are, not by how the order was made."""
    owner = [(c, sum(own[:s])) for c, own in enumerate(counts) for s in range(len(own))]
    found = []
    for place in order.places.tolist():
        at = max(i for i, start in enumerate(order.starts[:-1].tolist()) if start <= place)
        corpus, first = owner[order.shards[at]]
        found.append((corpus, first + place - int(order.starts[at])))
    return found


def epochs(visits, number, **options):
    made = [mixed_order(COUNTS, visits, **{"seed": 5, "epoch": e, "buffer": 6, **options}) for e in range(number)]
    return [studies(order) for order in made]


@pytest.mark.parametrize("visits", [(18, 18), (30, 6), (4, 32), (27, 9)])
def test_every_pass_of_a_corpus_visits_every_study_once(visits):
    seen = [visit for epoch in epochs(visits, 9) for visit in epoch]
    for corpus, size in ((0, LARGE), (1, SMALL)):
        own = [study for c, study in seen if c == corpus]
        assert len(own) == 9 * visits[corpus]
        for first in range(0, len(own) - size + 1, size):
            assert sorted(own[first : first + size]) == list(range(size))


def test_shares_hold_in_every_part_of_an_epoch():
    visits = (27, 9)
    for epoch in epochs(visits, 4):
        for k in range(1, 37):
            assert abs(sum(corpus == 1 for corpus, _ in epoch[:k]) - k * 9 / 36) < 1.5


def test_orders_are_of_seed_and_epoch():
    assert epochs((18, 18), 2) == epochs((18, 18), 2)
    first, second = epochs((18, 18), 2)
    assert first != second
    assert epochs((18, 18), 1, seed=6)[0] != first
    later = mixed_order(COUNTS, (18, 18), seed=5, epoch=7, buffer=6)
    assert studies(later) == epochs((18, 18), 8)[7], "an epoch needs none of those before it"


def test_a_mixture_of_one_is_that_corpus():
    one = mixed_order([COUNTS[0]], (LARGE,), seed=5, epoch=3, buffer=6)
    alone = shuffled_order(COUNTS[0], seed=5, epoch=3, buffer=6)
    assert one.places.tolist() == alone.places.tolist()
    assert (one.shards, one.starts.tolist()) == (alone.shards, alone.starts.tolist())


def test_limits_are_of_each_corpus():
    seen = {visit for epoch in epochs((6, 6), 6, limit=5) for visit in epoch}
    assert seen == {(corpus, study) for corpus in (0, 1) for study in range(5)}


@pytest.fixture(scope="module")
def roots(tmp_path_factory, medium_data) -> dict[str, Path]:
    """Two corpora with one tokenizer and other labels, and a third with another tokenizer."""
    folder = tmp_path_factory.mktemp("mixed")
    large = medium_data / "synthetic"
    corpus = SyntheticCorpus(seed=7)
    small = folder / "small"
    split = list(corpus.studies("train", 15))
    index = write_corpus(
        small,
        {"train": split},
        counts={"train": 15},
        corpus="synthetic",
        options={},
        labels=[*reversed(corpus.labels), "only_here"],
        shard_size=4,
    )
    shutil.copytree(large / "tokenizer", small / "tokenizer")
    attach_folder(small, "tokenizer", index)
    other = make_synthetic(folder / "other", train=30, val=2, test=2, seed=8, vocab_size=500, shard_size=10, progress=False)
    return {"large": large, "small": small, "other": other}


def module(roots: dict[str, Path], weights=(1.0, 1.0), **options) -> ReportDataModule:
    corpora = {name: {"root": roots[name], "weight": weight} for name, weight in zip(("large", "small"), weights, strict=True)}
    return ReportDataModule(corpora=corpora, **{"batch_size": 8, "shuffle_buffer": 10, "seed": 1, **options})


def keys(batches) -> list[tuple[str, ...]]:
    return [batch.keys for batch in batches]


WINDOWS = pytest.mark.parametrize("window", [0, 2], ids=["as_they_come", "grouped_by_length"])


def test_an_epoch_of_both(roots):
    data = module(roots)
    data.setup()
    loader = data.train_dataloader()
    assert len(loader) == 55 // 8
    seen = [key for batch in loader for key in batch.keys]
    by_corpus = Counter(key.split("-")[0] for key in seen)
    assert abs(by_corpus["small"] - 24) <= 1, "half of 48 visits"
    assert {key.split("-", 1)[1] for key in seen if key.startswith("small")} == {f"train-{i:07d}" for i in range(15)}


def test_samples_are_those_of_their_corpora(roots):
    data = module(roots)
    alone = {name: ReportDataModule(root=roots[name]) for name in ("large", "small")}
    own = {
        f"{name}-{key}": (name, batch, row)
        for name, single in alone.items()
        for batch in single.train_batches_once(5)
        for row, key in enumerate(batch.keys)
    }
    for batch in data.train_dataloader():
        assert batch.labels_BF.shape[1] == len(data.labels)
        for row, key in enumerate(batch.keys):
            name, other, place = own[key]
            length = other.response_lengths_B[place]
            assert torch.equal(batch.response_ids_BR[row, :length], other.response_ids_BR[place, :length])
            mine = {data.labels[i] for i in batch.labels_BF[row].nonzero().flatten()}
            assert mine == {alone[name].labels[i] for i in other.labels_BF[place].nonzero().flatten()}


@pytest.mark.slow
@WINDOWS
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(roots, workers, window):
    alone, helped = (module(roots, length_window=window, num_workers=n).train_dataloader() for n in (0, workers))
    for _ in range(2):
        assert keys(alone) == keys(helped)


@WINDOWS
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one(roots, world_size, window):
    def three(**options):
        loader = module(roots, (3.0, 1.0), length_window=window, **options).train_dataloader()
        return [keys(loader) for _ in range(3)]

    whole = three()
    parts = [three(batch_size=8 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in range(3):
        assert [sum(batch, ()) for batch in zip(*(part[epoch] for part in parts), strict=True)] == whole[epoch]


def test_ranks_with_workers_share_the_batches_of_one_process(roots):
    whole = module(roots, (3.0, 1.0)).train_dataloader()
    parts = [module(roots, (3.0, 1.0), batch_size=4, rank=r, world_size=2, num_workers=2).train_dataloader() for r in (0, 1)]
    for _ in range(2):
        assert [a + b for a, b in zip(*map(keys, parts), strict=True)] == keys(whole)


@pytest.mark.slow
@WINDOWS
@pytest.mark.parametrize(("epoch", "done", "workers"), [(0, 2, 0), (2, 3, 0), (1, 5, 2)])
def test_resume_is_exact(roots, epoch, done, workers, window):
    def loader():
        return module(roots, (1.0, 3.0), length_window=window, num_workers=workers).train_dataloader()

    whole = loader()
    expected = [keys(whole) for _ in range(4)]
    stopped = loader()
    stopped.load_state_dict({"epoch": epoch, "batches_done": 0, "order": str(whole._order)})
    for number, _ in enumerate(stopped):
        if number + 1 == done:
            break
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert keys(resumed) == expected[epoch][done:]
    assert keys(resumed) == expected[epoch + 1]


def test_another_mixture_is_another_order(roots):
    state = module(roots).train_dataloader().state_dict()
    with pytest.raises(ValueError, match=r"28\+27 visits of each corpus, this run has .* 41\+14 visits"):
        module(roots, (3.0, 1.0)).train_dataloader().load_state_dict(state)


def test_without_weights_by_number_of_studies(roots):
    data = module(roots, (None, None))
    assert data._training_order(0, 1).visits == (40, 15)


def test_held_out_splits_are_of_those_that_have_them(roots):
    data = module(roots, limit_val=4)
    assert [key for batch in data.val_dataloader() for key in batch.keys] == [f"large-val-{i:07d}" for i in range(4)]
    assert list(data.images("train", ["small-train-0000007"])) == ["small-train-0000007"]
    with pytest.raises(ValueError, match="no split 'dev'"):
        data.images("dev", ["x"])


def test_limits_of_held_out_splits_are_of_each(roots):
    corpora = {"a": {"root": roots["large"]}, "b": {"root": roots["other"]}}
    data = ReportDataModule(corpora=corpora, tokenizer_path=roots["large"] / "tokenizer", limit_val=2, batch_size=8)
    (batch,) = data.val_dataloader()
    assert batch.keys == ("a-val-0000000", "a-val-0000001", "b-val-0000000", "b-val-0000001")
    assert data.judge is not None


def test_held_out_batches_are_of_all_corpora_in_turns(roots):
    corpora = {"a": {"root": roots["large"]}, "b": {"root": roots["other"]}}
    data = ReportDataModule(corpora=corpora, tokenizer_path=roots["large"] / "tokenizer")
    turns = ["a-val-0000000", "b-val-0000000", "a-val-0000001", "b-val-0000001", *(f"a-val-{i:07d}" for i in range(2, 6))]
    for limit in (1, 3, 8):
        batches = data.held_out_batches("val", 3, limit)
        assert [key for batch in batches for key in batch.keys] == turns[:limit]
    whole = {key for batch in data.val_dataloader() for key in batch.keys}
    assert whole == {key for batch in data.held_out_batches("val", 8, 100) for key in batch.keys}


def test_labels_that_one_corpus_lacks_are_reported(roots, caplog):
    data = module(roots)
    assert data.labels == (*CorpusIndex.load(roots["large"]).labels, "only_here")
    assert "corpus large" in caplog.text
    assert "only_here" in caplog.text


def test_other_tokenizers_are_rejected_by_name(roots):
    corpora = {"a": {"root": roots["large"]}, "b": {"root": roots["other"]}}
    with pytest.raises(
        ValueError, match=r"the corpora a \(.*synthetic\) and b \(.*other\) differ in their vocabulary.*data\.tokenizer_path"
    ):
        ReportDataModule(corpora=corpora).setup()


def test_features_of_one_alone_are_rejected(roots, tmp_path):
    from echo_pl.data.store.feature_store import FeatureIndex

    data = module(roots)
    FeatureIndex(
        corpus_fingerprint=CorpusIndex.load(roots["large"]).fingerprint,
        processing=data.image_processing,
        vision_fingerprint="f",
        precision="32-true",
        dtype="float32",
        width=4,
        splits={},
    ).save(tmp_path)
    corpora = {"a": {"root": roots["large"], "stored_features": tmp_path}, "b": {"root": roots["small"]}}
    with pytest.raises(ValueError, match=r"a \(.*\) and b \(.*\) differ in their vision tower, f and None"):
        ReportDataModule(corpora=corpora).setup()


def test_one_of_them_behind_a_url(roots, tmp_path):
    with serving(roots["small"]) as server:
        mixed = ReportDataModule(
            corpora={"large": {"root": roots["large"], "weight": 1}, "small": {"root": server.url, "weight": 1}},
            cache_dir=tmp_path,
            batch_size=8,
            shuffle_buffer=10,
            seed=1,
        )
        assert keys(mixed.train_dataloader()) == keys(module(roots).train_dataloader())
        assert mixed.fingerprint == module(roots).fingerprint


def test_fingerprints(roots):
    assert module(roots).fingerprint == module(roots, batch_size=2).fingerprint
    different = {
        module(roots).fingerprint,
        module(roots, (1.0, 2.0)).fingerprint,
        ReportDataModule(root=roots["large"]).fingerprint,
    }
    assert len(different) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give root, for one corpus, or corpora"),
        ({"root": "a", "corpora": {"b": {"root": "c"}}}, "give root, for one corpus, or corpora"),
        ({"corpora": {}}, "give all corpora of a mixture a weight, or none"),
        ({"corpora": {"a": {"root": "x", "weight": 1}, "b": {"root": "y"}}}, "a weight, or none; got 1 weights"),
        ({"corpora": {"a": {"root": "x", "weight": 0}}}, "must be more than 0, got 0"),
        ({"corpora": {"a": {"root": "x", "weight": float("nan")}}}, "must be more than 0, got nan"),
        ({"corpora": {"a-b": {"root": "x"}}}, "made of letters, digits and '_', got 'a-b'"),
        ({"corpora": {"a": {"rot": "x"}}}, r"corpora\.a: .*'rot'; there are root, weight, stored_features"),
        ({"corpora": {"a": {"root": "pipe:x"}}}, "never from a URL or a command"),
        ({"corpora": {"a": {"root": "x"}}, "stored_features": "f"}, "given for each of the corpora"),
    ],
)
def test_bad_mixtures(options, message):
    with pytest.raises(ValueError, match=message):
        ReportDataModule(**options)


def test_a_weight_too_small_for_one_visit(roots):
    with pytest.raises(ValueError, match=r"corpus small \(.*\) has so small a weight that no study of it is in an epoch of 55"):
        module(roots, (1000.0, 1.0)).train_dataloader()


def test_what_is_for_one_corpus_says_so(roots):
    with pytest.raises(ValueError, match=r"one corpus at a time \(data\.root\), not for a mixture of 2"):
        _ = module(roots).index
