"""The wheel, installed without the repository beside it, runs from any folder and installs no name but its own."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("echo_pl", "callbacks", "experiments", "hydra_plugins")
TINY = ["stage.max_steps=1", "stage.validate_every=1", "stage.batch_size=4", "min_free_gb=0", "threads=1"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build folder in the repository would keep files that are gone."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("echo_pl-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Folder of the scripts of an environment with the wheel; third parties are this environment's, its own echo_pl is not."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    scripts = environment / "bin"
    found = subprocess.run(
        [scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    folders = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()])
    # A plain path, whose own .pth files (an editable echo_pl among them) are not read.
    (Path(found.stdout.strip()) / "third_parties.pth").write_text("\n".join(folders) + "\n")
    install = [scripts / "python", "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", "--quiet", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False, env=outside())
    assert done.returncode == 0, done.stderr
    return scripts


def outside() -> dict[str, str]:
    """Environment variables without the path to this repository."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_all_files_are_in_it_under_its_own_names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"echo_pl", "hydra_plugins"}
    for package in PACKAGES:
        place = package if package in ("echo_pl", "hydra_plugins") else f"echo_pl/{package}"
        files = [path for path in (REPOSITORY / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        missing = {f"{place}/{path.relative_to(REPOSITORY / package).as_posix()}" for path in files} - names
        assert not missing, "add the suffix to package-data in pyproject.toml"


def test_it_runs_from_any_folder(installed, tmp_path):
    def run(*arguments: str) -> str:
        command = [installed / "echo-pl", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env=outside())
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "Usage: echo-pl demo" in run("demo", "--help")
    assert "\nblock_size: 4\n" in run("stage=rad", "block_size=4", "--cfg", "job")
    made = run("corpus", "make", "--train", "8", "--val", "4", "--test", "4", "--shard-size", "8")
    assert "8 train, 4 val, 4 test studies" in made
    run("stage=warmup", *TINY)  # with the observers of callbacks=default
    (final,) = tmp_path.glob("outputs/runs/*/checkpoints/final.ckpt")
    assert '"stage": "warmup"' in run("checkpoint", "show", str(final))
    code = "import echo_pl.callbacks.summary, pathlib; print(pathlib.Path(echo_pl.__file__).parents[1])\nimport callbacks"
    done = subprocess.run(
        [installed / "python", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=outside(), check=False
    )
    assert "No module named 'callbacks'" in done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)
