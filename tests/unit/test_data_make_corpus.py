"""The tool that makes a corpus folder."""

from __future__ import annotations

import pytest
from commands import command

from echo_pl.data.loading.tokenizer import load_tokenizer
from echo_pl.data.pipeline.make_corpus import make_synthetic

main = command("corpus", "make")

SMALL = ["synthetic", "--train", "12", "--val", "2", "--test", "2", "--shard-size", "5"]


def test_makes_finds_and_rejects(tmp_path, capsys):
    out = tmp_path / "corpus"
    assert main([*SMALL, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "12 train, 2 val, 2 test studies in 5 shards" in printed
    assert str(out) in printed
    before = (out / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    assert main([*SMALL, "--out", str(out)]) == 0
    assert capsys.readouterr().out == printed
    assert (out / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == before
    assert main([*SMALL, "--out", str(out), "--seed", "1"]) == 2
    assert "already holds another corpus" in capsys.readouterr().err


def test_a_missing_tokenizer_is_made_again(tmp_path):
    out = make_synthetic(tmp_path, train=8, val=1, test=1, progress=False)
    (out / "tokenizer" / "tokenizer_config.json").unlink()
    make_synthetic(tmp_path, train=8, val=1, test=1, progress=False)
    assert load_tokenizer(out / "tokenizer")[1].eos == 2


@pytest.mark.parametrize(("option", "value"), [("--size", "8"), ("--train", "0"), ("--vocab-size", "100")])
def test_bad_arguments_are_reported_in_one_line(tmp_path, capsys, option, value):
    assert main([*SMALL, "--val", "0", "--test", "0", "--out", str(tmp_path), option, value]) == 2
    assert capsys.readouterr().err.strip().count("\n") <= 1
