"""Evidence: what is kept decodes to an image that still breaks the verdict, inside the threat model."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmark.evaluation import evidence
from methods.primitives.threat import ThreatModel


@pytest.mark.parametrize("threat", ["Linf:0.02", "L2:0.1"])
def test_decodes_to_images_that_break_the_same_verdicts(toy: Any, threat: str) -> None:
    """The steepest perturbation of a linear model flips most images; each kept one flips it again after decoding."""
    made, model = toy(images=40), ThreatModel.parse(threat)
    subject, (x, y) = made.subject(), (made.dataset.test.unit(), made.dataset.test.labels)
    logits = subject.logits(x)
    runner_up = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    direction = (made.weight[:, runner_up] - made.weight[:, y]).T.reshape(x.shape)
    x_adv = model.project(x + model.steepest(direction), x)
    broken = subject.logits(x_adv).argmax(1) != y
    assert 0 < int(broken.sum()) < 40
    kept = evidence.encode(subject, model, x, y, x_adv, broken, 7)
    assert ((kept["encoding"] != evidence.NONE) == broken.numpy()).all()
    again = evidence.decode(x, kept, model)
    assert torch.equal(again[~broken], x[~broken])
    assert bool((subject.logits(again).argmax(1) != y)[broken].all())
    assert float(model.distance(again, x).max()) <= model.radius + evidence.SLACK


def test_keeps_the_image_itself_where_rounding_heals_it(toy: Any) -> None:
    made, threat = toy(images=1, wrong=0), ThreatModel.parse("Linf:0.2")
    subject, (x, y) = made.subject(), (made.dataset.test.unit(), made.dataset.test.labels)
    logits = subject.logits(x)
    runner_up = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    direction = (made.weight[:, runner_up] - made.weight[:, y]).T.reshape(x.shape).sign()
    low, high = 0.0, 0.2
    for _ in range(60):  # to the boundary, as closely as float32 tells it
        middle = (low + high) / 2
        flipped = bool(subject.logits(x + middle * direction).argmax(1) != y)
        low, high = (low, middle) if flipped else (middle, high)
    x_adv = x + high * direction
    kept = evidence.encode(subject, threat, x, y, x_adv, torch.tensor([True]), 1)
    assert kept["encoding"].tolist() == [evidence.EXACT]
    assert torch.equal(evidence.decode(x, kept, threat), x_adv)


def test_an_edge_of_the_ball_takes_one_byte_a_pixel(toy: Any) -> None:
    made, threat = toy(images=5, wrong=5), ThreatModel.parse("Linf:8/255")
    x, y = made.dataset.test.unit(), made.dataset.test.labels
    x_adv = threat.project(x + threat.radius * torch.ones_like(x), x)
    kept = evidence.encode(made.subject(), threat, x, y, x_adv, torch.ones(5, dtype=torch.bool), 5)
    assert set(np.unique(kept["encoding"])) <= {evidence.BYTES, evidence.EXACT}
    assert np.abs(kept["delta"]).max() == evidence.LEVELS
