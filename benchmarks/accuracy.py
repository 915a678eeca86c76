"""Whether the accelerations cost accuracy: the same epochs on digits with all of them, and with none.

On: compiled, channels_last and bf16. Off: eager, contiguous and float32. Both are trained and evaluated by
``python -m benchmark run`` itself, three seeds each; evaluation is float32 either way. A row's value is by how many
points the mean accuracies differ, its low and high by how many those of one seed do. Its target is the spread of the
seeds: the larger of the two ranges from the least to the greatest.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark.results.entry import Entry
from benchmark.results.layout import read_entries
from benchmarks.timing import Row, Settings

NAME = "accuracy"
RECIPES = ("standard", "trades", "jempp", "ebjdat")
SEEDS = (0, 1, 2)
METRICS = {"clean": "clean", "pgd20": "PGD-20"}
WAYS = {
    "on": ("train.compile=true", "train.channels_last=true", "train.precision=bf16"),
    "off": ("train.compile=false", "train.channels_last=false", "train.precision=float32"),
}


def run(settings: Settings) -> Iterator[Row]:
    """Yield one row for each recipe and accuracy."""
    recipes, seeds = (RECIPES[:1], SEEDS[:2]) if settings.quick else (RECIPES, SEEDS)
    for recipe in recipes:
        with TemporaryDirectory() as folder:
            found = {way: _entries(recipe, seeds, way, settings, Path(folder) / way) for way in WAYS}
        for metric, title in METRICS.items():
            yield _row(f"{recipe} on digits, {title}", *(_accuracies(found[way], metric) for way in ("on", "off")))


def _entries(recipe: str, seeds: tuple[int, ...], way: str, settings: Settings, folder: Path) -> list[Entry]:
    """Train and evaluate a recipe with every seed, as a user would."""
    changed = [*WAYS[way], "train.epochs=1"] if settings.quick else WAYS[way]
    command = [sys.executable, "-m", "benchmark", "run", "--methods", recipe, "--seeds", ",".join(map(str, seeds))]
    command += [part for setting in changed for part in ("--set", setting)]
    command += ["--metrics", ",".join(METRICS), "--device", str(settings.device)]
    command += ["--runs", str(folder / "runs"), "--leaderboards", str(folder / "leaderboards")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with status {done.returncode}: {done.stderr[-2000:]}")
    (entries,) = (folder / "leaderboards").glob("digits/*/entries")
    return sorted(read_entries(entries.parent).values(), key=lambda entry: entry.seed or 0)


def _accuracies(entries: list[Entry], metric: str) -> list[float]:
    return [float(str(entry.measurements[metric].values["accuracy"])) for entry in entries]


def _row(case: str, on: list[float], off: list[float]) -> Row:
    facts: dict[str, float | int | str] = {
        f"{way}_{what}": round(value, 2)
        for way, values in (("on", on), ("off", off))
        for what, value in (("mean", statistics.mean(values)), ("std", statistics.stdev(values)))
    }
    difference = statistics.mean(on) - statistics.mean(off)
    single = [abs(a - b) for a, b in zip(on, off, strict=True)]
    spread = max(max(values) - min(values) for values in (on, off))
    facts["on_minus_off"] = round(difference, 2)
    return Row(NAME, case, "difference in points", abs(difference), min(single), max(single), spread, facts)
