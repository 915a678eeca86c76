"""SCORE: both forms against the formula, the clip, and what is left of them without an adversary."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.backbones import Classifier
from methods.errors import InputError
from methods.score import Config
from methods.training.method import Batch, Method

MakeMethod = Callable[..., Method]
Network = Callable[..., Classifier]


def probabilities(model: Classifier, x: Tensor) -> Tensor:
    return model(x).softmax(1)


@pytest.mark.parametrize("clip", [0.0, 0.4])
@pytest.mark.parametrize("on", ["robust", "sum"])
def test_trades_form(clip: float, on: str, make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method("score", {"clip": clip, "clip_on": on, "beta": 3.0}), network()
    inner = method.inner(model, batch)
    losses = method.loss(model, batch, inner)
    clean, adversarial = probabilities(model, batch.x), probabilities(model, inner["x_adv"])
    natural = ((clean - F.one_hot(batch.y, 10)) ** 2).sum(1)
    robust = ((adversarial - clean) ** 2).sum(1)
    bound = clip**2 + clip**2 / 9
    expected = {
        "robust": natural + 3 * (robust - bound).clamp_min(0),
        "sum": (natural + 3 * robust - bound).clamp_min(0),
    }
    torch.testing.assert_close(losses.total, expected[on].mean())


@pytest.mark.parametrize("clip", [0.0, 0.4])
def test_pgd_form(clip: float, make_method: MakeMethod, network: Network, batch: Batch) -> None:
    method, model = make_method("score", {"form": "pgd", "clip": clip}), network()
    inner = method.inner(model, batch)
    error = ((probabilities(model, inner["x_adv"]) - F.one_hot(batch.y, 10)) ** 2).sum(1)
    bound = clip**2 + clip**2 / 9
    expected = (error - bound).clamp_min(0).mean()
    torch.testing.assert_close(method.loss(model, batch, inner).total, expected)


class Fixed(nn.Module):
    """A network whose every prediction has the given mass on wrong classes, evenly."""

    def __init__(self, y: Tensor, mass: float) -> None:
        super().__init__()
        p = torch.full((len(y), 10), mass / 9)
        self.log_p = nn.Parameter(p.scatter_(1, y[:, None], 1 - mass).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.log_p


@pytest.mark.parametrize(("mass", "free"), [(0.39, True), (0.41, False)])
def test_the_clip_forgives_a_mass_on_wrong_classes(
    mass: float, free: bool, make_method: MakeMethod, batch: Batch
) -> None:
    for options in ({"form": "pgd"}, {"clip_on": "sum"}):
        model = Fixed(batch.y, mass)
        method = make_method("score", options | {"clip": 0.4})
        total = method.loss(model, batch, {"x_adv": batch.x}).total
        assert (total == 0) == free
        (gradient,) = torch.autograd.grad(total, model.log_p)
        assert bool((gradient == 0).all()) == free


@pytest.mark.parametrize("form", ["trades", "pgd"])
def test_the_attack_raises_the_squared_error(
    form: str, make_method: MakeMethod, trained: Classifier, batch: Batch
) -> None:
    method = make_method("score", {"form": form, "attack_mode": "eval"})
    x_adv = method.inner(trained, batch)["x_adv"]
    trained.eval()
    clean = probabilities(trained, batch.x)
    target = clean if form == "trades" else F.one_hot(batch.y, 10)
    noise = (batch.x + 0.15 * (2 * torch.rand(batch.x.shape, generator=batch.generator("test")) - 1)).clamp(0, 1)
    reached, random = (((probabilities(trained, x) - target) ** 2).sum(1).mean() for x in (x_adv, noise))
    assert reached > 5 * random


@pytest.mark.parametrize("options", [{}, {"form": "pgd"}])
def test_at_eps_0_it_is_the_squared_error_of_clean_images(
    options: dict[str, Any], make_method: MakeMethod, network: Network, batch: Batch
) -> None:
    """Trap 3: the extra term of the trades form is 0."""
    method, model = make_method("score", options, threat="Linf:0"), network()
    losses = method.loss(model, batch, method.inner(model, batch))
    clean = ((probabilities(model, batch.x) - F.one_hot(batch.y, 10)) ** 2).sum(1).mean()
    torch.testing.assert_close(losses.total, clean)
    assert losses.terms.get("robust", 0) == 0


@pytest.mark.parametrize(("options", "message"), [({"beta": -1}, "options.beta"), ({"clip": 1.0}, "options.clip")])
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**options)
