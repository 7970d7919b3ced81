"""The list of a sharded checkpoint is a pickle: nothing but the plain classes of such lists is let through."""

from __future__ import annotations

import pickle

import pytest
import torch

from echo_pl.backbone.sharded_files import read_meta


def text(value: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch", "load"),
        ("builtins", "eval"),
    ],
)
def test_a_list_that_is_a_program_is_refused(tmp_path, module, name):
    torch.save({}, tmp_path / "meta.pt")
    program = pickle.PROTO + b"\x04" + text(module) + text(name) + pickle.STACK_GLOBAL
    program += text(f"touch {tmp_path / 'ran'}") + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP
    (tmp_path / ".metadata").write_bytes(program)
    with pytest.raises(ValueError, match=f"{module}.{name} has no business in a checkpoint"):
        read_meta(tmp_path)
    assert not (tmp_path / "ran").exists()
