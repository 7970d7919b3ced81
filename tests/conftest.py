"""What tests of every room share: threads, and where real data may be found."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import absl.logging
import pytest
import torch

torch.set_num_threads(1)
# absl, of rouge-score, keeps the stderr that it finds, and closes it when a command sets up its logging: not pytest's own.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data: ``ECHO_PL_DATA``, or ``../shared/data`` beside the repository. Skips without it."""
    folder = Path(os.environ.get("ECHO_PL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set ECHO_PL_DATA to the folder that holds nih_64 and qwen2_tokenizer")
    return folder
