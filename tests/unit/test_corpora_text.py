"""The parts that readers share: bytes to text, sections of a report, JSON entry by entry, splits by patient."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from echo_pl.data.readers import json_stream
from echo_pl.data.readers.json_stream import read_entries
from echo_pl.data.readers.reader import Reject
from echo_pl.data.readers.sections import split_sections
from echo_pl.data.readers.split import patient_split
from echo_pl.data.readers.text_files import UndecodableTextError, decode, mend


@pytest.mark.parametrize(
    ("content", "text", "count"),
    [
        (b"plain", "plain", 0),
        ("señal 肺".encode(), "señal 肺", 0),
        (b"\xef\xbb\xbfmark", "mark", 0),
        ("wide".encode("utf-16"), "wide", 0),
        (b"se\xf1al", "señal", 1),
        (b"5\xb0 \x96 ok", "5° – ok", 2),
    ],
)
def test_bytes_to_text(content, text, count):
    assert mend(decode(content)) == (text, count)


def test_no_text():
    with pytest.raises(UndecodableTextError):
        mend(decode(b"a\0b\0"))


def test_sections_of_mimic_with_wet_read_addendum_and_subheadings():
    report = split_sections(
        " WET READ: ___ ___ 3:12 PM\n  Something preliminary.\n ______________\n"
        "                                 FINAL REPORT\n EXAM:  CHEST.\n\n REASON FOR EXAM:  Fever,\n  and cough.\n\n"
        " COMPARISON:  ___.\n\n FINDINGS:  LUNGS: Clear.\n HEART: Large.\n\n Old fracture.\n"
        "\n CONCLUSION:\n 1. Large heart.\n 2. Fracture.\n"
        "\n NOTIFICATION:  By telephone.\n"
    )
    assert report.findings == "LUNGS: Clear. HEART: Large. Old fracture."
    assert report.impression == "1. Large heart. 2. Fracture."
    assert (report.indication, report.comparison) == ("Fever, and cough.", "___.")


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("The lungs are clear.\n\nThe heart is normal.", "The lungs are clear. The heart is normal.", ""),
        ("FINAL REPORT\n HISTORY: Pain.\n\n One view. Clear lungs.\n\n Normal heart.", "One view. Clear lungs. Normal heart.", ""),
        (
            "CHEST, TWO VIEWS\n\nHISTORY: Pain.\n\nPA AND LATERAL CHEST: Clear.\n\nIMPRESSION: Fine.",
            "PA AND LATERAL CHEST: Clear.",
            "Fine.",
        ),
        ("FINDINGS AND IMPRESSION: Clear.", "Clear.", ""),
        ("Findings:\nClear.\nImpression:\nFine.", "Clear.", "Fine."),
        ("IMPRESSION: Compared with 3:15 a.m.: no change.", "", "Compared with 3:15 a.m.: no change."),
        ("INDICATION: Pain.\nPORTABLE CHEST: Clear.\n", "PORTABLE CHEST: Clear.", ""),
        ("INDICATION: Pain.", "", ""),
        ("", "", ""),
        ("IMPRESSION:", "", ""),
    ],
)
def test_sections(text, findings, impression):
    report = split_sections(text)
    assert (report.findings, report.impression) == (findings, impression)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize(
    "value",
    [[], {}, [1, 23, -4.5e3, 'a\\"b', None], {"a": [1, {"b": 2}], "ü": "肺", "c": 12345}, [[], {}, "", True]],
)
def test_json_entries_are_those_of_the_library(tmp_path, monkeypatch, value, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    path = tmp_path / "x.json"
    for indent in (None, 1):
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
        pairs = list(value.items()) if isinstance(value, dict) else [(str(i), one) for i, one in enumerate(value)]
        assert list(read_entries(path)) == pairs


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", '{"a": 1, "b"}', '{"a": 1, ', '[1, {"b": tru}]', '{"a": 1, "b": "open'])
def test_damaged_json(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    *read, last = read_entries(path)
    assert read[0] in (("0", 1), ("a", 1))
    assert isinstance(last, Reject)
    assert last.reason == "damaged_file"


def test_json_entry_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 1000)
    monkeypatch.setattr(json_stream, "MAX_ENTRY", 5000)
    path = tmp_path / "x.json"
    path.write_text('[1, "' + "a" * 10**6)
    taken = []
    read = json_stream._Window._more
    monkeypatch.setattr(json_stream._Window, "_more", lambda self: taken.append(1) or read(self))
    assert [isinstance(item, Reject) for item in read_entries(path)] == [False, True]
    assert len(taken) < 10


def test_split_is_of_the_patient_and_seed_alone():
    patients = [f"p{i}" for i in range(4000)]
    first = [patient_split(patient, seed=1, val_share=0.1, test_share=0.2) for patient in patients]
    assert first == [patient_split(patient, seed=1, val_share=0.1, test_share=0.2) for patient in patients]
    counts = Counter(first)
    # Six standard deviations of a binomial.
    assert abs(counts["test"] - 800) < 6 * (4000 * 0.2 * 0.8) ** 0.5
    assert abs(counts["val"] - 400) < 6 * (4000 * 0.1 * 0.9) ** 0.5
    other = [patient_split(patient, seed=2, val_share=0.1, test_share=0.2) for patient in patients]
    assert 1000 < sum(a != b for a, b in zip(first, other, strict=True)) < 3000


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.5, 0.5), (0.1, -0.1)])
def test_shares_out_of_range(val, test):
    with pytest.raises(ValueError, match="must not be negative and sum to less than 1"):
        patient_split("p", val_share=val, test_share=test)
