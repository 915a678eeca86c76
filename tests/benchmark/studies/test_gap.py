"""The gap between two evaluators: shared out among their differences, and attributed to the planted one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.evaluation.runner import evaluate
from benchmark.models.subject import Subject, weights_digest
from benchmark.results.entry import Measurement, ProtocolInfo
from benchmark.results.store import Store
from benchmark.specs.protocol import Protocol, load
from benchmark.studies import gap as gaps
from methods.data import ImageSet
from methods.errors import InputError

STANDARD = load("standard-v1", "Linf:0.04")
SIDE = 12
"""Layout of the images: four quadrants of 36 pixels, so that noise hardly moves their means."""


class Quadrants(nn.Module):
    """The brightest quadrant is the class; half the difference to the next one is the Linf distance to it."""

    def forward(self, x: Tensor) -> Tensor:
        return 50 * torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def robust_to(radius: float, images: int = 6) -> Any:
    """Make a subject, and images that it classifies up to exactly that distance."""
    y = torch.arange(images) % 4
    x = torch.full((images, 1, SIDE, SIDE), 0.5)
    half = SIDE // 2
    for image, label in enumerate(y.tolist()):
        row, column = divmod(label, 2)
        x[image, 0, row * half : (row + 1) * half, column * half : (column + 1) * half] += 2 * radius
    model = Quadrants().eval()
    subject = Subject("q", model, 4, (1, SIDE, SIDE), torch.device("cpu"), weights_digest(model), "", "external")
    return subject, ImageSet(x, y)


@pytest.fixture
def measured(toy: Any, store: Store, cut_autoattack: Any) -> Callable[..., Callable[[gaps.Change], Measurement]]:
    """Make the function that measures one stop."""

    def make(subject: Subject, images: ImageSet) -> Callable[[gaps.Change], Measurement]:
        dataset = replace(toy().dataset, train=images, validation=images, test=images)

        def measure(change: gaps.Change) -> Measurement:
            found = evaluate(subject, dataset, change.protocol, metrics=[change.metric], store=store, progress=False)
            return found[change.metric]

        return measure

    return make


def walked(released: Protocol, accuracy: gaps.Accuracy, measure: Callable[[gaps.Change], Measurement]) -> gaps.Walk:
    changes = list(gaps.walk(released, STANDARD, accuracy))
    return gaps.Walk(accuracy=accuracy, stops=gaps.stops(changes, measure))


@pytest.mark.parametrize("released", [gaps.NOISY, gaps.PLAIN])
def test_planted_unit_error_is_attributed_to_the_unit(measured: Any, released: str) -> None:
    """Robust up to 0.03, measured at half of 0.04 and then at 0.04: nothing but the unit of eps can explain it."""
    begin = gaps.protocols(STANDARD, released)
    assert begin.threat == "Linf:0.02"
    measure = measured(*robust_to(0.03))
    for accuracy in ("pgd20", "autoattack"):
        found = walked(begin, accuracy, measure)
        contributions = {stop.change: stop.contribution for stop in found.stops}
        assert contributions.pop("unit of eps") == -100
        assert set(contributions.values()) == {0.0}
        assert (found.stops[0].accuracy, found.stops[-1].accuracy, found.total) == (100, 0, -100)
    assert walked(begin, "clean", measure).total == 0


def test_contributions_sum_to_the_gap_and_end_at_the_standard_number(toy: Any, store: Store, measured: Any) -> None:
    made = toy(images=8, wrong=2)
    measure = measured(made.subject(), made.dataset.test)
    begin = gaps.protocols(STANDARD, gaps.NOISY)
    for accuracy in ("clean", "pgd20", "autoattack"):
        found = walked(begin, accuracy, measure)
        assert sum(stop.contribution for stop in found.stops) == pytest.approx(found.total, abs=1e-9)
        for before, stop in pairwise(found.stops):
            assert stop.contribution == pytest.approx(stop.accuracy - before.accuracy)
            assert 100 * (stop.won - stop.lost) / 8 == pytest.approx(stop.contribution)
            assert stop.low <= stop.contribution <= stop.high
        standard = evaluate(made.subject(), made.dataset, STANDARD, metrics=[accuracy], store=store, progress=False)
        assert found.stops[-1].accuracy == standard[accuracy].values["accuracy"]
        assert found.stops[-1].key == standard[accuracy].key
    assert found.total < 0


def test_walk_changes_one_thing_at_a_time() -> None:
    begin = gaps.protocols(STANDARD, gaps.NOISY)
    changes = list(gaps.walk(begin, STANDARD, "autoattack"))
    names = ["released", "noise", "unit of eps", "iterations", "targets", "box of FAB"]
    assert [change.name for change in changes] == names
    for before, after in pairwise(changes[:-1]):
        old, new = before.protocol.resolved, after.protocol.resolved
        if after.name in ("iterations", "targets"):
            custom = [resolved["metrics"].pop("autoattack_custom")["config"] for resolved in (old, new)]
            assert len([key for key in custom[0] if custom[0][key] != custom[1][key]]) == 1
            assert old == new
        else:
            assert {key for key in {*old, *new} if old.get(key) != new.get(key)} == {
                {"noise": "noise", "unit of eps": "threat"}[after.name]
            }
    last = changes[-2].protocol.config("autoattack_custom")
    assert (last.attacks, last.iterations) == (["apgd_ce", "apgd_t", "fab_t_wrong_box", "square"], 100)
    assert changes[-1].protocol is STANDARD
    assert [change.name for change in gaps.walk(begin, STANDARD, "pgd20")] == [*names[:3], "step size"]
    assert [change.name for change in gaps.walk(begin, STANDARD, "clean")] == names[:2]
    plain = gaps.protocols(STANDARD, gaps.PLAIN)
    assert [change.name for change in gaps.walk(plain, STANDARD, "clean")] == ["released"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"method": "ebjdat", "options": {"host": "jempp"}}, gaps.NOISY),
        ({"method": "ebjdat", "options": {"host": "jem"}}, gaps.NOISY),
        ({"method": "ebjdat", "options": {"host": "sadajem"}}, gaps.PLAIN),
        ({"method": "sadajem", "options": {}}, gaps.PLAIN),
        ({"method": "trades"}, gaps.NOISY),
        ({}, gaps.NOISY),
    ],
)
def test_evaluator_is_that_of_the_host(metadata: dict[str, Any], expected: str) -> None:
    assert gaps.released_evaluator(metadata) == expected


@pytest.mark.parametrize(
    ("standard", "released", "complaint"),
    [
        (load("standard-v1", "L2:0.5"), gaps.NOISY, "within Linf, not L2:0.5"),
        (STANDARD, "standard-v1", 'no metric "autoattack_custom"'),
        (STANDARD, "ebjdat-relase-v1", 'Did you mean "ebjdat-release-v1"'),
        (STANDARD.model_copy(update={"metrics": {"clean": {}}}), gaps.NOISY, 'no metric "pgd20"'),
    ],
)
def test_what_cannot_be_walked(standard: Protocol, released: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        gaps.protocols(standard, released)


def test_failed_stop_is_told(toy: Any) -> None:
    begin = gaps.protocols(STANDARD, gaps.NOISY)

    def broken(change: gaps.Change) -> Measurement:
        return Measurement(
            metric=change.metric, version=1, status="failed", error="no memory", n=1, seconds=0, key="0" * 64
        )

    with pytest.raises(InputError, match="clean failed after the change of released: no memory"):
        gaps.stops(list(gaps.walk(begin, STANDARD, "clean")), broken)


def test_files_hold_the_walk(tmp_path: Path) -> None:
    begin = gaps.protocols(STANDARD, gaps.NOISY)

    def stop(change: str, accuracy: float, contribution: float) -> gaps.Stop:
        return gaps.Stop(
            change=change,
            said=f"about {change}",
            accuracy=accuracy,
            contribution=contribution,
            low=contribution - 1,
            high=contribution + 1,
            lost=int(max(0, -contribution)),
            won=0,
            metric="pgd20",
            key="0" * 64,
        )

    walk = gaps.Walk(accuracy="pgd20", stops=[stop("released", 86, 0), stop("noise", 85, -1), stop("unit", 40, -45)])
    gap = gaps.Gap(
        subject="ebjdat",
        recipe="ebjdat",
        seed=0,
        which="best",
        weights_digest="a" * 64,
        dataset="digits",
        data_digest="b" * 64,
        n=100,
        of=300,
        released=ProtocolInfo(id=begin.id, hash=begin.hash, role="custom"),
        released_threat=begin.threat,
        standard=ProtocolInfo(id=STANDARD.id, hash=STANDARD.hash, role="standard"),
        standard_threat=STANDARD.threat,
        walks=[walk],
        provenance={},
    )
    record, document, table, picture = gaps.write(gap, tmp_path)
    assert gaps.Gap.model_validate(json.loads(record.read_text())) == gap
    assert record.stem == f"digits-ebjdat-s0-aaaaaaaa-{begin.hash[:8]}-n100"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["contribution"] for row in rows] == ["-", "-1.00", "-45.00", "-46.00"]
    assert [row["change"] for row in rows] == ["released", "noise", "unit", "total"]
    text = document.read_text()
    assert "the first 100 of 300 test images" in text
    assert "Contributions depend on the order of the walk" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [line for line in gaps.lines(gap) if "-45.00 [-46.00, -44.00]  unit: about unit" in line]


FACTORY = """
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d


class Quadrants(nn.Module):
    def forward(self, x):
        return 50 * adaptive_avg_pool2d(x, 2).flatten(1)


def make():
    return Quadrants()
"""


@pytest.mark.usefixtures("cut_autoattack")
def test_command_walks_a_model_and_says_where_the_files_are(tmp_path: Path, command: Any) -> None:
    _, images = robust_to(0.03, images=4)
    x, y = images.unit().numpy(), images.labels.numpy()
    np.savez(tmp_path / "q.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "q.py").write_text(FACTORY)
    arguments = ("--model", "q.py:make", "--dataset", "npz:q.npz", "--threat", "Linf:0.04", "--limit", "3")
    done = command("reproduce", "gap", *arguments)
    assert done.status == 0, done.err
    assert "from ebjdat-release-v1 (Linf:0.02) to standard-v3 (Linf:0.04)" in done.out
    assert "-100.00 [" in next(line for line in done.out.splitlines() if "unit of eps: eps 0.02" in line)
    assert "-100.00 in all: 0.00 % under the standard protocol" in done.out
    written = [tmp_path / line for line in done.out.splitlines() if line.startswith("leaderboards/")]
    assert {path.suffix for path in written} == {".json", ".md", ".csv", ".png"}
    assert all(path.is_file() for path in written)
    again = command("reproduce", "gap", *arguments)
    assert again.out == done.out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("gap",), "Give one of --checkpoint PATH"),
        (("gap", "--checkpoint", "nothing"), "nothing"),
        (("gap", "--checkpoint", "c", "--scale", "small"), "--scale is not for reproduce gap"),
        (("gap", "--checkpoint", "c", "--tables-only"), "--tables-only is not for reproduce gap"),
        (("table2", "--checkpoint", "c"), "--checkpoint is not for reproduce table2"),
        (("table2", "--limit", "0"), "--limit is not for reproduce table2"),
        (("gab",), 'Did you mean "gap"'),
    ],
)
def test_bad_input(command: Any, arguments: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    done = command("reproduce", *arguments)
    assert (done.status, done.out) == (2, "")
    assert complaint in done.err
    assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
