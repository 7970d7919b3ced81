"""Small folders with exactly the files, columns and fields of public datasets, as their documentation describes them.

The docstring of each reader names the documentation of its layout. All sentences are our own, and all patients are numbers.
``python tests/lookalikes.py 10000`` measures the readers' speed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

FINDINGS = "The heart is not enlarged. Both lungs are clear; study {i}."
IMPRESSION = "No acute abnormality in study {i}."


def picture(suffix: str = "png") -> bytes:
    """A grey image of 8 x 8 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 90).save(buffer, format={"png": "PNG", "jpg": "JPEG"}[suffix])
    return buffer.getvalue()


PNG, JPEG = picture(), picture("jpg")


def put(path: Path, content: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def put_csv(path: Path, header: str | Sequence[str], rows: Iterable[Mapping[str, object]]) -> Path:
    """Write a CSV, gzipped if its name ends in .gz; missing cells are empty."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, header.split(",") if isinstance(header, str) else header, restval="")
    writer.writeheader()
    writer.writerows(rows)
    content = buffer.getvalue().encode("utf-8")
    return put(path, gzip.compress(content) if path.suffix == ".gz" else content)


def openi_xml(i: int, *, images: Sequence[str] | None = None, findings: str = FINDINGS, impression: str = IMPRESSION) -> str:
    """One report of Open-i, without the parts of the citation that say the same in all of them."""
    named = [f"CXR{i}_IM-0001-1001", f"CXR{i}_IM-0001-2001"] if images is None else images
    parents = "".join(
        f'<parentImage id="{name}"><figureId>F1</figureId><caption>PA and lateral</caption>'
        f'<panel type="single"><url>/hadoop/storage/radiology/extract/{name}.jpg</url></panel></parentImage>'
        for name in named
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><meta type="rr"/><uId id="CXR{i}"/><pmcId id="{i}"/>'
        "<MedlineCitation><Article><Abstract>"
        '<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Cough</AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings.format(i=i)}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression.format(i=i)}</AbstractText>'
        "</Abstract></Article></MedlineCitation>"
        f"<MeSH><major>normal</major><major>Opacity/lung/right</major><automatic>heart</automatic></MeSH>{parents}</eCitation>"
    )


def build_openi(folder: Path, studies: int = 3) -> tuple[Path, Path]:
    """Open-i: the folder of XML files and the folder of PNGs."""
    reports, images = folder / "ecgen-radiology", folder / "NLMCXR_png"
    for i in range(1, studies + 1):
        put(reports / f"{i}.xml", openi_xml(i))
        for name in (f"CXR{i}_IM-0001-1001", f"CXR{i}_IM-0001-2001"):
            put(images / f"{name}.png", PNG)
    return reports, images


def build_openi_archive(path: Path, members: Mapping[str, bytes]) -> Path:
    """Open-i's ``NLMCXR_reports.tgz`` with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        top = tarfile.TarInfo("ecgen-radiology")
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def build_r2gen(folder: Path, studies: int = 3) -> Path:
    """R2Gen's copy of IU X-Ray: one study of each split in turn."""
    lists: dict[str, list[object]] = {"train": [], "val": [], "test": []}
    for i in range(studies):
        split = ("train", "val", "test")[i % 3]
        name = f"CXR{i}_IM-0001"
        files = [f"{name}/0.png", f"{name}/1.png"]
        lists[split].append({"id": name, "report": FINDINGS.format(i=i), "image_path": files, "split": split})
        for file in files:
            put(folder / "images" / file, PNG)
    put(folder / "annotation.json", json.dumps(lists))
    return folder


KAGGLE_REPORTS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
KAGGLE_PROJECTIONS = ("uid", "filename", "projection")


def build_kaggle(folder: Path, studies: int = 3) -> Path:
    """The Kaggle set: two tables and ``images/images_normalized``."""
    reports, projections = [], []
    for i in range(1, studies + 1):
        values = {"uid": i, "MeSH": "Opacity/lung;normal", "Problems": "Opacity;normal", "image": "Xray Chest PA and Lateral"}
        texts = {
            "indication": "Cough",
            "comparison": "None.",
            "findings": FINDINGS.format(i=i),
            "impression": IMPRESSION.format(i=i),
        }
        reports.append(values | texts)
        for number, projection in ((1001, "Frontal"), (2001, "Lateral")):
            name = f"{i}_IM-0001-{number}.dcm.png"
            projections.append({"uid": i, "filename": name, "projection": projection})
            put(folder / "images" / "images_normalized" / name, PNG)
    put_csv(folder / "indiana_reports.csv", KAGGLE_REPORTS, reports)
    put_csv(folder / "indiana_projections.csv", KAGGLE_PROJECTIONS, projections)
    return folder


MIMIC_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
MIMIC_LABELS = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
    "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
# MIMIC-CXR's lines start with a space, the empty ones too.
MIMIC_REPORT = "\n ".join(
    (
        "                                FINAL REPORT",
        "EXAMINATION:  CHEST (PA AND LAT)",
        "",
        "INDICATION:  ___F with cough  // pneumonia?",
        "",
        "TECHNIQUE:  Chest PA and lateral",
        "",
        "COMPARISON:  ___",
        "",
        "FINDINGS: ",
        "",
        "{findings}",
        "",
        "IMPRESSION: ",
        "",
        "{impression}",
        "",
    )
)


def build_mimic(folder: Path, studies: int = 3) -> Path:
    """MIMIC-CXR-JPG, with the reports of MIMIC-CXR beside the images; two studies a patient, two images a study."""
    metadata, splits, labels = [], [], []
    for i in range(studies):
        patient, study = 10000000 + i // 2, 50000000 + i
        place = folder / "files" / f"p{patient}"[:3] / f"p{patient}"
        put(place / f"s{study}.txt", MIMIC_REPORT.format(findings=FINDINGS.format(i=i), impression=IMPRESSION.format(i=i)))
        split = ("train", "validate", "test")[patient % 3]
        for view in ("PA", "LATERAL"):
            image = f"{i:08x}-{view.lower():0>8}"
            put(place / f"s{study}" / f"{image}.jpg", JPEG)
            ids = {"dicom_id": image, "subject_id": patient, "study_id": study}
            metadata.append({**ids, "PerformedProcedureStepDescription": "CHEST (PA AND LAT)", "ViewPosition": view, "Rows": 3056})
            splits.append({**ids, "split": split})
        found = {"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"}
        labels.append({"subject_id": patient, "study_id": study, **found})
    put_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", MIMIC_METADATA, metadata)
    put_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), splits)
    put_csv(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", MIMIC_LABELS, labels)
    return folder


CHEXPERT_PLUS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_clinical_history,section_history,section_comparison,section_technique,"
    "section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,"
    "section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)


def build_chexpert_plus(folder: Path, studies: int = 3) -> Path:
    """CheXpert-Plus with its PNGs; the frontal images come first, so that the rows of a study do not stand together."""
    rows = []
    for view, name in (("Frontal", "view1_frontal"), ("Lateral", "view2_lateral")):
        for i in range(studies):
            split = "valid" if i % 5 == 4 else "train"
            place = f"{split}/patient{i // 2:05d}/study{i % 2 + 1}/{name}"
            put(folder / "PNG" / f"{place}.png", PNG)
            texts = {
                "report": "NARRATIVE: as in its sections",
                "section_clinical_history": "Cough",
                "section_comparison": "None.",
                "section_findings": FINDINGS.format(i=i),
                "section_impression": f"1. {IMPRESSION.format(i=i)}\n2. Second line.",
            }
            rows.append(
                {
                    "path_to_image": f"{place}.jpg",
                    "path_to_dcm": f"{place}.dcm",
                    "frontal_lateral": view,
                    "ap_pa": "AP" if view == "Frontal" else "",
                    "deid_patient_id": f"patient{i // 2:05d}",
                    "patient_report_date_order": i % 2 + 1,
                    "age": 61.0,
                    "sex": "Female",
                    "split": split,
                }
                | texts
            )
    put_csv(folder / "df_chexpert_plus_240401.csv", CHEXPERT_PLUS, rows)
    return folder


def build_rexgradient(folder: Path, studies: int = 3) -> Path:
    """ReXGradient-160K: one study of each split in turn."""
    entries: dict[str, dict[str, object]] = {"train": {}, "valid": {}, "test": {}}
    for i in range(studies):
        patient, accession, study = f"GRDNPAT{i:09d}", f"GRDNACC{i:09d}", f"1.2.826.{i}"
        files = [f"../deid_png/{patient}/{accession}/studies/{study}/series/1.{n}/instances/1.{n}.1.png" for n in (1, 2)]
        for file in files:
            put(folder / file.removeprefix("../"), PNG)
        entries[("train", "valid", "test")[i % 3]][f"p{patient}_a{accession}_s{study}"] = {
            "StudyInstanceUid": study,
            "PatientID": patient,
            "AccessionNumber": accession,
            "PatientSex": "F",
            "PatientAge": "061Y",
            "StudyDate": "20200101",
            "Indication": "Cough",
            "Comparison": "None.",
            "Findings": FINDINGS.format(i=i),
            "Impression": IMPRESSION.format(i=i),
            "ImagePath": files,
            "ImageModality": ["DX", "DX"],
            "ImageShape": [[608, 500], [608, 500]],
            "ImageBodyPart": ["CHEST", "CHEST"],
            "ImageViewPosition": ["PA", "LATERAL"],
        }
    for split, content in entries.items():
        put(folder / "metadata" / f"{split}_metadata_view_position.json", json.dumps(content, indent=2))
    return folder


PADCHEST_TABLE = (
    "StudyID,ImageID,label,boxes_count,extra_boxes_count,locations,prior_study,progression_status,prior_imageID,"
    "sentence_en,sentence_es,study_is_benchmark,study_is_validation,split,PatientID,patient_is_benchmark,"
    "PatientBirth,PatientSex_DICOM,StudyDate_DICOM,StudyDate,PatientAge,label_group,Year"
)


def build_padchest_gr(folder: Path, studies: int = 3) -> Path:
    """PadChest-GR: one positive and one negative sentence a study; the negative one has no labels, as in the dataset."""
    reports, rows = [], []
    for i in range(studies):
        study, image = f"2053668664013{i}", f"2053668664013{i}_abc.png"
        positive = {
            "sentence_en": f"Mild cardiomegaly in study {i}.",
            "sentence_es": f"Cardiomegalia leve, señalada en el estudio {i}.",
            "abnormal": True,
            "boxes": [[0.2, 0.4, 0.8, 0.7]],
            "extra_boxes": [],
            "labels": ["cardiomegaly"],
            "locations": ["cardiac"],
            "progression": None,
        }
        negative = {"sentence_en": "No pleural effusion.", "sentence_es": "Sin derrame pleural.", "abnormal": False}
        before = {"PreviousStudyID": None, "PreviousImageID": None}
        reports.append({"StudyID": study, "ImageID": image, **before, "findings": [positive, negative]})
        split = ("train", "validation", "test")[i % 3]
        ids = {"StudyID": study, "ImageID": image, "PatientID": f"84{i}", "split": split}
        rows += [ids | {"label": label, "label_group": "group"} for label in ("cardiomegaly", "second label")]
        put(folder / "PadChest_GR" / image, PNG)
    put(folder / "grounded_reports_20240819.json", json.dumps(reports, ensure_ascii=False))
    put_csv(folder / "master_table.csv", PADCHEST_TABLE, rows)
    return folder


NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def build_nih(folder: Path, studies: int = 3) -> Path:
    """NIH ChestX-ray14: two images a patient, every fifth patient in the test list, images in two of the twelve folders."""
    lines, lists = [NIH_HEADER], {"train_val_list.txt": list[str](), "test_list.txt": list[str]()}
    for i in range(studies):
        name = f"{i // 2 + 1:08d}_{i % 2:03d}.png"
        labels = "No Finding" if i % 2 else "Cardiomegaly|Effusion"
        lines.append(f"{name},{labels},{i % 2},{i // 2 + 1},58,M,PA,2682,2749,0.143,0.143,")
        lists["test_list.txt" if (i // 2) % 5 == 1 else "train_val_list.txt"].append(name)
        put(folder / f"images_{i % 2 + 1:03d}" / "images" / name, PNG)
    put(folder / "Data_Entry_2017.csv", "\n".join(lines) + "\n")
    for name, images in lists.items():
        put(folder / name, "\n".join(images))
    return folder


def build_echo(folder: Path, studies: int = 3) -> Path:
    """The official evaluation's JSON, with paths relative to it."""
    samples = []
    for i in range(studies):
        files = [f"img/{i}_0.png", f"img/{i}_1.png"]
        for file in files:
            put(folder / file, PNG)
        truth = {"findings": FINDINGS.format(i=i), "impression": IMPRESSION.format(i=i)}
        samples.append({"sample_id": f"sample_{i}", "images": files, "ground_truth": truth})
    return put(folder / "test.json", json.dumps(samples, ensure_ascii=False))


def build_table(folder: Path, studies: int = 3) -> Path:
    """A hospital's own export: a CSV with a row per study."""
    rows = []
    for i in range(studies):
        files = [f"{i}_a.png", f"{i}_b.png"]
        for file in files:
            put(folder / "img" / file, PNG)
        texts = {"findings": FINDINGS.format(i=i), "impression": IMPRESSION.format(i=i)}
        rows.append({"id": f"S{i}", "who": f"P{i // 2}", "image": "|".join(files), "view": "PA|LAT", **texts})
    return put_csv(folder / "reports.csv", ("id", "who", "image", "view", "findings", "impression"), rows)


BUILDERS: dict[str, Callable[[Path, int], object]] = {
    "iu_openi": build_openi,
    "iu_r2gen": build_r2gen,
    "iu_kaggle": build_kaggle,
    "mimic_cxr": build_mimic,
    "chexpert_plus": build_chexpert_plus,
    "rexgradient": build_rexgradient,
    "padchest_gr": build_padchest_gr,
    "nih_chestxray14": build_nih,
    "echo_json": build_echo,
    "table": build_table,
}


def open_reader(name: str, folder: Path, built: object) -> Any:
    """Reader of a dataset that its builder made in a folder."""
    from echo_pl.data.readers.readers import READERS
    from echo_pl.data.readers.table_corpus import Columns

    if isinstance(built, tuple):
        return READERS[name](built[0], images=built[1])
    if name == "table":
        return READERS[name](built, images=folder / "img", columns=Columns(patient="who", view="view"))
    return READERS[name](built)


def main() -> None:
    """Build each dataset once and print the studies per second of its reader."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("studies", type=int, nargs="?", default=10_000)
    count = parser.parse_args().studies
    for name, build in BUILDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            reader = open_reader(name, Path(folder), build(Path(folder), count))
            started = time.perf_counter()
            read = sum(1 for _ in reader.studies())
            whole = time.perf_counter() - started
            started = time.perf_counter()
            left = sum(1 for _ in reader.studies(skip=read))
            skipped = time.perf_counter() - started
            print(f"{name:16} {read:6} studies  {read / whole:8.0f} studies/s  all skipped: {read / skipped:8.0f} studies/s", left)


if __name__ == "__main__":
    main()
