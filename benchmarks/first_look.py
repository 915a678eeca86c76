"""How often a first look (metric ``autoattack_fast``) differs from AutoAttack *standard*.

On the committed checkpoints of digits, seed 0: the first shard is attacked by the fast cascade, and its verdicts are
compared with those that the entries hold. No time is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmark.attacks.cascade import ROBUST, Cascade
from benchmark.evaluation.runner import exact
from benchmark.evaluation.shards import Shard
from benchmark.models.subject import from_checkpoint
from benchmark.results.entry import Entry, unpack
from benchmark.results.layout import read_entries, weights_path
from benchmark.specs import protocol
from benchmarks.timing import Row, Settings
from methods.data import load
from methods.primitives.threat import ThreatModel

NAME = "first-look"
RECIPES = ("standard", "pgd_at", "trades", "mart_common", "jempp", "sadajem", "ebjdat")
FOLDER = Path(__file__).parents[1] / "leaderboards" / "digits" / "linf-0.15"


def run(settings: Settings) -> Iterator[Row]:
    """Yield one row for each recipe."""
    standard = protocol.load(protocol.default("digits"))
    entries = {
        entry.recipe: entry
        for entry in read_entries(FOLDER).values()
        if entry.protocol.id == standard.id and entry.seed == 0 and entry.ablation is None
    }
    for recipe in RECIPES[:1] if settings.quick else RECIPES:
        yield _row(recipe, entries[recipe], standard, settings, 3 if settings.quick else standard.shard)


def _row(recipe: str, entry: Entry, standard: protocol.Protocol, settings: Settings, images: int) -> Row:
    measured = entry.measurements["autoattack"]
    expected = unpack(measured.verdicts["accuracy"], measured.n)[:images]
    subject = from_checkpoint(weights_path(FOLDER, entry), settings.device)
    test = load("digits").test.to(settings.device)
    shard = Shard(0, test.unit(slice(0, images)), test.labels[:images], standard.seed)
    with exact(subject.model):
        found = Cascade(precision="bfloat16").run(subject, ThreatModel.parse(entry.threat), shard, images)
    robust = found["broken_by"] == ROBUST
    return Row.of(
        NAME,
        f"{recipe} on digits, first {images} images",
        "verdicts that differ in %",
        [100 * float(np.mean(robust != expected))],
        robust_in_standard=int(expected.sum()),
        robust_in_fast=int(robust.sum()),
        only_standard_breaks=int((robust & ~expected).sum()),
        only_fast_breaks=int((~robust & expected).sum()),
    )
