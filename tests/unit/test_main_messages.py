"""Errors of the command line: one message that names the value, exit status 2, and a traceback only on request."""

from __future__ import annotations

import errno

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from echo_pl.config.errors import TRACEBACK, explain, reported


def failing(node: dict) -> InstantiationException:
    with pytest.raises(InstantiationException) as caught:
        instantiate(OmegaConf.create(node))
    return caught.value


def test_a_bad_value_is_named_with_its_place():
    node = {"decode": {"_target_": "echo_pl.sampling.config.DecodeConfig", "block_size": 8, "max_response_tokens": 12}}
    text = explain(failing(node))
    assert "block_size 8 does not fit the grid" in text
    assert "in the configuration at decode" in text
    assert "\n" not in text


def test_a_misspelt_key_is_named_with_its_place():
    node = {"a": {"_target_": "echo_pl.sampling.config.TokenChoice", "temprature": 1.0}}
    text = explain(failing(node))
    assert "temprature" in text
    assert "in the configuration at a" in text


def test_a_target_that_does_not_exist_is_named():
    assert "echo_pl.nowhere.Nothing" in explain(failing({"_target_": "echo_pl.nowhere.Nothing"}))


def test_a_full_disk_names_the_way_to_resume():
    error = OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
    assert explain(error) == "no space left on the disk while writing last.ckpt: make room, then resume=auto"


def test_other_errors_keep_their_message():
    assert explain(ValueError("t_min must be positive, got -1")) == "t_min must be positive, got -1"


def test_errors_of_a_user_end_in_one_message_and_status_2(capsys, monkeypatch):
    monkeypatch.delenv(TRACEBACK, raising=False)
    with pytest.raises(SystemExit) as ended, reported():
        raise FileNotFoundError("no checkpoint at x.ckpt; give start=<checkpoint>")
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("echo-pl: no checkpoint at x.ckpt")
    assert "Traceback" not in message


def test_work_that_failed_ends_with_status_1(capsys):
    with pytest.raises(SystemExit) as ended, reported():
        raise OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
    assert ended.value.code == 1
    assert "no space left" in capsys.readouterr().err


def test_errors_of_the_program_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_a_traceback_on_request(monkeypatch):
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(ValueError, match="bad"), reported():
        raise ValueError("bad")
