"""Predictions, references and images from files in two formats, by study id.

The official evaluation JSON is a list of ``{"sample_id", "images", "ground_truth": {"findings", "impression"}}``. Our own format is
JSON lines of ``{"sample_id", "prediction", "reference"}`` with facts about decoding.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from echo_pl.data.images.images import ImageError, open_image
from echo_pl.evaluation.cases import EMPTY, Case, Prediction, parsed_prediction, parsed_reference, shown
from echo_pl.structs import ReportText

DECODING = ("stopped", "looped", "eos_confidence", "nfe", "forwards_per_block")
"""Optional fields of a record: facts about the decoding of its prediction."""
RECORDS = "reports.jsonl"
"""Name of the records in a folder that an evaluation wrote."""
Images = Callable[[Sequence[str]], Mapping[str, Image.Image]]
"""From study ids to images; opens the images of these studies only."""
_PIXELS = 640 * 640


def read_records(path: Path | str) -> dict[str, dict[str, Any]]:
    """Records by ``sample_id`` from JSON (a list, or an object by id), JSON lines, or a folder of an evaluation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another format, a record has no id, or ids are duplicated (all are named).
    """
    file = Path(path)
    if file.is_dir():
        file = file / RECORDS
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: give a JSON or JSON lines file, or a folder that an evaluation wrote")
    records = list(_records(file))
    _check_unique(file, (key for key, _ in records))
    if not records:
        raise ValueError(f"{file} has no records")
    return dict(records)


def read_predictions(path: Path | str, *, free_text: bool = False) -> dict[str, Prediction]:
    """The predictions of a file, by id.

    A prediction is a response with its headings, or an object with ``findings`` and ``impression``. Anything else becomes an
    empty report that is not ``parsed``.

    Args:
        path: see :func:`read_records`, also for errors.
        free_text: responses have no headings; all of their text counts as findings.

    Raises:
        ValueError: a record without a prediction, or with one of :data:`DECODING` of the wrong type.
    """
    records = read_records(path)
    without = [key for key, record in records.items() if "prediction" not in record]
    if without:
        raise ValueError(
            f"{len(without)} of {len(records)} records of {path} have no 'prediction': {shown(without)}; if these are references, "
            "give them as --references and the predictions as --predictions"
        )
    try:
        return {key: _prediction(record, free_text) for key, record in records.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_references(path: Path | str) -> dict[str, ReportText]:
    """The references of a file, by id: ``ground_truth`` (official) or ``reference`` (ours).

    Raises:
        ValueError: references are missing or empty (they are named); see also :func:`read_records`.
    """
    found = {key: _reference(record) for key, record in read_records(path).items()}
    without = [key for key, report in found.items() if report is None or report == EMPTY]
    if without:
        raise ValueError(
            f"{len(without)} of {len(found)} records of {path} have no 'ground_truth' or 'reference' with findings or impression: "
            f"{shown(without)}; a study without a reference cannot be scored"
        )
    return {key: report for key, report in found.items() if report is not None}


def references_beside(path: Path | str) -> dict[str, ReportText]:
    """References in a file of predictions, by id; records without a reference are left out."""
    found = {key: _reference(record) for key, record in read_records(path).items()}
    return {key: report for key, report in found.items() if report is not None and report != EMPTY}


def first_images(path: Path | str) -> dict[str, Path]:
    """Path of the first image of each study (``images`` of the official format); a relative path starts at the file."""
    folder = Path(path).parent
    images = {key: record.get("images") for key, record in read_records(path).items()}
    return {
        key: folder / names[0] for key, names in images.items() if isinstance(names, list) and names and isinstance(names[0], str)
    }


def images_in_files(paths: Mapping[str, Path]) -> Images:
    """Images by the id of their study, from PNG, JPEG or DICOM files; a study whose image cannot be opened is left out."""

    def images(keys: Sequence[str]) -> dict[str, Image.Image]:
        found = {}
        for key in keys:
            try:
                found[key] = open_image(paths[key], _PIXELS)
            except (KeyError, ImageError):
                continue  # the page counts the missing ones
        return found

    return images


def case_record(case: Case) -> dict[str, Any]:
    """A case as a line of our own format, which :func:`read_predictions` and :func:`read_references` read."""
    facts = {name: getattr(case.prediction, name) for name in DECODING}
    return {
        "sample_id": case.key,
        "prediction": _fields(case.prediction.report) if case.prediction.parsed else None,
        "reference": _fields(case.reference),
        **{name: value for name, value in facts.items() if value is not None},
    }


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, record in enumerate(_content(file), 1):
        if not isinstance(record, dict) or not isinstance(record.get("sample_id"), str | int):
            raise ValueError(f"record {place} of {file} is not an object with a 'sample_id'")
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"record {record['sample_id']} of {file} holds half a character (a lone surrogate)") from None
        yield str(record["sample_id"]), record


def _content(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".jsonl":
            # Lines end at \n alone: splitlines() would also cut at separators inside a report.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        content = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        lines = "; JSON lines go by the name .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"{file} is not JSON{' lines' if file.suffix == '.jsonl' else ''} ({error.msg}){lines}") from None
    except RecursionError:
        raise ValueError(f"{file} is nested too deep to be a file of reports") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    if isinstance(content, list):
        return content
    if isinstance(content, _Pairs):
        _check_unique(file, content.keys_in_order)
        others = [key for key, value in content.items() if _is_record(value) and str(value.get("sample_id", key)) != key]
        if others:
            raise ValueError(f"{file} has {len(others)} records whose sample_id differs from their key: {shown(others)}")
        return [{**(value if _is_record(value) else {"prediction": value}), "sample_id": key} for key, value in content.items()]
    raise ValueError(f"{file} holds neither a list of records nor an object by sample_id")


class _Pairs(dict[str, Any]):
    """JSON object that keeps duplicate keys; a plain dict keeps the last one silently."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.keys_in_order = tuple(key for key, _ in pairs)


def _check_unique(file: Path, keys: Iterable[str]) -> None:
    doubles = [key for key, count in Counter(keys).items() if count > 1]
    if doubles:
        raise ValueError(f"{file} has {len(doubles)} sample_ids more than once: {shown(doubles)}; keep one of each")


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and bool({"prediction", "ground_truth", "reference"} & value.keys())


def _prediction(record: Mapping[str, Any], free_text: bool) -> Prediction:
    value = record["prediction"]
    report = _fields_report(value)
    found = Prediction(report=EMPTY, parsed=False)
    if report is not None:
        found = Prediction(report=report)
    elif isinstance(value, str):
        found = parsed_prediction(value, free_text=free_text)
    return replace(found, **{name: _fact(record, name) for name in DECODING if record.get(name) is not None})


def _fact(record: Mapping[str, Any], name: str) -> Any:
    value = record[name]
    if name in ("stopped", "looped"):
        if not isinstance(value, bool):
            raise ValueError(f"{name} of {record['sample_id']} must be true, false or left out, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} of {record['sample_id']} must be a number or left out, got {value!r}")
    return float(value)


def _reference(record: Mapping[str, Any]) -> ReportText | None:
    value = record.get("ground_truth", record.get("reference"))
    return parsed_reference(value) if isinstance(value, str) else _fields_report(value)


def _fields_report(value: Any) -> ReportText | None:
    if not isinstance(value, dict) or not {"findings", "impression"} & value.keys():
        return None
    findings, impression = (value.get(name) or "" for name in ("findings", "impression"))
    if not isinstance(findings, str) or not isinstance(impression, str):
        return None
    return ReportText(findings=findings.strip(), impression=impression.strip())


def _fields(report: ReportText) -> dict[str, str]:
    return {"findings": report.findings, "impression": report.impression}
