"""The command tree: help and examples of every command, misspelt words, the short form, old spellings, exit status."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from commands import command

from echo_pl import __version__
from echo_pl.__main__ import app, main
from echo_pl.cli.old_spellings import COMMANDS, TOOLS, rewrite

REPOSITORY = Path(__file__).resolve().parents[2]
TREE = typer.main.get_command(app)


def commands(group=TREE, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, (*words, name))
        else:
            yield (*words, name), found


ALL = dict(commands())


def program(*arguments: str, module: str = "echo_pl") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_the_tree_is_that_of_the_documentation():
    assert {" ".join(words) for words in ALL} == {
        "train", "validate", "sweep", "compare", "demo", "evaluate", "plan",
        "corpus make", "corpus prepare", "corpus view", "corpus check", "corpus features",
        "trajectories collect", "trajectories gap",
        "checkpoint show", "checkpoint merge", "checkpoint export", "checkpoint import",
        "bench decode", "bench train", "bench data", "bench copies", "mlflow upload", "mlflow ui",
    }  # fmt: skip


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_help_with_examples_that_parse(words, capsys):
    assert command(*words)(["--help"]) == 0
    shown = capsys.readouterr().out.replace("\\\n", " ")
    examples = [line for line in shown[shown.index("Examples:") :].splitlines() if "echo-pl " in line or "-m echo_pl " in line]
    assert len(examples) >= 2
    for line in examples:
        arguments = shlex.split(line, comments=True)
        arguments = arguments[arguments.index("echo_pl" if "torchrun" in arguments else "echo-pl") + 1 :]
        found: object = TREE
        while arguments and arguments[0] in getattr(found, "commands", {}):
            found = found.commands[arguments.pop(0)]
        if found is not TREE:  # the short form of train has no command
            found.make_context("example", list(arguments))


def test_help_is_fast_and_survives_a_closed_pipe():
    code = (
        "import sys; sys.argv = ['echo-pl', '--help']\n"
        "try:\n    from echo_pl.__main__ import main; main()\nexcept SystemExit: pass\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code + "print([m for m in ('torch', 'lightning', 'mlflow', 'hydra', 'numpy') if m in sys.modules])"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert loaded.stdout.splitlines()[-1] == "[]"
    piped = subprocess.run(f"{sys.executable} -m echo_pl --help | head -1", shell=True, capture_output=True, text=True, check=True)
    assert piped.stdout.startswith("Usage: echo-pl")
    assert not piped.stderr


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("trian stage=rad", "no command 'trian': did you mean train?"),
        ("predict x.png", "no command 'predict'; the commands are train, "),
        ("corpus mke", "no command 'mke': did you mean make?"),
        ("compare --swep lab", "--sweep"),
        ("trajectories gap 4", "expected key=value, got '4'"),
        ("corpus make nhi", "nih"),
        ("corpus make nih", "--source FOLDER is for nih"),
        ("mlflow upload --from a --to b", "give --run ID ... or --all"),
        ("plan --studies 1 2", "--studies takes three numbers"),
    ],
)
def test_wrong_usage_is_answered_with_what_is_right(line, answer, capsys):
    assert command()(line.split()) == 2
    assert answer in capsys.readouterr().err


def test_version_and_status(capsys, tmp_path):
    assert command()(["--version"]) == 0
    assert capsys.readouterr().out == f"echo-pl {__version__}\n"
    assert command("checkpoint", "show")([tmp_path / "none.ckpt"]) == 2
    assert command("mlflow", "ui")(["--database", tmp_path / "none.db"]) == 2
    assert "no database" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["train"]], ids=["short form", "train"])
def test_a_run_is_composed_by_hydra(words):
    done = program(*words, "stage=rad", "block_size=4", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "\nblock_size: 4\n" in done.stdout


@pytest.mark.parametrize(("words", "given"), [("validate", "task=validate"), ("sweep", "-m")])
def test_validate_and_sweep_are_train_with_an_argument(words, given, monkeypatch):
    seen = []
    monkeypatch.setattr("echo_pl.cli.train.run_hydra", seen.append)
    assert command(words)(["stage=rad", "-x"]) == 0
    assert seen[0][0] == given
    assert seen[0][-2:] == ["stage=rad", "-x"]
    assert ("sweep=lab" in seen[0]) == (words == "sweep")


def test_every_old_command_names_the_new_one(monkeypatch, capsys):
    for old, new in COMMANDS.items():
        monkeypatch.setattr(sys, "argv", ["echo-pl", old, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        shown = capsys.readouterr()
        assert shown.err == f"note: echo-pl {old} is now echo-pl {new}; the old spelling works until 0.3\n"
        assert shown.out.startswith(f"Usage: echo-pl {new} ")


@pytest.mark.parametrize("name", ["demo", "scale"])
def test_old_modules_still_run(name):
    done = program("--help", module=f"echo_pl.tools.{name}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"note: python -m echo_pl.tools.{name} is now echo-pl {TOOLS[name]}; the old spelling works until 0.3\n"
    assert f"Usage: echo-pl {TOOLS[name]} " in done.stdout
    assert "No module named echo_pl.tools.nothing" in program(module="echo_pl.tools.nothing").stderr


def test_old_options_are_translated():
    assert rewrite("x", "plan", ["--data", "data=nih", "a=b"]) == ["plan", "data=nih", "a=b"]
    assert rewrite("x", "demo", ["--data", "nih"]) == ["demo", "--data", "nih"]
    assert rewrite("x", "checkpoint", ["to-hf", "a", "b"]) == ["checkpoint", "export", "a", "b"]
    assert all(name.split()[0] in TREE.commands for name in (*COMMANDS.values(), *TOOLS.values()))


def test_make_help_names_every_target():
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    assert targets == set(re.findall(r"^([a-z0-9-]+):.*##", text, re.MULTILINE))
    assert targets == {
        "help", "install", "demo", "demo-full", "demo-real", "stage1", "stage2", "stage3", "test", "test-quick", "test-slurm",
        "lint", "docs", "mlflow", "clean",
    }  # fmt: skip
