"""Training with generated data: smoothed labels, the mode of the attack, and CutMix."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from methods.backbones import Classifier
from methods.errors import InputError
from methods.gen_data import Config
from methods.primitives.modes import mode
from methods.training.method import Batch, Method

MakeMethod = Callable[..., Method]
Network = Callable[..., Classifier]


def test_loss_against_the_formula(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method("gen_data", {"beta": 6.0, "label_smoothing": 0.2}), network()
    inner = method.inner(model, batch)
    assert inner.keys() == {"x_adv"}
    losses = method.loss(model, batch, inner)
    clean, adversarial = model(batch.x), model(inner["x_adv"])
    natural = F.cross_entropy(clean, batch.y, label_smoothing=0.2)
    p, q = clean.softmax(1), adversarial.softmax(1)
    robust = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(losses.total, natural + 6 * robust)


def test_in_eval_mode_without_smoothing_it_is_trades(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    attack = {"start": "normal"}
    same = make_method("gen_data", {"beta": 6.0, "label_smoothing": 0.0, "attack_mode": "eval", "attack": attack})
    trades = make_method("trades", {"attack": {"step_size": 0.25}})
    first, second = (method.inner(network(), batch)["x_adv"] for method in (same, trades))
    assert torch.equal(first, second)
    values = [method.loss(network(), batch, {"x_adv": first}).total for method in (same, trades)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("options", [{}, {"cutmix": True}])
def test_the_attack_sees_batch_statistics_and_moves_none(
    options: dict[str, Any], make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    model = network()
    before = [value.clone() for value in model.buffers()]
    x_adv = make_method("gen_data", options).inner(model, batch)["x_adv"]
    assert all(torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))
    evaluated = make_method("gen_data", options | {"attack_mode": "eval"}).inner(model, batch)["x_adv"]
    assert not torch.allclose(x_adv, evaluated, atol=1e-3)


def test_cutmix_replaces_images_and_labels(make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method("gen_data", {"cutmix": True}), network()
    inner = method.inner(model, batch)
    x, target = inner["x"], inner["target"]
    mixed = (x != batch.x).flatten(1).any(1)
    assert mixed.sum() > 8
    torch.testing.assert_close(target.sum(1), torch.ones(16))
    losses = method.loss(model, batch, inner)
    with mode(model, training=True, track_statistics=False):
        clean, adversarial = model(x), model(inner["x_adv"])
    natural = -(target * clean.log_softmax(1)).sum(1).mean()
    p = clean.softmax(1)
    robust = (p * (p / adversarial.softmax(1)).log()).sum(1).mean()
    torch.testing.assert_close(losses.total, natural + 5 * robust)


def test_cutmix_attacks_the_mixed_label(make_method: MakeMethod, trained: Classifier, batch: Batch) -> None:
    method = make_method("gen_data", {"cutmix": True, "attack_mode": "eval"})
    inner = method.inner(trained, batch)
    trained.eval()
    noise = method.task.threat.random_start(inner["x"], batch.generator("test"))
    reached, random = (
        -(inner["target"] * trained(images).log_softmax(1)).sum(1).mean() for images in (inner["x_adv"], noise)
    )
    assert reached > 1.5 * random


@pytest.mark.parametrize("options", [{}, {"cutmix": True}])
def test_at_eps_0_it_is_the_cross_entropy_of_the_targets(
    options: dict[str, Any], make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """Trap 3."""
    method, model = make_method("gen_data", options, threat="Linf:0"), network()
    inner = method.inner(model, batch)
    losses = method.loss(model, batch, inner)
    expected = F.cross_entropy(model(batch.x), batch.y, label_smoothing=0.1)
    if "target" in inner:
        expected = F.cross_entropy(model(inner["x"]), inner["target"])
    torch.testing.assert_close(losses.total, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1}, "options.beta"),
        ({"label_smoothing": 1.0}, "options.label_smoothing"),
        ({"window": 0.0}, "options.window"),
        ({"window": 1.5}, "options.window"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**options)
