"""Pictures that are inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

PREVIEW_SIDE = 500
"""Side in pixels of a picture that only invites to the whole one."""


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture whose address is its content; the size is given so that nothing jumps when it is decoded."""

    address: str
    """A ``data:`` address of lossless WebP, which takes a seventh less than PNG."""
    width: int
    """Width in pixels."""
    height: int
    """Height in pixels."""
    description: str
    """What it shows, for those who do not see it."""


def embedded(path: Path, description: str, largest: int | None = None) -> EmbeddedPicture:
    """Return a PNG as a picture inside the page.

    Args:
        path: a PNG.
        description: what it shows.
        largest: side in pixels to which it is scaled down.
    """
    content = io.BytesIO()
    with Image.open(path) as image:
        if largest is not None:
            image = image.convert("RGB")
            image.thumbnail((largest, largest))
        image.save(content, "WEBP", lossless=True)
        width, height = image.size
    address = f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
    return EmbeddedPicture(address, width, height, description)
