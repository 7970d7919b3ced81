"""The labeller: what is said of a finding, on which side, and how far a denial or a doubt reaches."""

from __future__ import annotations

import pytest

from echo_pl.reports.canonical import filling, negatives, no_abnormality_of, noun
from echo_pl.reports.labeller import Labeller
from echo_pl.reports.lexicon import Lexicon, stem
from echo_pl.reports.mention import Status
from echo_pl.reports.regions import REGION_NAMES, SECTIONS
from echo_pl.reports.vocabulary import CONCEPTS, DEVICES, PARTS


@pytest.fixture(scope="module")
def labeller() -> Labeller:
    return Labeller()


def said(labeller: Labeller, text: str) -> dict[str, str]:
    return {name: label.status.value for name, label in labeller.label(text).items() if label.status is not Status.ABSENT}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Moderate effusion.", {"effusion": "positive"}),
        ("No effusion.", {"effusion": "negative"}),
        ("There is neither effusion nor pneumothorax.", {"effusion": "negative", "pneumothorax": "negative"}),
        ("No effusion, pneumothorax, or nodule.", {"effusion": "negative", "pneumothorax": "negative", "nodule": "negative"}),
        ("No effusion, mild scoliosis.", {"effusion": "negative", "scoliosis": "positive"}),
        ("No effusion but a nodule.", {"effusion": "negative", "nodule": "positive"}),
        ("Fibrosis without effusion or nodule.", {"fibrosis": "positive", "effusion": "negative", "nodule": "negative"}),
        ("Atelectasis with no effusion.", {"atelectasis": "positive", "effusion": "negative"}),
        ("The pneumothorax has resolved.", {"pneumothorax": "negative"}),
        ("The effusion is no longer seen.", {"effusion": "negative"}),
        ("No change in the effusion.", {"effusion": "positive"}),
        ("The patchy shadow may represent pneumonia.", {"pneumonia": "uncertain"}),
        ("Atelectasis versus pneumonia at the base.", {"atelectasis": "uncertain", "pneumonia": "uncertain"}),
        ("Pneumonia cannot be excluded.", {"pneumonia": "uncertain"}),
        ("Possible nodule and scarring.", {"nodule": "uncertain", "scarring": "uncertain"}),
        ("Opacity, likely atelectasis.", {"opacity": "positive", "atelectasis": "uncertain"}),
        ("The heart is moderately enlarged.", {"cardiomegaly": "positive"}),
        ("The heart is not enlarged.", {"cardiomegaly": "negative"}),
        ("Heart size is at the upper limits of normal.", {"cardiomegaly": "negative"}),
        ("An enlarged heart and a tortuous, calcified aorta.",
         {"cardiomegaly": "positive", "aortic_tortuosity": "positive", "atherosclerosis": "positive"}),
        ("Normal heart and mediastinum.", {"cardiomegaly": "negative", "mediastinal_widening": "negative"}),
        ("Heart, mediastinum, and hila are normal.",
         {"cardiomegaly": "negative", "mediastinal_widening": "negative", "hilar_enlargement": "negative"}),
        ("The cardiomediastinal silhouette is enlarged.", {"cardiomegaly": "positive", "mediastinal_widening": "positive"}),
        ("Vascular engorgement is within normal limits.", {"congestion": "negative"}),
        ("The left hemidiaphragm is raised and the right is flattened.",
         {"diaphragm_elevation": "positive", "diaphragm_flattening": "positive"}),
        ("Slight deformity of T12 and L1.", {"vertebral_deformity": "positive"}),
        ("Several lower thoracic deformities.", {"vertebral_deformity": "positive"}),
        ("Deformed right ribs.", {"deformity": "positive"}),
        ("Mild pectus excavatum deformity.", {"chest_wall_deformity": "positive"}),
        ("Fluid fills the thoracic cavity.", {}),
        ("Thin-walled cavitary lesion.", {"cavity": "positive"}),
        ("Sclerotic lesion of the humerus.", {"bone_lesion": "positive"}),
        ("Subchondral cystic changes of the glenoid.", {"degenerative_change": "positive"}),
        ("Blunted costophrenic angles.", {"costophrenic_blunting": "positive"}),
        ("Lung volumes are low.", {"low_lung_volume": "positive"}),
        ("The lungs are well expanded.", {"low_lung_volume": "negative"}),
        ("Calcified left lower lobe granuloma.", {"granuloma": "positive"}),
        ("Pacemaker and nasogastric tube in place.", {"pacemaker": "positive", "gastric_tube": "positive"}),
        ("The lungs are free of consolidation.", {"consolidation": "negative"}),
        ("", {}),
        ("Two views were obtained.", {}),
    ],
)  # fmt: skip
def test_status(labeller, text, expected):
    assert said(labeller, text) == expected


@pytest.mark.parametrize(
    ("text", "name", "sides", "zones"),
    [
        ("Small left effusion.", "effusion", {"left"}, set()),
        ("Bilateral effusions.", "effusion", {"left", "right"}, set()),
        ("Bibasilar atelectasis.", "atelectasis", {"left", "right"}, {"base"}),
        ("Nodule in the right upper lobe.", "nodule", {"right"}, {"upper"}),
        ("Opacities in the right upper and left lower lobes.", "opacity", {"left", "right"}, {"upper", "lower"}),
        ("Scarring of the lingula.", "scarring", {"left"}, {"lingula"}),
        ("Effusion.", "effusion", set(), set()),
        ("Nodule overlying the left heart border.", "nodule", set(), set()),
    ],
)
def test_place(labeller, text, name, sides, zones):
    label = labeller.label(text)[name]
    assert (set(label.sides), set(label.zones)) == (sides, zones)


def test_each_finding_keeps_its_own_side(labeller):
    labels = labeller.label("Small left effusion and right base atelectasis.")
    assert labels["effusion"].sides == {"left"}
    assert labels["atelectasis"].sides == {"right"}


def test_a_side_before_two_findings_is_of_both(labeller):
    labels = labeller.label("Bilateral atelectasis and effusions.")
    assert labels["atelectasis"].sides == labels["effusion"].sides == {"left", "right"}
    assert labeller.label("Left effusion and a nodule.")["nodule"].sides == set()
    assert labeller.label("Left effusion and emphysema.")["emphysema"].sides == set()


def test_the_strongest_statement_counts(labeller):
    label = labeller.label("No effusion on the right. Small left effusion. Possible effusion.")["effusion"]
    assert (label.status, label.sides) == (Status.POSITIVE, {"left"})


def test_every_name_has_a_label(labeller):
    assert set(labeller.label("Nothing known.")) == set(labeller.names) == set(CONCEPTS)
    assert len(CONCEPTS) >= 20
    assert len(DEVICES) >= 10


def test_every_concept_and_part_has_a_region():
    assert {one.region for one in CONCEPTS.values()} == set(REGION_NAMES)
    assert {one.region for one in PARTS.values()} <= set(SECTIONS)


@pytest.mark.parametrize("concept", CONCEPTS.values(), ids=lambda one: one.name)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_canonical_negative_denies_its_finding_and_nothing_else(labeller, concept, language):
    text = negatives([noun(concept.name, language)], language)
    assert all(status == "negative" for status in said(labeller, text).values())
    if language == "en" or concept.name in said(labeller, text):
        assert set(said(labeller, text)) == {concept.name}


@pytest.mark.parametrize("part", [one for one in PARTS.values() if one.normal], ids=lambda one: one.name)
def test_a_normal_part_denies_what_the_table_says(labeller, part):
    assert said(labeller, part.normal) == dict.fromkeys(part.denies, "negative")
    if part.noun and part.name != "pulmonary":
        assert said(labeller, no_abnormality_of(part.name)) == dict.fromkeys(part.denies, "negative")


@pytest.mark.parametrize("region", REGION_NAMES)
def test_fillings_claim_nothing_that_is_there(labeller, region):
    assert set(said(labeller, filling(region, ())).values()) <= {"negative"}
    for name in CONCEPTS:
        assert name not in said(labeller, filling(region, {name})), "a filling speaks against the report"
    assert said(labeller, filling(region, CONCEPTS)) == {}


def test_a_phrase_stands_for_one_thing():
    lexicon: Lexicon[str] = Lexicon()
    lexicon.add(["lung base"], "lung")
    with pytest.raises(ValueError, match="lung bases"):
        lexicon.add(["lung bases"], "base")


@pytest.mark.parametrize(
    ("plural", "singular"), [("hila", "hilum"), ("masses", "mass"), ("cavities", "cavity"), ("sinus", "sinus")]
)
def test_plurals(plural, singular):
    assert stem(plural) == singular
