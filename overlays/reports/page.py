"""Renders reports as self-contained HTML pages from the templates in this package. Inserted text is escaped."""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from overlays.render.jpeg import encode_image, scale_image
from pipeline.frames import Image

_JPEG_QUALITY: Final = 80


@dataclass(frozen=True, slots=True)
class Figure:
    """Images side by side, with a caption. ``uris`` are ``data:`` URIs, ``path`` is the file of the image."""

    uris: tuple[str, ...]
    caption: str
    path: str


@functools.cache
def _environment() -> Environment:
    folder = Path(__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(template: str, *, script: str | None = None, **values: object) -> str:
    """Return a template rendered as HTML.

    Args:
        template: file name of the template.
        script: file name of the only script that the template includes; None if it has no script.
        values: the values that the template inserts.
    """
    return _environment().get_template(template).render(policy=_content_policy(script), **values)


def _content_policy(script: str | None) -> str:
    """Return the Content-Security-Policy of a page: it permits embedded images, styles, and this script by hash."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script is None:
        return policy
    digest = hashlib.sha256(_environment().get_template(script).render().encode()).digest()
    return f"{policy}; script-src 'sha256-{base64.b64encode(digest).decode('ascii')}'"


def shrink(image: Image, max_side: int) -> Image:
    """Return an image reduced so that no side exceeds ``max_side`` pixels."""
    return scale_image(image, min(1.0, max_side / max(image.shape[:2])))


def image_uri(image: Image) -> str:
    """Return an image as a ``data:`` URI of a JPEG."""
    return f"data:image/jpeg;base64,{base64.b64encode(encode_image(image, _JPEG_QUALITY)).decode('ascii')}"
