"""Who may import whom: the table of docs/architecture.md, held against the import statements of every file."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EVERYWHERE = "*"

OURS: dict[str, set[str]] = {
    "echo_pl.structs": set(),
    "echo_pl.runs": set(),
    "echo_pl.checkpointing": {"echo_pl.runs"},
    "echo_pl.finite_loss": set(),
    "echo_pl.mlflow_logger": set(),
    "echo_pl.mlflow_upload": set(),
    "echo_pl.mlflow_mirror": {"echo_pl.mlflow_logger", "echo_pl.mlflow_upload"},
    "echo_pl.diffusion": {"echo_pl.structs"},
    "echo_pl.data": {"echo_pl.structs"},
    "echo_pl.backbone": {"echo_pl.structs", "echo_pl.diffusion"},
    "echo_pl.sampling": {"echo_pl.structs", "echo_pl.diffusion", "echo_pl.backbone"},
    "echo_pl.metrics": {"echo_pl.structs"},
    "echo_pl.evaluation": {
        "echo_pl.structs",
        "echo_pl.sampling",
        "echo_pl.metrics",
        "echo_pl.data.images",
        "echo_pl.data.judge",
        "echo_pl.data.response",
    },
    "echo_pl.bench": {"echo_pl.structs", "echo_pl.diffusion", "echo_pl.backbone", "echo_pl.sampling", "echo_pl.evaluation"},
    "echo_pl.distributed": {"echo_pl.backbone", "echo_pl.checkpointing", "echo_pl.runs"},
    "echo_pl.stages": {
        "echo_pl.structs",
        "echo_pl.diffusion",
        "echo_pl.backbone",
        "echo_pl.sampling",
        "echo_pl.metrics",
    },
    "echo_pl.lineage": {"echo_pl"},
    "echo_pl.resume": {"echo_pl"},
    "echo_pl.start": {"echo_pl"},
    "echo_pl.baseline": {"echo_pl"},
    "echo_pl.config_keys": set(),
    "echo_pl.assemble": {"echo_pl"},
    "echo_pl.run": {"echo_pl"},
    "echo_pl.__main__": {"echo_pl"},
    "echo_pl.tools": {"echo_pl"},
    "callbacks": {
        "echo_pl.structs",
        "echo_pl.sampling",
        "echo_pl.metrics",
        "echo_pl.evaluation",
        "echo_pl.stages",
    },
}
"""Room -> what of ours it may import, besides itself."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "torch": (EVERYWHERE,),
    "lightning": (
        "echo_pl.checkpointing",
        "echo_pl.finite_loss",
        "echo_pl.mlflow_logger",
        "echo_pl.mlflow_mirror",
        "echo_pl.distributed",
        "echo_pl.data.datamodule",
        "echo_pl.stages",
        "echo_pl.assemble",
        "echo_pl.run",
        "echo_pl.resume",
        "echo_pl.tools.checkpoint",
        "echo_pl.tools.compare_copies",
        "callbacks",
    ),
    "transformers": (
        "echo_pl.backbone",
        "echo_pl.data.processor",
        "echo_pl.data.tokenizer",
        "echo_pl.data.embeddings",
        "echo_pl.evaluation.text_models",
    ),
    "peft": ("echo_pl.backbone.lora",),
    "tokenizers": ("echo_pl.data.tokenizer",),
    "webdataset": ("echo_pl.data",),
    "safetensors": (
        "echo_pl.sampling.trajectory_store",
        "echo_pl.sampling.trajectory_writer",
        "echo_pl.data.feature_store",
        "echo_pl.evaluation.text_models",
    ),
    "torchmetrics": ("echo_pl.metrics", "echo_pl.stages.warmup"),
    "hydra": ("echo_pl.config_keys", "echo_pl.assemble", "echo_pl.run", "echo_pl.__main__", "echo_pl.tools"),
    "omegaconf": (
        "echo_pl.config_keys",
        "echo_pl.assemble",
        "echo_pl.run",
        "echo_pl.lineage",
        "echo_pl.resume",
        "echo_pl.start",
        "echo_pl.__main__",
        "echo_pl.tools",
    ),
    "mlflow": (
        "callbacks",
        "echo_pl.run",
        "echo_pl.mlflow_upload",
        "echo_pl.mlflow_mirror",
        "echo_pl.tools.benchmarks",
        "echo_pl.tools.evaluation_upload",
        "echo_pl.tools.upload_run",
        "echo_pl.tools.sweep_record",
        "echo_pl.tools.compare",
    ),
    "hydra_plugins": ("echo_pl.__main__",),
    "nltk": ("echo_pl.metrics.meteor",),
    "jieba": ("echo_pl.metrics.words",),
    "matplotlib": ("echo_pl.evaluation",),
    "rich": ("callbacks",),
    "pydicom": ("echo_pl.data.dicom",),
    "PIL": ("echo_pl.data", "echo_pl.evaluation", "echo_pl.tools.bench_data"),
    "fsspec": ("echo_pl.data.remote_folder",),
    "aiohttp": ("echo_pl.data.remote_folder",),
    "botocore": ("echo_pl.data.remote_folder",),
    "numpy": ("echo_pl.data", "echo_pl.metrics", "callbacks"),
    "tqdm": ("echo_pl.tools", "echo_pl.evaluation", "echo_pl.data"),
    "flash_attn": (),
    "torchvision": (),
}
"""Third party -> where it may be imported; a library that is not named here is a new dependency to think about."""

STAGES = {f"echo_pl.stages.{name}" for name in ("warmup", "pretrain", "rad", "dcd")}


def inside(module: str, place: str) -> bool:
    return place == EVERYWHERE or module == place or module.startswith(place + ".")


def is_file(module: str) -> bool:
    return (REPOSITORY / module.replace(".", "/")).with_suffix(".py").is_file()


@cache
def imports() -> list[tuple[str, str]]:
    """(importing module, imported module) of every import statement, those inside functions included."""
    found = []
    for package in ("echo_pl", "callbacks"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found += [(module, alias.name) for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{module}: imports are written out, not relative"
                    assert not any(alias.name == "*" for alias in node.names), f"{module} imports everything"
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                    # `from echo_pl.data import response` imports a module, `from echo_pl.structs import Batch` a name.
                    found += [(module, name if is_file(name) else str(node.module)) for name in names]
    assert len(found) > 300
    return found


def room_of(module: str) -> str:
    rooms = [room for room in OURS if inside(module, room)]
    assert rooms or module == "echo_pl", f"{module} is in no room of the table: say what it may import"
    return max(rooms, key=len, default="echo_pl")


@pytest.mark.parametrize("room", OURS)
def test_rooms_import_only_the_rooms_they_may(room):
    # The bare package (its place on the disk) is no room.
    used = {(m, i) for m, i in imports() if room_of(m) == room and inside(i, "echo_pl") and i != "echo_pl"}
    used |= {(m, i) for m, i in imports() if room_of(m) == room and inside(i, "callbacks")}
    wrong = [(m, i) for m, i in used if not any(inside(i, allowed) for allowed in {room, *OURS[room]})]
    assert not wrong, f"{room} must not import this: {sorted(wrong)}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_third_parties_stay_where_they_belong(library):
    wrong = [m for m, i in imports() if i.split(".")[0] == library and not any(inside(m, p) for p in ONLY_IN[library])]
    assert not wrong, f"{library} is imported in {sorted(set(wrong))}"


def test_no_other_third_party_is_imported():
    known = {*ONLY_IN, "echo_pl", "callbacks", *sys.stdlib_module_names}
    assert not sorted({(m, i) for m, i in imports() if i.split(".")[0] not in known})


def test_the_mathematics_needs_torch_alone():
    libraries = {i.split(".")[0] for m, i in imports() if inside(m, "echo_pl.diffusion") or m == "echo_pl.structs"}
    assert libraries - sys.stdlib_module_names <= {"torch", "echo_pl"}


def test_the_package_does_not_know_its_observers():
    assert not [(m, i) for m, i in imports() if inside(m, "echo_pl") and inside(i, "callbacks")]


def test_no_stage_imports_a_stage():
    assert not [(m, i) for m, i in imports() if inside(m, "echo_pl.stages") and i in STAGES]


def test_the_table_in_the_documentation_names_every_room():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text[text.index("## Who may import whom") :]
    for room in OURS:
        assert room.removeprefix("echo_pl.") in table, f"docs/architecture.md says nothing of {room}"
