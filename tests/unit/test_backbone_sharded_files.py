"""The list of a sharded checkpoint is a pickle: nothing but the plain classes of such lists is let through."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

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
def test_a_list_that_is_a_program_is_rejected(tmp_path, module, name):
    torch.save({}, tmp_path / "meta.pt")
    program = pickle.PROTO + b"\x04" + text(module) + text(name) + pickle.STACK_GLOBAL
    program += text(f"touch {tmp_path / 'ran'}") + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP
    (tmp_path / ".metadata").write_bytes(program)
    with pytest.raises(ValueError, match=f"{module}.{name} is not allowed in a checkpoint"):
        read_meta(tmp_path)
    assert not (tmp_path / "ran").exists()


def attribute(module: str, name: str, wanted: str) -> bytes:
    """The pickle of ``getattr(module.name, wanted)``."""
    call = text("builtins") + text("getattr") + pickle.STACK_GLOBAL
    return (
        pickle.PROTO
        + b"\x04"
        + call
        + text(module)
        + text(name)
        + pickle.STACK_GLOBAL
        + text(wanted)
        + pickle.TUPLE2
        + pickle.REDUCE
    )


@pytest.mark.parametrize(
    ("module", "name", "wanted"),
    [
        ("torch.distributed.checkpoint.metadata", "TensorProperties", "__init__"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", "__class__"),
        ("collections", "OrderedDict", "__subclasses__"),
    ],
)
def test_attributes_are_not_had(tmp_path, module, name, wanted):
    torch.save({}, tmp_path / "meta.pt")
    (tmp_path / ".metadata").write_bytes(attribute(module, name, wanted) + pickle.STOP)
    with pytest.raises(ValueError, match=f"'{wanted}' of .* is not allowed in a checkpoint"):
        read_meta(tmp_path)


def test_a_member_of_an_enumeration_as_early_python_3_11_writes_it(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "meta.pt")
    # An empty list of tensors that has the member among its attributes, as those of real tensors have it.
    new = text(Metadata.__module__) + text(Metadata.__name__) + pickle.STACK_GLOBAL + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    member = attribute("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", "TORCH_CONTIGUOUS_FORMAT")[2:]
    state = {"state_dict_metadata": pickle.EMPTY_DICT, "storage_data": pickle.NONE, "storage_meta": pickle.NONE, "layout": member}
    items = b"".join(text(name) + value for name, value in state.items())
    listed = new + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.BUILD
    (tmp_path / ".metadata").write_bytes(pickle.PROTO + b"\x04" + listed + pickle.STOP)
    assert read_meta(tmp_path) == {"epoch": 3}
