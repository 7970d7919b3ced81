"""From a study to tensors, and from samples to a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from echo_pl.data.loading.collator import ReportCollator
from echo_pl.data.loading.processor import LongResponseError, ProcessorConfig, ReportProcessor
from echo_pl.data.loading.tokenizer import load_tokenizer, train_tokenizer
from echo_pl.data.synthetic.synthetic import SyntheticCorpus
from echo_pl.reports.response import FORMS, format_response
from echo_pl.structs import ReportText

CORPUS = SyntheticCorpus(seed=5)


@pytest.fixture(scope="module")
def tokenizer_and_special(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [format_response(study.normalized) for study in CORPUS.studies("train", 100)]
    train_tokenizer([*texts, *[FORMS["en"].instruction] * 100], folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def make(tokenizer_and_special):
    return lambda **options: ReportProcessor(*tokenizer_and_special, ProcessorConfig(**options))


def test_shapes_of_a_small_image(make, tokenizer_and_special):
    special = tokenizer_and_special[1]
    sample = make()(CORPUS.study("train", 0))
    assert sample.pixel_values.shape == (64, 3 * 2 * 8 * 8)
    assert sample.image_grid_thw.tolist() == [[1, 8, 8]]
    assert (sample.context_ids_P == special.image).sum() == 16
    assert sample.response_ids_R[-1] == special.eos
    assert not set(sample.response_ids_R.tolist()) & set(special.never_sampled)


def test_patches_are_the_image(make):
    """Undo the library's layout by hand: merged 2x2 groups of patches, channel first, each frame twice."""
    study = CORPUS.study("train", 1)
    sample = make()(study)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = (np.asarray(study.images[0].convert("RGB")) / 255 - mean) / std
    patches = sample.pixel_values.reshape(4, 4, 2, 2, 3, 2, 8, 8).numpy()
    for gy, gx, my, mx in [(0, 0, 0, 0), (1, 2, 1, 0), (3, 3, 0, 1)]:
        y, x = (gy * 2 + my) * 8, (gx * 2 + mx) * 8
        expected = pixels[y : y + 8, x : x + 8].transpose(2, 0, 1)
        for frame in range(2):
            np.testing.assert_allclose(patches[gy, gx, my, mx, :, frame], expected, atol=1e-5)


def test_several_images_and_sizes(make, tokenizer_and_special):
    study = CORPUS.study("train", 0)
    wide = Image.new("L", (128, 64), 90)
    sample = make(max_pixels=128 * 64)(replace(study, images=(study.images[0], wide)))
    assert sample.image_grid_thw.tolist() == [[1, 8, 8], [1, 8, 16]]
    assert (sample.context_ids_P == tokenizer_and_special[1].image).sum() == 16 + 32
    assert len(sample.pixel_values) == 64 + 128


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompt(make, tokenizer_and_special, template, language):
    sample = make(template=template, language=language)(CORPUS.study("train", 0))
    text = tokenizer_and_special[0].decode(sample.context_ids_P.tolist(), clean_up_tokenization_spaces=False)
    images = f"<|vision_start|>{'<|image_pad|>' * 16}<|vision_end|>{FORMS[language].instruction}"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    expected = {
        "plain": f"{images}\n",
        "chat": f"{system}<|im_start|>user\n{images}<|im_end|>\n<|im_start|>assistant\n",
    }
    assert text == expected[template]


def test_detokenize_gives_the_text_back(make):
    processor = make()
    for study in CORPUS.studies("train", 20):
        ids = processor.response_ids(study.normalized)
        assert processor.detokenize(ids) == format_response(study.normalized)


def test_a_control_token_named_in_a_report_stays_text(make, tokenizer_and_special):
    processor = make()
    ids = processor.response_ids(ReportText(findings="<|MASK|> <|im_end|> clear.", impression="<|image_pad|>"))
    special = tokenizer_and_special[1]
    assert not set(ids.tolist()) & set(special.never_sampled)
    assert ids.tolist().count(special.eos) == 1
    assert "<|MASK|> <|im_end|> clear." in processor.detokenize(ids)


def test_bad_studies(make):
    study = CORPUS.study("train", 0)
    with pytest.raises(LongResponseError, match=f"{study.key} has .* tokens, more than max_response_tokens=20"):
        make(max_response_tokens=20)(study)
    with pytest.raises(ValueError, match=f"{study.key} has a normalized report without findings"):
        make()(replace(study, normalized=ReportText(findings=" ", impression="x")))
    with pytest.raises(ValueError, match=f"{study.key} has no raw report"):
        make(version="raw")(replace(study, raw=None))
    with pytest.raises(ValueError, match=f"image of study {study.key} cannot be processed"):
        make()(replace(study, images=(Image.new("L", (2000, 2)),)))
    with pytest.raises(ValueError, match="key must be made of"):
        replace(study, key="../evil")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "short"}, "version must be"),
        ({"template": "html"}, "template must be"),
        ({"language": "fr"}, "language must be"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"max_pixels": 100}, "must not be less than min_pixels"),
        ({"min_pixels": 1, "max_pixels": 100}, "must hold one vision token of 16x16"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ProcessorConfig(**options)


def test_collation(make, tokenizer_and_special):
    special = tokenizer_and_special[1]
    samples = [make()(CORPUS.study("train", i)) for i in range(4)]
    batch = ReportCollator(special, CORPUS.labels, references=True)(samples)
    assert len(batch) == 4
    for row, sample in enumerate(samples):
        length = len(sample.response_ids_R)
        assert batch.response_lengths_B[row] == length
        assert torch.equal(batch.response_ids_BR[row, :length], sample.response_ids_R)
        assert (batch.response_ids_BR[row, length:] == special.eos).all()
        assert torch.equal(batch.context_ids_BP[row, : batch.context_lengths_B[row]], sample.context_ids_P)
        assert {CORPUS.labels[i] for i in batch.labels_BF[row].nonzero().flatten()} == set(sample.labels)
    assert batch.references == tuple(sample.reference for sample in samples)
    assert batch.pixel_values.shape == (4 * 64, 384)


def test_collation_without_labels_and_with_foreign_ones(make, tokenizer_and_special):
    special = tokenizer_and_special[1]
    sample = make()(CORPUS.study("train", 0))
    assert ReportCollator(special, (), references=False)([sample]).labels_BF is None
    with pytest.raises(ValueError, match="has label 'gout'"):
        ReportCollator(special, ("a",), references=False)([replace(sample, labels=("gout",))])
