"""Transfer attacks against the papers' pseudo-code, typed again image by image, and against their limits."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel
from methods.primitives.transfer_attacks import MIFGSM, VMIFGSM, VNIFGSM

LINF = ThreatModel("Linf", Fraction(8, 100))
L2 = ThreatModel("L2", Fraction(1, 2))
ATTACKS = [MIFGSM(), VMIFGSM(), VNIFGSM()]
Judge = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small convolutional network with fixed weights."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16, 16), nn.ReLU(), nn.Linear(16, 5)
    made = nn.Sequential(*layers)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
        parameter.mul_(3)
    return made


@pytest.fixture(scope="module")
def data(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Images, and the labels the network gives them."""
    x = torch.rand(200, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, network(x).argmax(1)


def objective(network: nn.Module, y: Tensor) -> Judge:
    return lambda x: cross_entropy(network(x), y)


def from_the_paper(name: str, network: nn.Module, x: Tensor, y: Tensor, eps: float, noise: torch.Generator) -> Tensor:
    """Follow Wang & He's Algorithm 1, with the summed loss and plain tensors: T = 10, mu = 1, N = 20, beta = 3/2.

    The norm in the division is the mean of absolute values, as in both papers' code.
    """
    rounds, mu, samples, beta = 10, 1.0, 20, 1.5
    alpha = eps / rounds
    lowest, highest = (x - eps).clamp(min=0), (x + eps).clamp(max=1)

    def nabla(point: Tensor) -> Tensor:
        point = point.clone().requires_grad_()
        nn.functional.cross_entropy(network(point), y, reduction="sum").backward()
        assert point.grad is not None
        return point.grad

    x_t, g, v = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(rounds):
        hat = nabla(x_t + alpha * mu * g if name == "vni" else x_t)
        tuned = hat + v
        g = mu * g + tuned / tuned.abs().mean((1, 2, 3), keepdim=True)
        if name != "mi":
            drawn = [x_t + (torch.rand(x.shape, generator=noise) * 2 - 1) * beta * eps for _ in range(samples)]
            v = torch.stack([nabla(neighbour) for neighbour in drawn]).mean(0) - hat
        x_t = torch.minimum(torch.maximum(x_t + alpha * torch.sign(g), lowest), highest)
    return x_t


@pytest.mark.parametrize(("name", "attack"), [*zip(("mi", "vmi", "vni"), ATTACKS, strict=True)])
def test_success_rate_is_that_of_the_papers_pseudo_code(
    network: nn.Module, data: tuple[Tensor, Tensor], name: str, attack: MIFGSM
) -> None:
    x, y = data
    ours = attack(objective(network, y), x, LINF, generator(0, "neighbours"))
    theirs = from_the_paper(name, network, x, y, LINF.radius, generator(0, "neighbours"))
    broken, wanted = (network(x_adv).argmax(1) != y for x_adv in (ours, theirs))
    assert 0.2 < float(wanted.float().mean()) < 0.95
    # Rounding may turn the sign of a gradient near 0: single pixels may differ by steps, verdicts hardly.
    assert abs(float(broken.float().mean() - wanted.float().mean())) <= 0.01
    assert float((broken == wanted).float().mean()) >= 0.99
    assert float(((ours - theirs).abs() > 1e-4).float().mean()) < 0.01


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("threat", [LINF, L2])
def test_images_stay_in_the_threat_model_and_lose(
    network: nn.Module, data: tuple[Tensor, Tensor], attack: MIFGSM, threat: ThreatModel
) -> None:
    x, y = data
    x_adv = attack(objective(network, y), x, threat, generator(0))
    assert not x_adv.requires_grad
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert float(threat.distance(x_adv, x).max()) <= threat.radius + 1e-6
    assert float((network(x_adv).argmax(1) != y).float().mean()) > 0.2


@pytest.mark.parametrize("threat", [LINF, L2])
def test_without_momentum_it_is_pgd_from_the_image(
    network: nn.Module, data: tuple[Tensor, Tensor], threat: ThreatModel
) -> None:
    x, y = data
    ours = MIFGSM(steps=7, decay=0)(objective(network, y), x, threat, generator(0))
    pgd = PGD(steps=7, step_size=1 / 7, start="zero")(objective(network, y), x, threat, generator(0))
    assert torch.allclose(ours, pgd, atol=1e-6)


@pytest.mark.parametrize("tuned", [VMIFGSM(neighbours=0), VMIFGSM(bound=0, neighbours=3)])
def test_without_a_neighbourhood_it_is_mi_fgsm(network: nn.Module, data: tuple[Tensor, Tensor], tuned: VMIFGSM) -> None:
    x, y = data
    plain = MIFGSM()(objective(network, y), x, LINF, generator(0))
    assert torch.equal(tuned(objective(network, y), x, LINF, generator(0)), plain)


def test_look_ahead_changes_the_attack(network: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    plain, ahead = (kind(neighbours=0)(objective(network, y), x, LINF, generator(0)) for kind in (VMIFGSM, VNIFGSM))
    assert not torch.allclose(plain, ahead)
    still = VNIFGSM(neighbours=0, decay=0)(objective(network, y), x, LINF, generator(0))
    assert torch.equal(still, MIFGSM(decay=0)(objective(network, y), x, LINF, generator(0)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_linear_objective_is_led_to_its_corner(attack: MIFGSM) -> None:
    weight = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(2))
    x = torch.full((2, 1, 3, 3), 0.5)
    x_adv = attack(lambda images: (images * weight).flatten(1).sum(1), x, LINF, generator(0))
    assert torch.allclose(x_adv, x + LINF.radius * weight.sign(), atol=1e-6)


@pytest.mark.parametrize("attack", ATTACKS)
def test_flat_objective_and_eps_of_zero_move_nothing(attack: MIFGSM) -> None:
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(attack(lambda images: 0 * images.flatten(1).sum(1), x, LINF, generator(0)), x)
    still = ThreatModel("Linf", Fraction(0))
    assert torch.equal(attack(lambda images: images.flatten(1).sum(1), x, still, generator(0)), x)


def test_tiny_gradients_do_not_vanish(network: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    plain = MIFGSM()(objective(network, y), x, LINF, generator(0))
    tiny = MIFGSM()(lambda images: 2.0**-100 * cross_entropy(network(images), y), x, LINF, generator(0))
    assert torch.equal(tiny, plain)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MIFGSM(steps=0), "steps=0"),
        (lambda: MIFGSM(decay=-1), "decay"),
        (lambda: MIFGSM(decay=float("nan")), "decay"),
        (lambda: VMIFGSM(neighbours=-1), "neighbours"),
        (lambda: VNIFGSM(bound=-0.5), "bound"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        make()
