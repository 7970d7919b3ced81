"""Self-contained HTML pages from jinja2 templates: one stylesheet, light and dark, no script and no network.

Templates escape every value. A template of a page extends ``base.html`` and draws tables with ``macros.html``.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

_TEMPLATES = Path(__file__).with_name("templates")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render(template: str, **values: Any) -> str:
    """HTML text of a template; values are escaped unless they are ``markupsafe.Markup``."""
    return _environment().get_template(template).render(values)


def data_uri(content: bytes, kind: str) -> str:
    """Address that holds a file itself, for the ``src`` of an image.

    >>> data_uri(b"abc", "image/png")
    'data:image/png;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(image: Image.Image, *, mode: str = "L", side: int | None = None, kind: str = "png") -> str:
    """An image inside its address.

    Args:
        image: of any mode.
        mode: mode of PIL that is shown; ``L`` is gray.
        side: longest side in pixels; None keeps the size.
        kind: ``png``, or ``jpeg`` at quality 85.
    """
    shown = image.convert(mode)
    if side is not None:
        shown.thumbnail((side, side))
    buffer = io.BytesIO()
    shown.save(buffer, format=kind, **({"quality": 85} if kind == "jpeg" else {}))
    return data_uri(buffer.getvalue(), f"image/{kind}")
