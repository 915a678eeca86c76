"""What the figures share: sheets to draw on, the files they are saved to, and colours."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from methods.files import write

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Told apart by colour-blind readers too."""
WIDTH = 7.0
"""Width of a paper's figure in inches: the text of a two-column page."""
DPI = 200
"""Pixels per inch of a paper's figure."""
BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "fontsize": 7}
"""A legend to the right of its axis."""
_PAPER: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "trilemma",
}
_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""What would set two files of the same figure apart."""


def sheet(width: float, height: float, **settings: Any) -> Any:
    """Return an empty matplotlib figure of a size in inches.

    The canvas keeps pyplot's global state out of it; matplotlib takes a second to import, and only who draws waits.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **settings)
    FigureCanvasAgg(figure)
    return figure


def save(path: Path, figure: Any) -> Path:
    """Write a figure as PNG or SVG, by the path's suffix, atomically and without a date, and return the path."""
    kind = path.suffix[1:]
    write(path, lambda temporary: figure.savefig(temporary, format=kind, metadata=_METADATA[kind]))
    return path


@contextmanager
def paper_figure(stem: Path, aspect: float) -> Iterator[tuple[Any, list[Path]]]:
    """Give a paper's figure of a height / width, and a list that holds its files afterwards."""
    import matplotlib

    written: list[Path] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style would change the bytes
        matplotlib.rcParams.update(_PAPER)
        figure = sheet(WIDTH, WIDTH * aspect, dpi=DPI, layout="constrained")
        yield figure, written
        written += [save(stem.with_name(f"{stem.name}.{kind}"), figure) for kind in _METADATA]


def deviation(seeds: Sequence[float]) -> float:
    """Return the standard deviation over seeds (n - 1); 0 for a single one."""
    return statistics.stdev(seeds) if len(seeds) > 1 else 0.0
