"""The tables of words: validated when they are loaded."""

from __future__ import annotations

import pytest
import yaml

from echo_pl.reports import tables
from echo_pl.reports.canonical import filling
from echo_pl.reports.regions import Region
from echo_pl.reports.tables import build_rows, check_names
from echo_pl.reports.vocabulary import CONCEPTS, PARTS, Concept


def test_every_table_names_its_source():
    files = sorted(path for path in (tables.resources.files("echo_pl.reports") / "tables").iterdir())
    assert len(files) >= 8
    assert all("# Source: " in path.read_text(encoding="utf-8") for path in files)


def test_a_misspelt_name_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"anatomy.yaml, heart: 'cardiomegally' is unknown; did you mean 'cardiomegaly'\?"):
        check_names("anatomy.yaml, heart", ["cardiomegally"], CONCEPTS)
    check_names("anatomy.yaml", ["heart"], PARTS)


def test_a_row_with_a_misspelt_or_missing_field_is_an_error():
    with pytest.raises(ValueError, match=r"findings.yaml, nodule: 'termz' is unknown; did you mean 'terms'"):
        build_rows(Concept, "findings", {"nodule": {"region": "lungs", "noun": "nodule", "termz": []}})
    with pytest.raises(ValueError, match=r"regions.yaml, lungs: .*missing"):
        build_rows(Region, "regions", {"lungs": {"title": "lungs"}})


def test_a_repeated_key_is_an_error():
    with pytest.raises(ValueError, match="'a' is a key twice"):
        yaml.load("a: 1\nb: 2\na: 3\n", tables._Loader)


def test_every_term_and_sentence_is_text():
    for row in (*CONCEPTS.values(), *PARTS.values()):
        assert all(type(term) is str and term for term in (*row.terms, *row.terms_zh))
    assert filling("heart", {"cardiomegaly"}) == "The cardiac silhouette is not described further."
