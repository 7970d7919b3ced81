"""``python -m echo_pl.tools.<name>``, the spelling of 0.1: every name runs ``moved.py``, which calls the new command."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

from echo_pl.cli.old_spellings import TOOLS


class _MovedTools(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __name__ or name not in TOOLS:
            return None
        return spec_from_file_location(fullname, Path(__file__).with_name("moved.py"))


sys.meta_path.append(_MovedTools())
