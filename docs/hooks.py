"""Pages that each build of the site writes: every command's help, and every key of the configuration."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]
EXPERIMENTS = REPOSITORY / "experiments"
KEY = re.compile(r"^(?P<indent> *)(?P<name>[\w/]+):(?: +(?P<value>[^#\s].*?))? *(?:# *(?P<comment>.+))?$")
HIDDEN = {"_target_", "defaults"}

sys.path.insert(0, str(REPOSITORY))


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/configuration.md", content=configuration_page()))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def configuration_page() -> str:
    """Return one table of keys for each YAML file of ``experiments/``, made from its comments."""
    parts = [
        "# Configuration keys\n",
        "Made from the comments in `experiments/` at each build. `config.yaml` is the root; each folder is a group, and",
        "each file one of its choices: `echo-pl stage=rad` takes `stage/rad.yaml`. `null` means not set.\n",
    ]
    paths = sorted(EXPERIMENTS.rglob("*.yaml"), key=lambda path: (len(path.relative_to(EXPERIMENTS).parts), str(path)))
    for path in paths:
        parts.append(f"## {path.relative_to(EXPERIMENTS).with_suffix('')}\n")
        text = path.read_text(encoding="utf-8")
        parts.append(" ".join(opening_comments(text)) + "\n")
        rows = key_rows(text)
        if rows:
            parts += ["| key | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def opening_comments(text: str) -> list[str]:
    """Return the comment lines at the top of a file, without Hydra's package line."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            found.append(line.lstrip("# "))
    return found


def key_rows(text: str) -> list[str]:
    """Return a table row for each key that has a value or a comment; the name is the path of its parents."""
    rows, parents, above = [], [], ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above = f"{above} {line.lstrip('# ')}".strip()
            continue
        key = KEY.match(line)
        if key is None:
            above = ""
            continue
        depth = len(key["indent"])
        parents = [(indent, name) for indent, name in parents if indent < depth] + [(depth, key["name"])]
        names = [name for _, name in parents]
        value, comment = key["value"] or "", key["comment"] or (above if depth else "")
        above = ""
        if HIDDEN & set(names) or names[0] in ("hydra", "run") or not (value or comment):
            continue
        rows.append(f"| `{'.'.join(names)}` | {cell(value, code=True)} | {cell(comment)} |")
    return rows


def cell(text: str, code: bool = False) -> str:
    """Return text that fits into a table cell."""
    text = text.replace("|", "\\|")
    return f"`{text}`" if code and text else text


def commands_page() -> str:
    """Return the help of every command of the tree."""
    import click
    from typer.main import get_command
    from typer.testing import CliRunner

    from echo_pl.__main__ import app

    def names(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        below = getattr(command, "commands", {})
        shown = [(name, child) for name, child in below.items() if not child.hidden]
        return [path, *(found for name, child in shown for found in names(child, (*path, name)))]

    parts = ["# Commands\n", "Made from the commands' own help at each build.\n"]
    for path in names(get_command(app), ()):
        runner = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
        shown = runner.invoke(app, [*path, "--help"], prog_name="echo-pl")
        if shown.exit_code != 0:
            raise RuntimeError(f"echo-pl {' '.join(path)} --help ended with {shown.exit_code}: {shown.output}")
        parts += [f"## echo-pl {' '.join(path)}\n", "```text", shown.output.rstrip(), "```\n"]
    return "\n".join(parts)
