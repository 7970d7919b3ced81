"""What a chest report speaks of: findings and devices, each with the region in which it is told.

A table, nothing else. Phrases are written in the singular and divided by ``|``. English; the Chinese terms of
:mod:`echo_pl.reports.chinese_terms` have the same names. What lies below the diaphragm is told with the diaphragm, what
belongs to the pleura with the costophrenic angles, and the aorta with the mediastinum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["finding", "device"]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A finding or a device."""

    name: str
    region: str
    noun: str
    """What stands after "there is no" in a canonical negative."""
    terms: tuple[str, ...] = ()
    """Phrases that name it; those that a part of the body and a change of it make together are in ``anatomy``."""
    kind: Kind = "finding"
    moves: bool = False
    """Told in the region of the part it is found in, where the words name one; ``region`` is the default."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of the table, before it knows its region."""

    name: str
    noun: str
    terms: str
    moves: bool = False


def _region(region: str, *rows: _Row, kind: Kind = "finding") -> tuple[Concept, ...]:
    return tuple(
        Concept(
            name=row.name,
            region=region,
            noun=row.noun,
            terms=tuple(term for part in row.terms.split("|") if (term := part.strip())),
            kind=kind,
            moves=row.moves,
        )
        for row in rows
    )


def _row(name: str, noun: str, terms: str = "", *, moves: bool = False) -> _Row:
    return _Row(name=name, noun=noun, terms=terms, moves=moves)


_LUNGS = _region(
    "lungs",
    _row("consolidation", "consolidation",
         "consolidation | consolidated | consolidative | airspace disease | air space disease | infiltrate | infiltration"
         "| airspace process | air space process | alveolar process | alveolar disease | airspace infiltrate"
         "| airspace consolidation"
         "| air space consolidation | parenchymal disease | alveolar consolidation | alveolar infiltrate"
         "| airspace disease process | pulmonary infiltrate | parenchymal consolidation"),
    _row("opacity", "opacity",
         "opacity | opacification | density | airspace opacity | air space opacity | opacified | haziness | hazy | shadowing"
         "| nodular density | nodular opacity | interstitial opacity | nodular airspace opacity"
         "| nodular interstitial opacity", moves=True),
    _row("atelectasis", "atelectasis", "atelectasis | atelectatic | collapse | atelectatic change | collapsed"),
    _row("pneumonia", "pneumonia", "pneumonia | bronchopneumonia | pneumonitis | pneumonic | pulmonary infection"),
    _row("edema", "edema", "edema | pulmonary edema | interstitial edema | alveolar edema | oedema", moves=True),
    _row("congestion", "vascular congestion",
         "congestion | vascular congestion | pulmonary vascular congestion | venous hypertension | pulmonary venous congestion"
         "| pulmonary venous hypertension | volume overload | fluid overload | cephalization | engorgement | engorged"
         "| vascular engorgement"),
    _row("nodule", "nodule", "nodule | nodular | calcified nodule", moves=True),
    _row("mass", "mass", "mass | masslike | tumor | neoplasm | malignancy | carcinoma | metastatic disease | metastasis"
         "| pulmonary mass | lung mass | lesion", moves=True),
    _row("granuloma", "granuloma",
         "granuloma | calcified granuloma | granulomatous disease | granulomatous | granulomatous infection | histoplasmosis"
         "| calcified granulomatous disease | granulomatous change | granulomatous calcification | calcified granulomatous"
         "| granulomatous process", moves=True),
    _row("scarring", "scarring", "scarring | scar | cicatrix | scarlike | fibronodular | fibronodular scarring", moves=True),
    _row("fibrosis", "fibrosis", "fibrosis | fibrotic | interstitial lung disease | interstitial disease"
    "| pulmonary fibrosis | honeycombing"
         "| interstitial fibrosis | chronic interstitial lung disease"),
    _row("interstitial_markings", "interstitial prominence",
         "interstitial marking | interstitial prominence | reticular | interstitial change | bronchitic | interstitial pattern"
         "| peribronchial cuffing | bronchial wall thickening | septal line | interstitial thickening | bronchovascular crowding"
         "| crowding | reticulonodular | peribronchial thickening | interstitial infiltrate"),
    _row("emphysema", "emphysema",
         "emphysema | emphysematous | copd | chronic obstructive pulmonary disease | obstructive lung disease | bulla | bullous"
         "| obstructive pulmonary disease | bleb | hyperlucent | hyperlucency | chronic obstructive lung disease"),
    _row("hyperinflation", "hyperinflation",
         "hyperinflation | hyperinflated | hyperexpansion | hyperexpanded | overinflated | hyperaeration | hyperaerated"
         "| hyperdistention | air trapping | overexpanded | hyperdistended | large lung volume"),
    _row("low_lung_volume", "hypoinflation",
         "low lung volume | hypoinflation | hypoinflated | underinflated | hypoventilation | hypoventilatory | low volume"
         "| hypoaeration | hypoexpansion | shallow inspiration | hypoexpanded | underinflation | reduced lung volume"
         "| poor inspiration | poor inspiratory effort | low inspiration | diminished lung volume | decreased lung volume"
         "| small lung volume | hypoventilated | limited inspiration | low inspiratory volume | shallow inspiratory effort"),
    _row("volume_loss", "volume loss", "volume loss | loss of volume"),
    _row("cavity", "cavity", "cavity | cavitary | cavitary lesion | cavitation | cavitating | cyst | cystic", moves=True),
    _row("bronchiectasis", "bronchiectasis", "bronchiectasis | bronchiectatic"),
    _row("pneumothorax", "pneumothorax", "pneumothorax | pleural air collection | hydropneumothorax"),
    _row("tuberculosis", "sign of tuberculosis", "tuberculosis | tuberculous | tb"),
    _row("lucency", "abnormal lucency", "lucency | lucent | lytic", moves=True),
    _row("lung_resection", "sign of lung resection", "lobectomy | pneumonectomy | lung resection | wedge resection"),
    _row("azygos_lobe", "azygos lobe", "azygos lobe | azygos fissure | azygous lobe"),
)  # fmt: skip

_HEART = _region(
    "heart",
    _row("cardiomegaly", "cardiomegaly", "cardiomegaly | cardiac enlargement | cardiac prominence | cardiac decompensation"),
    _row("heart_failure", "sign of heart failure",
         "heart failure | congestive heart failure | chf | cardiac failure | failure | congestive failure"),
    _row("pericardial_effusion", "pericardial effusion", "pericardial effusion | pericardial fluid"),
    _row("epicardial_fat", "prominent epicardial fat",
         "epicardial fat | epipericardial fat | pericardial fat | epicardial fat pad | fat pad | pericardial fat pad"
         "| cardiophrenic fat"),
)  # fmt: skip

_MEDIASTINUM = _region(
    "mediastinum",
    _row("calcification", "calcification", "calcification | calcified | calcific | calcinosis", moves=True),
    _row("aortic_tortuosity", "aortic tortuosity", "aortic tortuosity | aortic ectasia | aortic unfolding"),
    _row("atherosclerosis", "aortic atherosclerosis",
         "atherosclerosis | atherosclerotic | arteriosclerotic | arteriosclerosis | atherosclerotic calcification"
         "| vascular calcification"
         "| atherosclerotic disease | calcified atherosclerotic | atherosclerotic vascular calcification"),
    _row("aortic_dilation", "aortic aneurysm", "aneurysm | aortic aneurysm | aneurysmal"),
    _row("mediastinal_widening", "mediastinal widening",
         "mediastinal widening | mediastinal mass | pneumomediastinum | mediastinal lipomatosis | widened mediastinum"),
    _row("mediastinal_shift", "mediastinal shift", "mediastinal shift | tracheal deviation"),
    _row("hiatal_hernia", "hiatal hernia", "hiatal hernia | hiatus hernia | hernia | paraesophageal hernia"),
    _row("lymphadenopathy", "lymphadenopathy", "lymphadenopathy | adenopathy", moves=True),
    _row("goiter", "goiter", "goiter | thyromegaly"),
)  # fmt: skip

_HILA = _region(
    "hila",
    _row("hilar_enlargement", "hilar enlargement", "hilar fullness | hilar enlargement"),
    _row("pulmonary_hypertension", "sign of pulmonary hypertension",
         "pulmonary arterial hypertension | pulmonary hypertension | pulmonary artery hypertension"),
    _row("sarcoidosis", "sign of sarcoidosis", "sarcoidosis | sarcoid"),
)  # fmt: skip

_DIAPHRAGM = _region(
    "diaphragm",
    _row("effusion", "pleural effusion",
         "effusion | pleural effusion | pleural fluid | hydrothorax | hemothorax | pleural fluid collection | empyema"
         "| pleural collection | fluid collection"),
    _row("costophrenic_blunting", "blunting of the costophrenic angles", "blunting"),
    _row("pleural_thickening", "pleural thickening", "pleural thickening | pleural plaque | pleural scarring | pleural reaction"
         "| pleuroparenchymal scarring | apical capping | apical cap | pleural capping | capping"),
    _row("diaphragm_elevation", "elevation of the diaphragm", ""),
    _row("diaphragm_flattening", "flattening of the diaphragm", ""),
    _row("eventration", "eventration of the diaphragm", "eventration"),
    _row("free_air", "free air below the diaphragm", "free air | pneumoperitoneum | free intraperitoneal air"
    "| free subdiaphragmatic air"
         "| subdiaphragmatic air | intraperitoneal air | free abdominal air | subphrenic air | free peritoneal air"
         "| free intra abdominal air"
         "| free subphrenic air"),
)  # fmt: skip

_BONES = _region(
    "bones",
    _row("fracture", "fracture", "fracture | fractured | fx | callus | callus formation"),
    _row("degenerative_change", "degenerative change",
         "degenerative change | degenerative | degenerative disease | degenerative disc disease | degenerative joint disease"
         "| osteophyte | osteophytosis | spurring | spondylosis | arthritis | arthritic | arthritic change | arthropathy"
         "| osteoarthritis | spondylitic | dish | endplate change | disc space narrowing | syndesmophyte | bridging osteophyte"
         "| arthrosis | hypertrophic change | spur | osteoarthritic | subchondral cyst | subchondral cystic change"),
    _row("scoliosis", "scoliosis", "scoliosis | dextroscoliosis | levoscoliosis | scoliotic | curvature | dextrocurvature"
    "| levocurvature"
         "| rotoscoliosis | kyphoscoliosis | dextro scoliosis"),
    _row("kyphosis", "kyphosis", "kyphosis | kyphotic"),
    _row("osteopenia", "osteopenia", "osteopenia | osteopenic | osteoporosis | osteoporotic | demineralization | demineralized"),
    _row("vertebral_deformity", "vertebral compression", "compression deformity | wedge deformity | wedging"
    "| vertebral body height loss | thoracic deformity | lumbar deformity"
         "| loss of vertebral body height | anterior wedging | compression | wedge"),
    _row("deformity", "deformity", "deformity | deformed", moves=True),
    _row("joint_effusion", "joint effusion", "joint effusion | knee effusion | elbow effusion"),
    _row("dislocation", "dislocation", "dislocation | subluxation"),
    _row("bone_lesion", "destructive bone lesion",
         "bone lesion | bony lesion | osseous lesion | sclerotic lesion | sclerotic"
         "| sclerosis | blastic | bony destruction | lytic lesion"
         "| lytic bone lesion"),
)  # fmt: skip

_THORAX = _region(
    "thorax",
    _row("subcutaneous_emphysema", "subcutaneous emphysema", "subcutaneous emphysema | subcutaneous air | subcutaneous gas"),
    _row("chest_wall_deformity", "pectus deformity", "pectus excavatum | pectus carinatum | pectus"
    "| pectus deformity | pectus excavatum deformity | pectus carinatum deformity"),
    _row("mastectomy", "sign of mastectomy", "mastectomy"),
    _row("nipple_shadow", "nipple shadow", "nipple shadow | nipple | nipple artifact"),
    _row("foreign_body", "foreign body", "foreign body | bullet | shrapnel | projectile | radiopaque object"
    "| metallic object", moves=True),
)  # fmt: skip

_DEVICES = (
    *_region(
        "thorax",
        _row("pacemaker", "pacemaker",
             "pacemaker | pacer | icd | aicd | defibrillator | pacing device | cardiac device | pacing lead | generator | lead"
             "| cardiac generator | pacemaker lead | cardiac pacemaker | dual lead"
             "| automatic implantable cardioverter defibrillator"),
        _row("sternotomy", "sternotomy", "sternotomy | sternotomy wire | sternal wire | cabg | bypass graft"
        "| coronary artery bypass"
             "| bypass | median sternotomy | sternal suture"),
        _row("breast_implant", "breast implant", "breast implant | breast prosthesis | implant"),
        _row("surgical_clip", "surgical clip", "surgical clip | clip | suture | staple | postsurgical change"
        "| postoperative change"
             "| vascular clip | surgical material | suture material | surgical suture | staple line", moves=True),
        _row("stimulator", "stimulator", "stimulator | neurostimulator | loop recorder | cardiac monitor"),
        _row("monitor_lead", "monitor lead", "ekg lead | ecg lead | monitoring lead | telemetry lead | monitor lead"
        "| external lead"
             "| external monitor lead | cardiac monitor lead | external cardiac monitor lead"),
        kind="device",
    ),
    *_region(
        "mediastinum",
        _row("endotracheal_tube", "endotracheal tube", "endotracheal tube | et tube | ett | tracheostomy | tracheostomy tube"
             "| tracheostomy cannula"),
        _row("gastric_tube", "gastric tube", "nasogastric tube | ng tube | enteric tube | feeding tube | gastric tube"
        "| orogastric tube"
             "| dobhoff tube | dobbhoff tube | og tube"),
        _row("central_line", "central line",
             "central line | catheter | picc | picc line | central venous catheter | central venous line | support line"
             "| mediport | infusion port"
             "| chest port | port | port a cath | dialysis catheter | central catheter | swan ganz catheter | portacath"
             "| catheter fracture | venous catheter | portacatheter | port a catheter | vascular catheter | subclavian catheter"
             "| subclavian line | internal jugular catheter | ij catheter | jugular catheter"),
        kind="device",
    ),
    *_region("heart", _row("stent", "stent", "stent | coronary stent | coronary artery stent"
    "| coronary vascular stent", moves=True), _row("valve_prosthesis", "prosthetic valve", "prosthetic valve | valve replacement"
    "| valve prosthesis"
             "| artificial valve | mechanical valve | prosthetic cardiac valve | prosthetic aortic valve"
             "| aortic valve replacement"
             "| mitral valve replacement | prosthetic mitral valve | prosthetic heart valve"),
             kind="device"),
    *_region("diaphragm", _row("chest_tube", "chest tube", "chest tube | thoracostomy tube | drain | pigtail catheter"
    "| pleural tube"
             "| pleural catheter | pleural drain"), kind="device"),
    *_region("bones", _row("bone_hardware", "orthopedic hardware",
             "hardware | spinal fusion | fusion | fixation | rod | screw | arthroplasty | prosthesis | orthopedic hardware"
             "| plate"
             "| fixation hardware | pin | shoulder replacement | joint replacement | suture anchor | surgical anchor | anchor"
             "| harrington rod | fusion hardware | spinal hardware | fixation plate"), kind="device"),
    *_region("diaphragm", _row("shunt", "shunt", "shunt | vp shunt | shunt tubing | shunt catheter | gastric band | lap band"
             "| ivc filter"), kind="device"),
    *_region("thorax", _row("other_device", "device", "device | implanted device | tubing | wire | tube | cannula"
    "| stabilization device",
             moves=True), kind="device"),
)  # fmt: skip

CONCEPTS: Final[tuple[Concept, ...]] = (*_THORAX, *_MEDIASTINUM, *_LUNGS, *_HEART, *_HILA, *_DIAPHRAGM, *_BONES, *_DEVICES)
BY_NAME: Final[dict[str, Concept]] = {one.name: one for one in CONCEPTS}
CONCEPT_NAMES: Final[tuple[str, ...]] = tuple(BY_NAME)
DEVICE_NAMES: Final[frozenset[str]] = frozenset(one.name for one in CONCEPTS if one.kind == "device")


def is_device(name: str) -> bool:
    """Whether a name of the table is a device."""
    return name in DEVICE_NAMES
