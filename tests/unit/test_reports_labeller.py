"""The labeller: status, side and zone of findings, and the scope of negations and doubts."""

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


def labels_of(labeller: Labeller, text: str) -> dict[str, str]:
    return {name: label.status.value for name, label in labeller.label(text).items() if label.status is not Status.ABSENT}


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # + positive, - negative, ? uncertain
        ("Moderate effusion.", "+effusion"),
        ("No effusion.", "-effusion"),
        ("There is neither effusion nor pneumothorax.", "-effusion -pneumothorax"),
        ("No effusion, pneumothorax, or nodule.", "-effusion -pneumothorax -nodule"),
        ("No effusion, mild scoliosis.", "-effusion +scoliosis"),
        ("No effusion but a nodule.", "-effusion +nodule"),
        ("Fibrosis without effusion or nodule.", "+fibrosis -effusion -nodule"),
        ("Atelectasis with no effusion.", "+atelectasis -effusion"),
        ("The pneumothorax has resolved.", "-pneumothorax"),
        ("The effusion is no longer seen.", "-effusion"),
        ("No change in the effusion.", "+effusion"),
        ("The patchy shadow may represent pneumonia.", "?pneumonia"),
        ("Atelectasis versus pneumonia at the base.", "?atelectasis ?pneumonia"),
        ("Pneumonia cannot be excluded.", "?pneumonia"),
        ("Possible nodule and scarring.", "?nodule ?scarring"),
        ("Opacity, likely atelectasis.", "+opacity ?atelectasis"),
        ("The heart is moderately enlarged.", "+cardiomegaly"),
        ("The heart is not enlarged.", "-cardiomegaly"),
        ("Heart size is at the upper limits of normal.", "-cardiomegaly"),
        ("An enlarged heart and a tortuous, calcified aorta.", "+cardiomegaly +aortic_tortuosity +atherosclerosis"),
        ("Normal heart and mediastinum.", "-cardiomegaly -mediastinal_widening"),
        ("Heart, mediastinum, and hila are normal.", "-cardiomegaly -mediastinal_widening -hilar_enlargement"),
        ("The cardiomediastinal silhouette is enlarged.", "+cardiomegaly +mediastinal_widening"),
        ("Vascular engorgement is within normal limits.", "-congestion"),
        ("The left hemidiaphragm is raised and the right is flattened.", "+diaphragm_elevation +diaphragm_flattening"),
        ("Slight deformity of T12 and L1.", "+vertebral_deformity"),
        ("Several lower thoracic deformities.", "+vertebral_deformity"),
        ("Deformed right ribs.", "+deformity"),
        ("Mild pectus excavatum deformity.", "+chest_wall_deformity"),
        ("Fluid fills the thoracic cavity.", ""),
        ("Thin-walled cavitary lesion.", "+cavity"),
        ("Sclerotic lesion of the humerus.", "+bone_lesion"),
        ("Subchondral cystic changes of the glenoid.", "+degenerative_change"),
        ("Blunted costophrenic angles.", "+costophrenic_blunting"),
        ("Lung volumes are low.", "+low_lung_volume"),
        ("The lungs are well expanded.", "-low_lung_volume"),
        ("Calcified left lower lobe granuloma.", "+granuloma"),
        ("Pacemaker and nasogastric tube in place.", "+pacemaker +gastric_tube"),
        ("The lungs are free of consolidation.", "-consolidation"),
        ("", ""),
        ("Two views were obtained.", ""),
    ],
)
def test_status(labeller, text, expected):
    signs = {"+": "positive", "-": "negative", "?": "uncertain"}
    assert labels_of(labeller, text) == {one[1:]: signs[one[0]] for one in expected.split()}


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


def test_a_side_before_two_findings_belongs_to_both(labeller):
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
    assert all(status == "negative" for status in labels_of(labeller, text).values())
    if language == "en" or concept.name in labels_of(labeller, text):
        assert set(labels_of(labeller, text)) == {concept.name}


@pytest.mark.parametrize("part", [one for one in PARTS.values() if one.normal], ids=lambda one: one.name)
def test_a_normal_part_denies_what_the_table_says(labeller, part):
    assert labels_of(labeller, part.normal) == dict.fromkeys(part.denies, "negative")
    if part.noun and part.name != "pulmonary":
        assert labels_of(labeller, no_abnormality_of(part.name)) == dict.fromkeys(part.denies, "negative")


@pytest.mark.parametrize("region", REGION_NAMES)
def test_fillings_contradict_no_finding(labeller, region):
    assert set(labels_of(labeller, filling(region, ())).values()) <= {"negative"}
    for name in CONCEPTS:
        assert name not in labels_of(labeller, filling(region, {name})), "a filling contradicts the report"
    assert labels_of(labeller, filling(region, CONCEPTS)) == {}


def test_a_phrase_has_one_meaning():
    lexicon: Lexicon[str] = Lexicon()
    lexicon.add(["lung base"], "lung")
    with pytest.raises(ValueError, match="lung bases"):
        lexicon.add(["lung bases"], "base")


@pytest.mark.parametrize(
    ("plural", "singular"), [("hila", "hilum"), ("masses", "mass"), ("cavities", "cavity"), ("sinus", "sinus")]
)
def test_plurals(plural, singular):
    assert stem(plural) == singular
