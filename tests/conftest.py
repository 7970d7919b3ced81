"""What tests of every room share: threads, and where real data may be found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data: ``ECHO_PL_DATA``, or ``../shared/data`` beside the repository. Skips without it."""
    folder = Path(os.environ.get("ECHO_PL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set ECHO_PL_DATA to the folder that holds nih_64 and qwen2_tokenizer")
    return folder
