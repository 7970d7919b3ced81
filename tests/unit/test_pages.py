"""Tables and pages: every value of every template is escaped, and pages load nothing."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from echo_pl.pages.document import image_uri, render
from echo_pl.pages.tables import Column, Table, number, text

HOSTILE = "<script>alert('x')</script>|\n\"&"


def test_a_table_in_three_formats():
    columns = [Column("model", text("model"), left=True), Column("tps", number("tps", 1))]
    table = Table.from_records(columns, [{"model": "dcd", "tps": 3.14}, {"model": HOSTILE, "tps": None}])
    assert table.text().splitlines()[2].split() == ["dcd", "3.1"]
    lines = table.markdown().splitlines()
    assert lines[:3] == ["| model | tps |", "| :-- | --: |", "| dcd | 3.1 |"]
    assert len(lines) == 4
    assert "\\|" in lines[3]
    page = sweep_page(tables=[("", table)])
    assert "<td class=left>dcd</td><td>3.1</td>" in page
    assert "<script" not in page


def sweep_page(**values) -> str:
    empty = {
        "title": "t",
        "introduction": "",
        "tables": [],
        "fronts": [],
        "picture": "",
        "missing": [],
        "command": "",
        "variants": "",
    }
    return render("sweep.html", **empty | values)


@pytest.mark.parametrize("name", ["title", "introduction", "picture", "command", "variants"])
def test_every_value_of_a_page_is_escaped(name):
    page = sweep_page(**{name: HOSTILE})
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<style>") == 1
    assert not re.findall(r"(?:src|href|@import|url\()", page)


def test_images_are_inside_the_page():
    address = image_uri(Image.new("RGB", (900, 600)), side=90)
    assert address.startswith("data:image/png;base64,")
    assert len(address) < 1000
