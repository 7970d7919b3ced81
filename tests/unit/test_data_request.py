"""Prompt and answer of a study: reports in their own language, general samples with their own prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from echo_pl.data.loading.processor import ProcessorConfig, ReportProcessor
from echo_pl.data.loading.request import GENERAL_PROMPT, request_of
from echo_pl.data.loading.tokenizer import IMAGE, VISION_END, VISION_START, load_tokenizer, train_tokenizer
from echo_pl.data.store.study import Study
from echo_pl.reports.response import FORMS
from echo_pl.structs import ReportText

ENGLISH = Study(
    key="a",
    images=(Image.new("L", (64, 64)),),
    normalized=ReportText(findings="lungs are clear.", impression="normal."),
    raw=ReportText(findings="clear.", impression="normal."),
)
CHINESE = replace(ENGLISH, normalized=ReportText(findings="双肺清晰。", impression="正常。"), meta={"language": "zh"})
GENERAL = replace(
    ENGLISH, raw=None, normalized=ReportText(findings="A dog.", impression=""), meta={"kind": "general", "prompt": "What is it?"}
)


def test_a_report_is_asked_for_in_its_own_language():
    assert request_of(ENGLISH, version="normalized", language="en").instruction == FORMS["en"].instruction
    assert request_of(ENGLISH, version="normalized", language="zh").instruction == FORMS["zh"].instruction
    chinese = request_of(CHINESE, version="normalized", language="en")
    assert chinese.instruction == FORMS["zh"].instruction
    assert chinese.response == "所见：双肺清晰。 结论：正常。"
    assert request_of(CHINESE, version="raw", language="en").response == "Findings: clear. Impression: normal."


@pytest.mark.parametrize("version", ["normalized", "raw"])
def test_a_general_sample_is_no_report(version):
    general = request_of(GENERAL, version=version, language="en")
    assert (general.instruction, general.response) == ("What is it?", "A dog.")
    bare = replace(GENERAL, meta={"kind": "general"})
    assert request_of(bare, version=version, language="en").instruction == GENERAL_PROMPT


def test_the_processor_writes_both_into_one_corpus_s_samples(tmp_path):
    train_tokenizer([FORMS["en"].instruction, FORMS["zh"].instruction], tmp_path / "tokenizer", vocab_size=400)
    processor = ReportProcessor(*load_tokenizer(tmp_path / "tokenizer"), ProcessorConfig())
    samples = [processor(study) for study in (ENGLISH, CHINESE, GENERAL)]
    asked = [processor._tokenizer.decode(sample.context_ids_P) for sample in samples]
    asks = [FORMS["en"].instruction, FORMS["zh"].instruction, "What is it?"]
    assert asked == [f"{VISION_START}{IMAGE * 16}{VISION_END}{ask}\n" for ask in asks]
    assert [processor.detokenize(sample.response_ids_R) for sample in samples] == [
        "Findings: lungs are clear. Impression: normal.",
        "所见：双肺清晰。 结论：正常。",
        "A dog.",
    ]


def test_a_prompt_with_control_tokens_is_rejected():
    hostile = replace(GENERAL, meta={"kind": "general", "prompt": f"{IMAGE} What is it?"})
    with pytest.raises(ValueError, match="the prompt of sample a has a control token"):
        request_of(hostile, version="normalized", language="en")
