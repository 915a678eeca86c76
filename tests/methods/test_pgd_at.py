"""Which statistics the attack of PGD-AT uses, and which it moves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from methods.backbones import Classifier
from methods.training.method import Batch, Method


@pytest.mark.parametrize(
    ("mode", "batch_statistics", "moves"),
    [("eval", False, False), ("train", True, True), ("train-frozen-statistics", True, False)],
)
def test_attack_mode(
    mode: str,
    batch_statistics: bool,
    moves: bool,
    make_method: Callable[..., Method],
    network: Callable[[], Classifier],
    batch: Batch,
) -> None:
    def attacked(images: Batch) -> tuple[Any, bool]:
        # In float64: in float32 a batch of another size turns the sign of a gradient that is nearly 0.
        model = network().double()
        before = {name: value.clone() for name, value in model.named_buffers()}
        method = make_method("pgd_at", {"attack_mode": mode, "attack": {"start": "zero"}})
        x_adv = method.inner(model, replace(images, x=images.x.double()))["x_adv"]
        return x_adv, any(not torch.equal(value, before[name]) for name, value in model.named_buffers())

    whole, moved = attacked(batch)
    half, _ = attacked(Batch(batch.x[:8], batch.y[:8], None, 0, 0, 0.0))
    assert moved == moves
    # With batch statistics an image's perturbation depends on the images beside it.
    assert torch.allclose(whole[:8], half, atol=1e-6) != batch_statistics


def test_soft_targets_replace_the_labels_of_the_loss(
    make_method: Callable[..., Method], network: Callable[[], Classifier], batch: Batch
) -> None:
    method, model = make_method("pgd_at"), network().eval()
    target = torch.full((len(batch.y), 10), 0.02).scatter_(1, batch.y[:, None], 0.82)
    loss = method.loss(model, replace(batch, target=target), {"x_adv": batch.x}).total
    assert torch.allclose(loss, -(target * model(batch.x).log_softmax(1)).sum(1).mean())
