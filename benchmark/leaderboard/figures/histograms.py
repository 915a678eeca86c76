"""Histograms of energies, a panel a method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.leaderboard.figures.canvas import WIDTH, paper_figure

_IMAGES = {"clean": ("#000000", "-"), "adversarial": ("#D55E00", "-"), "generated": ("#0072B2", (0, (4, 1.5)))}


@dataclass(frozen=True)
class HistogramPanel:
    """The histograms of one method."""

    label: str
    edges: Sequence[float]
    """Borders of the bins [m + 1], in nats."""
    shares: Mapping[str, Sequence[Sequence[float]]]
    """Kind of image (clean, adversarial, generated) -> shares in percent, [seeds, m]."""


def histograms(stem: Path, title: str, panels: Sequence[HistogramPanel], x: str) -> list[Path]:
    """Draw a small panel a method, each with its own axes: clean, adversarial and generated images.

    Lines are means over seeds, with a band of a standard deviation. ``x`` says what the histograms are of, and its
    unit; there is at least one panel.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with paper_figure(stem, (0.45 + 1.5 * rows) / WIDTH) as (figure, written):
        grid = figure.subplots(rows, columns, squeeze=False)
        for axis, panel in zip(grid.flat, panels, strict=False):
            for kind, seeds in panel.shares.items():
                colour, dash = _IMAGES[kind]
                mean = np.mean(seeds, 0)
                if kind == "clean":
                    axis.stairs(mean, panel.edges, fill=True, color="#cccccc")
                axis.stairs(mean, panel.edges, color=colour, linestyle=dash, linewidth=0.9, label=kind)
                if len(seeds) > 1:
                    spread = np.std(seeds, 0, ddof=1)
                    axis.stairs(mean + spread, panel.edges, baseline=mean - spread, fill=True, color=colour, alpha=0.15)
            axis.set_title(panel.label, pad=3)
            axis.set_yticks([])
            axis.set_ylim(bottom=0)
            axis.spines["left"].set_visible(False)
            axis.tick_params(labelsize=7)
            axis.margins(x=0.02)
        for axis in grid.flat[len(panels) :]:
            axis.set_visible(False)
        figure.supxlabel(x, fontsize=8)
        figure.supylabel("share of images", fontsize=8)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, title=title, title_fontsize=8, loc="outside upper center", ncols=3)
        legend.get_title().set_multialignment("center")
    return written
