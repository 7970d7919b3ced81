"""The findings of the synthetic corpus and the ways to say them. A table, nothing else."""

from __future__ import annotations

from echo_pl.data.synthetic.grammar import Finding

SIDES = ("right", "left")
LOBES = {
    "right_upper": "right upper lobe",
    "right_middle": "right middle lobe",
    "right_lower": "right lower lobe",
    "left_upper": "left upper lobe",
    "left_lower": "left lower lobe",
}


def _placed(
    name: str,
    region: str,
    place: str,
    wordings: tuple[str, ...],
    summaries: tuple[str, ...],
    brief: tuple[str, ...],
    sizes: tuple[str, ...] = (),
) -> Finding:
    """Fill the place (a side or a lobe) into every phrase."""

    def fill(phrases: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(phrase.replace("{place}", place) for phrase in phrases)

    return Finding(
        name=name,
        region=region,
        wordings=fill(wordings),
        summaries=fill(summaries),
        brief=fill(brief),
        sizes=sizes,
    )


def _opacities() -> list[Finding]:
    return [
        _placed(
            f"opacity_{lobe}",
            "lungs",
            place,
            (
                "there is an opacity in the {place}.",
                "{place} consolidation is present.",
                "the {place} shows airspace disease.",
                "airspace opacity of the {place}.",
                "focal consolidation is noted within the {place}.",
            ),
            ("{place} opacity", "{place} pneumonia", "consolidation in the {place}"),
            ("{place} opacity.", "opacity {place}."),
        )
        for lobe, place in LOBES.items()
    ]


def _pneumothoraces() -> list[Finding]:
    return [
        _placed(
            f"pneumothorax_{side}",
            "lungs",
            side,
            (
                "there is a {place} pneumothorax.",
                "a pneumothorax is seen on the {place}.",
                "{place} sided pneumothorax is present.",
                "the {place} lung is partly collapsed by a pneumothorax.",
                "pleural air is noted on the {place}.",
            ),
            ("{place} pneumothorax", "pneumothorax on the {place}"),
            ("{place} pneumothorax.", "pneumothorax {place}."),
        )
        for side in SIDES
    ]


def _nodules() -> list[Finding]:
    return [
        _placed(
            f"nodule_{side}",
            "lungs",
            side,
            (
                "there is a nodule in the {place} lung.",
                "a {place} pulmonary nodule is seen.",
                "{place} lung nodule is noted.",
                "the {place} lung shows a round nodule.",
                "round density within the {place} lung.",
            ),
            ("{place} lung nodule", "nodule on the {place}"),
            ("{place} nodule.", "nodule {place}."),
        )
        for side in SIDES
    ]


def _effusions() -> list[Finding]:
    return [
        _placed(
            f"effusion_{side}",
            "diaphragm",
            side,
            (
                "there is a {size} {place} pleural effusion.",
                "a {size} effusion is seen on the {place}.",
                "{size} {place} sided pleural effusion.",
                "the {place} costophrenic angle is blunted by a {size} effusion.",
                "pleural fluid on the {place} is {size} in amount.",
            ),
            ("{size} {place} effusion", "{place} pleural effusion", "{size} effusion on the {place}"),
            ("{size} {place} effusion.", "{place} effusion {size}."),
            ("small", "moderate", "large"),
        )
        for side in SIDES
    ]


def _fractures() -> list[Finding]:
    return [
        _placed(
            f"rib_fracture_{side}",
            "bones",
            side,
            (
                "there is a {place} rib fracture.",
                "a fracture of a {place} rib is seen.",
                "{place} sided rib fracture is noted.",
                "the {place} ribs show a fracture.",
                "broken rib on the {place}.",
            ),
            ("{place} rib fracture", "fracture of a {place} rib"),
            ("{place} rib fracture.", "rib fracture {place}."),
        )
        for side in SIDES
    ]


_DEVICES = (
    Finding(
        name="pacemaker",
        region="thorax",
        wordings=(
            "there is a left chest pacemaker.",
            "a pacemaker is in place.",
            "cardiac pacemaker with intact leads.",
            "the left chest wall shows a pacemaker.",
            "pacing device over the left chest.",
        ),
        summaries=("pacemaker in place", "left chest pacemaker"),
        brief=("pacemaker.", "left pacemaker."),
    ),
    Finding(
        name="endotracheal_tube",
        region="mediastinum",
        wordings=(
            "there is an endotracheal tube in the trachea.",
            "an endotracheal tube is in place.",
            "endotracheal tube above the carina.",
            "the trachea contains an endotracheal tube.",
            "intubated with the tube above the carina.",
        ),
        summaries=("endotracheal tube in place", "intubated patient"),
        brief=("endotracheal tube.", "intubated."),
    ),
    Finding(
        name="central_line",
        region="mediastinum",
        wordings=(
            "there is a right central venous line.",
            "a central line is in place.",
            "central venous line from the right.",
            "the tip of a right central line is seen.",
            "right venous catheter is noted.",
        ),
        summaries=("central line in place", "right central line"),
        brief=("central line.", "right central line."),
    ),
)

_CENTRAL = (
    Finding(
        name="cardiomegaly",
        region="heart",
        wordings=(
            "there is {size} cardiomegaly.",
            "the cardiac silhouette shows {size} enlargement.",
            "{size} enlargement of the heart.",
            "heart size is increased to a {size} degree.",
            "enlarged heart of {size} degree.",
        ),
        summaries=("{size} cardiomegaly", "cardiomegaly", "{size} enlargement of the heart"),
        brief=("{size} cardiomegaly.", "cardiomegaly {size}."),
        sizes=("mild", "moderate", "severe"),
    ),
    Finding(
        name="hilar_enlargement",
        region="hila",
        wordings=(
            "there is bilateral hilar enlargement.",
            "the hila are enlarged.",
            "enlarged hilar shadows on both sides.",
            "both hila are prominent.",
            "hilar fullness is noted.",
        ),
        summaries=("hilar enlargement", "enlarged hila"),
        brief=("hilar enlargement.", "large hila."),
    ),
)

CHEST_FINDINGS: tuple[Finding, ...] = (
    *_DEVICES,
    *_opacities(),
    *_pneumothoraces(),
    *_nodules(),
    *_CENTRAL,
    *_effusions(),
    *_fractures(),
)
"""Eighteen findings over the seven regions."""
