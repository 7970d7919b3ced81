"""Parts of the body, what is said of them when they are normal, and which finding a part and a change of it make together.

Three tables: parts, changes ("enlarged", "blunted"), and pairs of both. Knows nothing of sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from echo_pl.reports.report import OTHER


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A part of the body."""

    name: str
    region: str
    """``other``: it is in no region, or in all (chest, bones and lungs together)."""
    noun: str
    normal: str
    """Canonical sentence that it is normal; empty where there is none."""
    terms: tuple[str, ...]
    denies: tuple[str, ...] = ()
    """Findings that are not there where the part is said to be normal."""
    parts: tuple[str, ...] = ()
    """Names of parts that its words name together (cardiomediastinal); then it has none of its own."""


def _part(
    name: str, region: str, noun: str, normal: str, terms: str, *, denies: tuple[str, ...] = (), parts: tuple[str, ...] = ()
) -> Anatomy:
    phrases = tuple(term for part in terms.split("|") if (term := part.strip()))
    return Anatomy(name=name, region=region, noun=noun, normal=normal, terms=phrases, denies=denies, parts=parts)


_VERTEBRAE: Final = " | ".join(
    f"{letter}{number}" for letter, last in (("c", 7), ("t", 12), ("l", 5)) for number in range(1, last + 1)
)
PARTS: Final[tuple[Anatomy, ...]] = (
    _part("heart", "heart", "cardiac", "The heart is normal in size.",
          "heart | heart size | cardiac size | cardiac silhouette | cardiac contour | cardiac shadow | cardiac | heart contour"
          "| heart silhouette | size of the heart | heart size and contour | cardiac size and contour | cardiac silhouette size"
          "| heart shadow | cardiac size and silhouette | heart border | right heart border | left heart border | ventricle"
          "| left ventricle | right ventricle | left ventricular | right ventricular | pericardial"
          "| cardiac border", denies=("cardiomegaly",)),
    _part("mediastinum", "mediastinum", "mediastinal", "Mediastinal contours are normal.",
          "mediastinum | mediastinal | mediastinal contour | mediastinal silhouette | mediastinal structure | mediastinal border"
          "| superior mediastinum | upper mediastinum | middle mediastinum | anterior mediastinum | mediastinal width",
          denies=("mediastinal_widening",)),
    _part("cardiomediastinum", "heart", "cardiomediastinal", "",
          "cardiomediastinal silhouette | cardiomediastinal | cardiomediastinal contour | cardio mediastinal silhouette"
          "| cardio mediastinal | cardiomediastinum | cardiomediastinal structure | cardiac mediastinal | heart mediastinum",
          parts=("heart", "mediastinum")),
    _part("aorta", "mediastinum", "aortic", "The aorta is normal.",
          "aorta | aortic | thoracic aorta | aortic arch | aortic knob | aortic contour | aortic vascular | descending aorta"
          "| ascending aorta | descending thoracic aorta | great vessel | arch | arch of the aorta | aortic knuckle"),
    _part("trachea", "mediastinum", "tracheal", "The trachea is midline.", "trachea | tracheal | carina"
    "| tracheal air column",
          denies=("mediastinal_shift",)),
    _part("airway", "mediastinum", "airway", "", "airway | bronchus | main bronchus"),
    _part("esophagus", "mediastinum", "esophageal", "", "esophagus | esophageal | paraesophageal | retrosternal | paratracheal"),
    _part("vein", "mediastinum", "venous", "",
          "svc | superior vena cava | cavoatrial junction | caval atrial junction | right atrium | right atrial"
          "| cavo atrial junction"
          "| atrium | subclavian | innominate vein | brachiocephalic vein | left atrium | left atrial | vena cava"
          "| axillary vein | jugular"),
    _part("node", "mediastinum", "lymph node", "", "lymph node | node | nodal"),
    _part("lungs", "lungs", "lung", "The lungs are clear.",
          "lung | lung field | lung parenchyma | hemithorax | pulmonary parenchyma | parenchyma | parenchymal | lobe | midlung"
          "| lung zone | lung base | basilar | bibasilar | base | lung apex | apex | apical | biapical | lingula | lingular"
          "| perihilar"
          "| retrocardiac | suprahilar | infrahilar | fissure | airspace | air space | upper lobe | lower lobe | middle lobe"
          "| lungs"
          "| intrapulmonary | interstitium | alveolar | subsegmental | midzone | parenchymal pattern | lung apices"
          "| basal | mid lung | lobar | upper lung | lower lung | segment",
          denies=("consolidation", "opacity")),
    _part("vessels", "lungs", "pulmonary vascular", "Pulmonary vascularity is normal.",
          "pulmonary vascularity | pulmonary vasculature | vascularity | vasculature | pulmonary vascular | pulmonary vessel"
          "| vascular"
          "| pulmonary vascular pattern | pulmonary vascular marking | vascular marking | bronchovascular | vascular pattern"
          "| vessel"
          "| bronchovascular marking | pulmonary venous | interstitial", denies=("congestion",)),
    _part("expansion", "lungs", "", "The lungs are well expanded.", "aeration | pulmonary aeration"
    "| lung aeration", denies=("low_lung_volume",)),
    _part("pulmonary", "lungs", "pulmonary", "Pulmonary structures are normal.", "pulmonary | pulmonary structure"),
    _part("markings", "lungs", "lung marking", "", "marking | lung marking | pulmonary marking"),
    _part("lung_volume", "lungs", "lung volume", "Lung volumes are normal.", "lung volume | inspiration | inspiratory volume"
    "| volume"
          "| expansion | inflation", denies=("low_lung_volume", "hyperinflation")),
    _part("hila", "hila", "hilar", "The hila are unremarkable.",
          "hilum | hilar | bihilar | hilar contour | hilar structure | hilar shadow | hilar region | pulmonary artery"
          "| pulmonary arterial | hilar vessel"
          "| bilateral hilum | main pulmonary artery | pulmonary arterial", denies=("hilar_enlargement",)),
    _part("pleura", "diaphragm", "pleural", "The pleural spaces are clear.",
          "pleura | pleural | pleural space | pleural surface | subpleural | pleural cavity"
          "| pleural based", denies=("effusion",)),
    _part("costophrenic_angle", "diaphragm", "costophrenic", "The costophrenic angles are sharp.",
          "costophrenic angle | costophrenic sulcus | costophrenic | costophrenic recess | sulcus | cp angle"
          "| cardiophrenic angle"
          "| cardiophrenic | costodiaphragmatic | phrenic angle | posterior sulcus", denies=("costophrenic_blunting",)),
    _part("diaphragm", "diaphragm", "diaphragmatic", "The diaphragm is smooth.",
          "diaphragm | hemidiaphragm | diaphragmatic | diaphragm contour | hemi diaphragm",
          denies=("diaphragm_elevation", "diaphragm_flattening")),
    _part("abdomen", "diaphragm", "abdominal", "The visible upper abdomen is unremarkable.",
          "abdomen | upper abdomen | abdominal | upper quadrant | quadrant | bowel | stomach | gastric | colon | colonic"
          "| bowel gas pattern"
          "| bowel loop | subdiaphragmatic | gallbladder | cholecystectomy | splenic | spleen | liver | upper abdominal | kidney"
          "| gastroesophageal junction | epigastric | hepatic | intraperitoneal | subphrenic | renal | gas pattern | fundus"
          "| epigastrium | pancreatic | pancreas | rectum | rectal"),
    _part("spine", "bones", "spinal", "The spine is unremarkable.",
          "spine | thoracic spine | vertebra | vertebral body | vertebral | lumbar spine | cervical spine"
          "| thoracolumbar spine | spinal"
          "| t spine | c spine | l spine | disc | disc space | endplate | body height | vertebral body height"
          "| vertebral height | midthoracic | thoracolumbar"
          "| midthoracic spine | thoracic vertebral body | thoracic vertebra | lumbar | cervical"
          f"| spine structure | {_VERTEBRAE}", denies=("vertebral_deformity",)),
    _part("ribs", "bones", "rib", "The ribs are intact.", "rib | rib cage | costal", denies=("fracture",)),
    _part("bones", "bones", "bony", "The bony structures are intact.",
          "bone | bony | osseous | skeletal | bony structure | osseous structure | skeleton | bony thorax | bone structure"
          "| skeletal structure"
          "| bony skeleton | thoracic cage | visualized bony structure | osseous thorax | bony element | musculoskeletal"
          "| bony cage"
          "| skeletal thorax", denies=("fracture",)),
    _part("joint", "bones", "joint", "",
          "clavicle | humerus | shoulder | sternum | scapula | humeral | femur | glenoid | femoral | clavicular"
          "| acromioclavicular | ac joint"
          "| glenohumeral | humeral head | joint | acromioclavicular joint | glenohumeral joint | extremity | hip | pelvis"
          "| knee | ankle"
          "| wrist | rotator cuff | sacroiliac joint | sacrum | sternal | elbow | forearm | foot | hand | costochondral"
          "| coracoclavicular"),
    _part("soft_tissue", "thorax", "soft tissue", "The soft tissues are unremarkable.",
          "soft tissue | chest wall | breast | axilla | axillary | subcutaneous | neck | thyroid | chest wall structure"
          "| supraclavicular"),
    _part("throat", "thorax", "", "", "subglottic | epiglottis | prevertebral | laryngeal"),
    _part("thorax", "thorax", "thoracic", "The thorax is symmetric.", "thorax | thoracic | bony thorax contour"
    "| thoracic cage contour",
          denies=("chest_wall_deformity",)),
    _part("chest", OTHER, "cardiopulmonary", "",
          "cardiopulmonary | chest | intrathoracic | cardiothoracic | cardio pulmonary | cardiac pulmonary | pleuroparenchymal"
          "| thoracic disease | cardiovascular | heart and lung"),
)  # fmt: skip

CHANGES: Final[dict[str, str]] = {
    "enlarged": "enlarged | enlargement | large | prominent | prominence | increased | widened | widening | dilated"
    "| dilatation | dilation"
    "| borderline | fullness | wide | ballooned | mildly enlarged | generous | thickened | increase | distended | distention"
    "| accentuated | accentuation | full | big",
    "tortuous": "tortuous | tortuosity | ectatic | ectasia | unfolded | elongated | uncoiled | unfolding",
    "elevated": "elevated | elevation | raised | eventrated | asymmetrically elevated",
    "flattened": "flattened | flattening | flat",
    "blunted": "blunted | obscured | obscuration | not sharp | indistinct | blunt",
    "low": "low | decreased | diminished | reduced | shallow | poor",
    "thickened": "thickening",
    "shifted": "shifted | deviated | deviation | shift | displaced to",
    "loss": "height loss | loss of height | compressed | wedge shaped | wedged | collapse deformity",
}
"""Change -> phrases."""

PAIRS: Final[dict[tuple[str, str], str]] = {
    ("heart", "enlarged"): "cardiomegaly",
    ("mediastinum", "enlarged"): "mediastinal_widening",
    ("mediastinum", "shifted"): "mediastinal_shift",
    ("trachea", "shifted"): "mediastinal_shift",
    ("aorta", "tortuous"): "aortic_tortuosity",
    ("vessels", "tortuous"): "aortic_tortuosity",
    ("aorta", "enlarged"): "aortic_dilation",
    ("hila", "enlarged"): "hilar_enlargement",
    ("node", "enlarged"): "lymphadenopathy",
    ("vessels", "enlarged"): "congestion",
    ("markings", "enlarged"): "interstitial_markings",
    ("lung_volume", "low"): "low_lung_volume",
    ("lung_volume", "enlarged"): "hyperinflation",
    ("diaphragm", "elevated"): "diaphragm_elevation",
    ("diaphragm", "flattened"): "diaphragm_flattening",
    ("costophrenic_angle", "blunted"): "costophrenic_blunting",
    ("pleura", "thickened"): "pleural_thickening",
    ("pleura", "enlarged"): "pleural_thickening",
    ("spine", "loss"): "vertebral_deformity",
}
"""(part, change) -> finding."""

BECOMES: Final[dict[tuple[str, str], str]] = {
    ("calcification", "aorta"): "atherosclerosis",
    ("calcification", "vessels"): "atherosclerosis",
    ("deformity", "spine"): "vertebral_deformity",
    ("scarring", "pleura"): "pleural_thickening",
    ("calcification", "vein"): "atherosclerosis",
}
"""(finding, part it is found in) -> the finding that it is there."""

ANATOMY: Final[dict[str, Anatomy]] = {part.name: part for part in PARTS}
