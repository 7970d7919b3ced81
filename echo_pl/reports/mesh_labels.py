"""MeSH tags of the Indiana University reports (Open-i), in the names of the labeller.

The tags were set by hand (``mesh_major``: heading/place/side/grade) and by the Medical Text Indexer (``mesh_auto``: words of
the report).
A name is judged only in what the tags can say: a name no tag stands for is not in the table, and a study that nobody indexed
("No Indexing") is not judged at all. Source: Demner-Fushman et al., JAMIA 2016.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

NOT_INDEXED: Final = "no indexing"

_TAGS: Final[dict[str, str]] = {
    "opacity": "opacity | density | opacities | densities",
    "consolidation": "airspace disease | infiltrate | consolidation | infiltrates | consolidations | airspace diseases",
    "atelectasis": "pulmonary atelectasis | atelectasis | atelectases | focal atelectasis | discoid atelectasis",
    "pneumonia": "pneumonia | right upper lobe pneumonia | right lower lobe pneumonia | pneumonitis",
    "edema": "pulmonary edema | edema | edemas | interstitial pulmonary edema",
    "congestion": "pulmonary congestion | congestion | volume overload",
    "nodule": "nodule | nodules",
    "mass": "mass | masses | mass lesion | metastatic disease | neoplasm | lung neoplasms | tumor | neoplasms | metastases",
    "granuloma": "calcified granuloma | granulomatous disease | granuloma | granulomas | granulomatous infection | histoplasmosis"
    " | chronic granulomatous disease | lung granuloma | histoplasmoses",
    "scarring": "cicatrix | scarring | scar | scars",
    "fibrosis": "pulmonary fibrosis | fibrosis | lung diseases, interstitial | interstitial lung disease | fibroses",
    "interstitial_markings": "markings",
    "emphysema": "emphysema | pulmonary emphysema | pulmonary disease, chronic obstructive | emphysemas | copd"
    "| bullous emphysema | blister"
    " | lung, hyperlucent | bulla | chronic obstructive pulmonary disease | bullae",
    "hyperinflation": "lung/hyperdistention | hyperinflation | hyperexpansion | air trapping",
    "low_lung_volume": "lung/hypoinflation | hypoventilation",
    "volume_loss": "volume loss",
    "cavity": "cavitation | cysts",
    "bronchiectasis": "bronchiectasis",
    "pneumothorax": "pneumothorax | hydropneumothorax",
    "cardiomegaly": "cardiomegaly | cardiac shadow/enlarged | enlarged heart | cardiac shadow/prominent| cardiac shadow/borderline",
    "heart_failure": "heart failure | congestive heart failure",
    "pericardial_effusion": "pericardial effusion",
    "aortic_tortuosity": "aorta/tortuous | aorta, thoracic/tortuous | tortuous aorta | aortic ectasia",
    "atherosclerosis": "atherosclerosis | calcinosis/aorta | calcinosis/aorta, thoracic | atheroscleroses | aortic calcifications"
    " | calcifications of the aorta | aortic atherosclerosis | vascular calcification | calcinosis/blood vessels",
    "calcification": "calcinosis",
    "hiatal_hernia": "hernia, hiatal | hiatal hernia | hiatus hernia | large hiatal hernia",
    "lymphadenopathy": "lymphadenopathy | adenopathy",
    "hilar_enlargement": "lung/hilum/prominent | lung/hilum/enlarged | pulmonary artery/enlarged | pulmonary artery/prominent",
    "effusion": "pleural effusion | pleural effusions | bilateral pleural effusion | effusion | right-sided pleural effusion"
    "| pleural fluid"
    " | hydropneumothorax | hemothorax | left-sided pleural effusion",
    "costophrenic_blunting": "costophrenic angle/blunted | costophrenic angle/obscured | sulcus/blunted"
    "| costophrenic angle/sulcus"
    " | pleura/blunted",
    "pleural_thickening": "thickening/pleura | pleural thickening",
    "diaphragm_elevation": "diaphragm/elevated",
    "diaphragm_flattening": "diaphragm/flattened",
    "eventration": "diaphragmatic eventration | eventration",
    "free_air": "pneumoperitoneum",
    "fracture": "fractures, bone | fracture | rib fracture | rib fractures | spinal fractures | displaced fractures",
    "degenerative_change": "thoracic vertebrae/degenerative | spine/degenerative | osteophyte | spondylosis | arthritis"
    "| degenerative change"
    " | osteophytes | arthritic changes | thoracic spondylosis | shoulder/degenerative | lumbar vertebrae/degenerative"
    " | cervical vertebrae/degenerative | degenerative disc diseases | intervertebral disc degeneration | spondylarthritis"
    " | osteoarthritis | spinal osteophytosis | degenerative joint disease | degenerative disease"
    "| bone diseases, metabolic/degenerative",
    "scoliosis": "scoliosis | scolioses | spine curvature",
    "kyphosis": "kyphosis | kyphoses",
    "osteopenia": "bone diseases, metabolic | osteoporosis | osteopenia | osteoporoses",
    "vertebral_deformity": "deformity/thoracic vertebrae | deformity/lumbar vertebrae | deformity/spine",
    "deformity": "deformity/ribs | deformity/clavicle | deformity/humerus | deformity/mediastinum | deformity/shoulder",
    "sternotomy": "sternotomy | cabg | coronary artery bypass | sternotomies",
    "pacemaker": "implanted medical device | pacemaker, artificial | icd | defibrillators, implantable",
    "central_line": "catheters, indwelling | central venous catheter | central venous catheters | picc | picc line"
    " | catheterization, central venous",
    "endotracheal_tube": "tracheostomy | tracheostomies | intubation, intratracheal | tube, inserted/trachea"
    "| tube, inserted/trachea, carina",
    "valve_prosthesis": "implanted medical device/aortic valve | implanted medical device/mitral valve | heart valve prosthesis",
    "stent": "stents | stent",
    "bone_hardware": "implanted medical device/humerus | implanted medical device/shoulder | spinal fusion | fusion",
    "breast_implant": "breast implants",
    "mastectomy": "mastectomy | mastectomies",
    "subcutaneous_emphysema": "subcutaneous emphysema",
}

JUDGED: Final[tuple[str, ...]] = tuple(_TAGS)
_BY_TAG: Final[dict[str, tuple[str, ...]]] = {}
for _name, _tags in _TAGS.items():
    for _tag in _tags.split("|"):
        _BY_TAG[_tag.strip()] = (*_BY_TAG.get(_tag.strip(), ()), _name)


def _names(tag: str) -> tuple[str, ...]:
    """Names that one tag stands for: the longest part of it that is in the table."""
    parts = tag.lower().split("/")
    found = [parts[0], *(f"{parts[0]}/{part}" for part in parts[1:])]
    if len(parts) > 2:
        found += [f"{parts[0]}/{parts[1]}/{part}" for part in parts[2:]]
    hits = [(len(one.split("/")), _BY_TAG[one]) for one in found if one in _BY_TAG]
    longest = max((size for size, _ in hits), default=0)
    return tuple(dict.fromkeys(name for size, names in hits if size == longest for name in names))


def tagged(tags: Iterable[str]) -> frozenset[str] | None:
    """Names that the tags of one study stand for; None where the study is not indexed.

    >>> sorted(tagged(["Pleural Effusion/left/small", "Lung/hypoinflation/mild"]))
    ['effusion', 'low_lung_volume']
    """
    tags = list(tags)
    if any(tag.lower() == NOT_INDEXED for tag in tags):
        return None
    return frozenset(name for tag in tags for name in _names(tag))
