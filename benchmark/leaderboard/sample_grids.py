"""The figure of an entry: what its checkpoint generates, a panel for each start."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark.leaderboard.figures.canvas import sheet
from benchmark.results.entry import Measurement
from benchmark.results.store import Store
from methods.errors import InputError
from methods.files import write

_TITLES = {
    "class_gaussian": "informative start",
    "uniform": "random start",
    "pca": "PCA start",
    "buffer": "replay buffer",
}
_ROWS, _COLUMNS = 10, 10
_CELL, _GAP, _BETWEEN, _HEAD, _MARGIN, _LABEL = 32, 2, 24, 64, 16, 30
"""Pixels: smallest cell, between cells, between panels, above panels, around all, over a figure in a stack of them."""
_DPI, _GREY, _WHITE = 100, 128, 255

Samples = tuple[np.ndarray, np.ndarray]
"""Images, uint8 [N,C,H,W], and their classes [N]."""


def panels_of(measurement: Measurement, store: Store) -> dict[str, Samples]:
    """Return title -> panel for every source of a measurement of the metric ``generation``.

    Empty where the metric failed, or its outcomes per image are lost.
    """
    samples = store.samples(measurement) or {}
    return {
        title: (samples[f"images_{source}"], samples.get(f"wanted_{source}", samples["wanted"]))
        for source, title in _TITLES.items()
        if f"images_{source}" in samples
    }


def write_panels(path: Path, title: str, panels: Mapping[str, Samples], classes: Sequence[str]) -> None:
    """Write one PNG with the panels side by side, each ten classes (the first ten) by ten images.

    A row holds the first ten images of its class, in order; missing ones are mid-grey. Pixels are whole: small
    images are enlarged by a whole factor, and nothing is resampled. The file has a palette of 256 colours, which
    grey images do not exhaust and coloured ones are rounded to: they would fill a megabyte otherwise.

    Args:
        path: the file; written atomically, and the same bytes for the same input and library versions.
        title: the line above the panels.
        panels: title -> panel; at least one.
        classes: names of the classes, one a row.

    Raises:
        InputError: the file cannot be written.
    """
    mosaics = [_mosaic(images, labels, min(len(classes), _ROWS)) for images, labels in panels.values()]
    rows = list(classes[:_ROWS])
    height, width = mosaics[0].shape[:2]
    left = _MARGIN + 7 * max(len(name) for name in rows)
    total = left + len(mosaics) * (width + _BETWEEN) - _BETWEEN + _MARGIN, _HEAD + height + _MARGIN
    figure = sheet(total[0] / _DPI, total[1] / _DPI, dpi=_DPI, facecolor="white")

    def words(text: str, x: float, y: float, size: int, **style: Any) -> None:
        figure.text(x / total[0], y / total[1], text, fontsize=size, **style)

    words(title, _MARGIN, _MARGIN + height + 40, 10, weight="bold")
    for number, (name, mosaic) in enumerate(zip(panels, mosaics, strict=True)):
        x = left + number * (width + _BETWEEN)
        figure.figimage(mosaic, x, _MARGIN, origin="upper")
        words(name, x + _GAP, _MARGIN + height + 8, 9)
    for number, name in enumerate(rows):
        middle = _MARGIN + height * (1 - (number + 0.5) / len(rows))
        words(name, left - 6, middle, 8, ha="right", va="center")
    _save_small(path, figure)


def stack(path: Path, pictures: Mapping[str, Path]) -> None:
    """Write the figures of entries, at least one, as one PNG: one below the other, each under its label.

    Pixels are whole; the palette is as in :func:`write_panels`.

    Raises:
        InputError: a figure cannot be read, or the file cannot be written.
    """
    try:
        shown = {label: np.asarray(Image.open(picture).convert("RGB")) for label, picture in pictures.items()}
    except OSError as error:
        raise InputError(f"A figure of samples cannot be read: {error}.") from error
    width = max(picture.shape[1] for picture in shown.values())
    height = sum(picture.shape[0] + _LABEL for picture in shown.values())
    figure = sheet(width / _DPI, height / _DPI, dpi=_DPI, facecolor="white")
    top = height
    for label, picture in shown.items():
        top -= _LABEL
        figure.text(_MARGIN / width, (top + 4) / height, label, fontsize=12, weight="bold", color="#0072B2")
        top -= picture.shape[0]
        figure.figimage(picture, 0, top, origin="upper")
    _save_small(path, figure)


def _save_small(path: Path, figure: Any) -> None:
    """Write a figure as a PNG with a palette of 256 colours."""
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    palette = drawn.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    write(path, lambda temporary: palette.save(temporary, format="PNG", optimize=True))


def _mosaic(images: np.ndarray, labels: np.ndarray, rows: int) -> np.ndarray:
    """Return the panel as one picture, uint8 [H,W,3]."""
    channels, height, width = images.shape[1:]
    factor = max(1, -(-_CELL // min(height, width)))
    cell = height * factor + _GAP, width * factor + _GAP
    mosaic = np.full((rows * cell[0] + _GAP, _COLUMNS * cell[1] + _GAP, channels), _WHITE, np.uint8)
    for row in range(rows):
        chosen = images[labels == row][:_COLUMNS]
        for column in range(_COLUMNS):
            picture = chosen[column] if column < len(chosen) else np.full_like(images[0], _GREY)
            large = picture.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)
            top, left = _GAP + row * cell[0], _GAP + column * cell[1]
            mosaic[top : top + large.shape[0], left : left + large.shape[1]] = large
    return np.broadcast_to(mosaic, (*mosaic.shape[:2], 3)).copy()
