"""Import rules: the table of docs/explain/architecture.md, held against the import statements of every file."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EVERYWHERE = "*"

FLOORS = (
    "echo_pl.structs",
    "echo_pl.io",
    "echo_pl.pages",
    "echo_pl.config",
    "echo_pl.diffusion",
    "echo_pl.llm",
    "echo_pl.reports",
    "echo_pl.backbone",
    "echo_pl.data.images",
    "echo_pl.data.store",
    "echo_pl.data.synthetic",
    "echo_pl.data.readers",
    "echo_pl.data.loading",
    "echo_pl.data.pipeline",
    "echo_pl.distributed",
    "echo_pl.tracking",
    "echo_pl.metrics",
    "echo_pl.sampling",
    "echo_pl.evaluation",
    "echo_pl.stages",
    "echo_pl.runs",
    "echo_pl.distill",
    "echo_pl.bench",
    "echo_pl.sweeps",
    "callbacks",
    "echo_pl.cli",
    "echo_pl.tools",
    "echo_pl.__main__",
)
"""Rooms from the lowest to the highest: a room imports only rooms below it."""

NEVER = {
    "echo_pl.data": ("echo_pl.diffusion", "echo_pl.backbone", "echo_pl.config"),
    "echo_pl.diffusion": ("echo_pl.io", "echo_pl.config"),
    "echo_pl.reports": ("echo_pl.config", "echo_pl.diffusion"),
    "echo_pl.llm": ("echo_pl.config", "echo_pl.diffusion", "echo_pl.structs"),
    "echo_pl.io": ("echo_pl.structs",),
    "echo_pl.metrics": ("echo_pl.data", "echo_pl.backbone", "echo_pl.tracking", "echo_pl.distributed"),
    "echo_pl.sampling": ("echo_pl.data", "echo_pl.reports", "echo_pl.metrics", "echo_pl.tracking", "echo_pl.distributed"),
    "echo_pl.stages": ("echo_pl.data", "echo_pl.evaluation", "echo_pl.tracking", "echo_pl.bench"),
    "callbacks": ("echo_pl.runs", "echo_pl.sweeps", "echo_pl.data", "echo_pl.backbone"),
}
"""Lower rooms that a room must still do without."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "torch": (EVERYWHERE,),
    "lightning": (
        "echo_pl.io.checkpoints",
        "echo_pl.tracking",
        "echo_pl.distributed",
        "echo_pl.data.loading.datamodule",
        "echo_pl.stages",
        "echo_pl.runs",
        "echo_pl.runs.checkpoint_files",
        "echo_pl.bench.copies",
        "callbacks",
    ),
    "transformers": (
        "echo_pl.backbone",
        "echo_pl.data.loading",
        "echo_pl.reports.embeddings",
        "echo_pl.evaluation.text_models",
    ),
    "peft": ("echo_pl.backbone.lora",),
    "tokenizers": ("echo_pl.data.loading.tokenizer",),
    "webdataset": ("echo_pl.data.store",),
    "filelock": ("echo_pl.io.locks",),
    "safetensors": (
        "echo_pl.sampling.trajectory_store",
        "echo_pl.sampling.trajectory_writer",
        "echo_pl.data.store.feature_store",
        "echo_pl.evaluation.text_models",
    ),
    "torchmetrics": ("echo_pl.metrics", "echo_pl.stages.warmup"),
    "hydra": (
        "echo_pl.config",
        "echo_pl.runs",
        "echo_pl.distill",
        "echo_pl.sweeps",
        "echo_pl.bench",
        "echo_pl.evaluation.demo",
        "echo_pl.cli",
        "echo_pl.__main__",
    ),
    "omegaconf": (
        "echo_pl.config",
        "echo_pl.runs",
        "echo_pl.distill",
        "echo_pl.sweeps",
        "echo_pl.bench",
        "echo_pl.evaluation.demo",
        "echo_pl.cli",
        "echo_pl.__main__",
    ),
    "mlflow": (
        "callbacks",
        "echo_pl.tracking",
        "echo_pl.evaluation.upload",
        "echo_pl.bench.benchmark",
        "echo_pl.runs",
        "echo_pl.sweeps",
        "echo_pl.cli",
    ),
    "hydra_plugins": ("echo_pl.cli.train",),
    "typer": ("echo_pl.cli", "echo_pl.__main__"),
    "nltk": ("echo_pl.metrics.meteor",),
    "jieba": ("echo_pl.metrics.words",),
    "matplotlib": ("echo_pl.evaluation", "echo_pl.sweeps"),
    "rich": ("callbacks",),
    "pydicom": ("echo_pl.data.images.dicom",),
    "scipy": ("echo_pl.sweeps.pareto",),
    "jinja2": ("echo_pl.pages",),
    "markupsafe": ("echo_pl.sweeps.pareto_report",),
    "PIL": ("echo_pl.pages", "echo_pl.data", "echo_pl.evaluation", "echo_pl.bench.data"),
    "fsspec": ("echo_pl.data.store.remote_folder",),
    "aiohttp": ("echo_pl.data.store.remote_folder",),
    "botocore": ("echo_pl.data.store.remote_folder",),
    "yaml": ("echo_pl.reports.tables",),
    "httpx": ("echo_pl.llm.chat",),
    "tenacity": ("echo_pl.llm",),
    "pydantic": ("echo_pl.llm", "echo_pl.reports"),
    "numpy": ("echo_pl.data", "echo_pl.reports", "echo_pl.metrics", "callbacks"),
    "tqdm": ("echo_pl.bench", "echo_pl.distill", "echo_pl.evaluation", "echo_pl.data", "echo_pl.runs", "echo_pl.sweeps"),
    "flash_attn": (),
    "torchvision": (),
}
"""Third party -> where it may be imported; a library that is not named here is a new dependency to think about."""

STAGES = {f"echo_pl.stages.{name}" for name in ("warmup", "pretrain", "rad", "dcd")}


def inside(module: str, place: str) -> bool:
    return place == EVERYWHERE or module == place or module.startswith(place + ".")


def is_file(module: str) -> bool:
    return (REPOSITORY / module.replace(".", "/")).with_suffix(".py").is_file()


def is_package(module: str) -> bool:
    return (REPOSITORY / module.replace(".", "/") / "__init__.py").is_file()


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
                    if node.level:  # the observers are `callbacks` in a checkout and `echo_pl.callbacks` in a wheel
                        assert package == "callbacks", f"{module}: imports are written out, not relative"
                        assert node.level == 1
                        found.append((module, f"{package}.{node.module}"))
                        continue
                    assert not any(alias.name == "*" for alias in node.names), f"{module} imports everything"
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                    # `from echo_pl.data import response` imports a module, `from echo_pl.structs import Batch` a name.
                    found += [(module, name if is_file(name) else str(node.module)) for name in names]
    assert len(found) > 300
    return found


def room_of(module: str) -> str:
    rooms = [room for room in FLOORS if inside(module, room)]
    assert rooms or is_package_root(module), f"{module} is in no room: give it a floor"
    return max(rooms, key=len, default=module)


def is_package_root(module: str) -> bool:
    return module in ("echo_pl", "echo_pl.data")


@pytest.mark.parametrize("room", FLOORS)
def test_rooms_import_only_rooms_below_them(room):
    below = {room, *FLOORS[: FLOORS.index(room)]}
    used = {(m, i) for m, i in imports() if room_of(m) == room and i.split(".")[0] in ("echo_pl", "callbacks")}
    upward = [(m, i) for m, i in used if not is_package_root(i) and room_of(i) not in below]
    assert not upward, f"{room} must not import upwards: {sorted(upward)}"


@pytest.mark.parametrize("room", NEVER)
def test_rooms_do_without_these(room):
    wrong = [(m, i) for m, i in imports() if inside(m, room) and any(inside(i, other) for other in NEVER[room])]
    assert not wrong, f"{room} must not import this: {sorted(wrong)}"


def test_no_file_imports_itself_through_others():
    graph: dict[str, set[str]] = {}
    for module, imported in imports():
        if is_file(imported) or is_package(imported):
            graph.setdefault(module, set()).add(imported)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle of imports: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for imported in sorted(graph.get(module, ())):
                visit(imported, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_nobody_imports_the_entry_point():
    assert not [(m, i) for m, i in imports() if i == "echo_pl.__main__"]


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
    assert not [(m, i) for m, i in imports() if inside(m, "echo_pl") and inside(i.removeprefix("echo_pl."), "callbacks")]


def test_no_stage_imports_a_stage():
    assert not [(m, i) for m, i in imports() if inside(m, "echo_pl.stages") and i in STAGES]


def test_the_documentation_names_every_room():
    text = (REPOSITORY / "docs" / "explain" / "architecture.md").read_text(encoding="utf-8")
    table = text[text.index("## Import rules") :]
    for room in FLOORS:
        assert room.removeprefix("echo_pl.") in table, f"docs/explain/architecture.md does not name {room}"
