"""MART's loss against its formula, where gradients flow, and what it is without an adversary."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from methods.errors import InputError
from methods.training.method import Batch, Losses, Method

MakeMethod = Callable[..., Method]


class Table(nn.Module):
    """Logits by heart: the first half of the images are the clean ones."""

    def __init__(self, clean: Tensor, adversarial: Tensor) -> None:
        super().__init__()
        self.clean, self.adversarial = nn.Parameter(clean), nn.Parameter(adversarial)

    def forward(self, x: Tensor) -> Tensor:
        return self.clean if bool((x == 0).all()) else self.adversarial


CLEAN = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.5, 1.0], [3.0, -2.0, 0.0], [0.1, 0.0, 0.0]])
ADVERSARIAL = torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.5, 0.5], [2.0, -1.0, 1.0], [0.0, 0.4, -0.3]])
Y = torch.tensor([0, 2, 0, 1])


def losses_of(make_method: MakeMethod, model: nn.Module, beta: float = 6.0) -> Losses:
    batch = Batch(torch.zeros(4, 1, 8, 8), Y, None, step=0, seed=0, progress=0.0)
    return make_method("mart", {"beta": beta}).loss(model, batch, {"x_adv": torch.ones(4, 1, 8, 8)})


def expected(clean: Tensor, adversarial: Tensor, beta: float) -> Tensor:
    """Wang et al. 2020, eqs. 7, 8 and 11, image by image, with the code's constants."""
    total = torch.zeros(())
    for z, z_adv, y in zip(clean, adversarial, Y.tolist(), strict=True):
        p, q = z.softmax(0), z_adv.softmax(0)
        rival = max((k for k in range(3) if k != y), key=lambda k: q[k].item())
        boosted = -q[y].log() - (1.0001 - q[rival] + 1e-12).log()
        divergence = sum(p[k] * (p[k] / (q[k] + 1e-12)).log() for k in range(3))
        total = total + (boosted + beta * divergence * (1.0000001 - p[y])) / 4
    return total


@pytest.mark.parametrize("beta", [0.0, 5.0, 6.0])
def test_loss_and_gradients_against_the_formula(beta: float, make_method: MakeMethod) -> None:
    """Nothing is held fixed: the gradient of the clean logits is that of p in KL and of its weight 1 - p_y."""
    model = Table(CLEAN.clone(), ADVERSARIAL.clone())
    losses = losses_of(make_method, model, beta)
    by_hand = CLEAN.clone().requires_grad_(), ADVERSARIAL.clone().requires_grad_()
    total = expected(*by_hand, beta)
    torch.testing.assert_close(losses.total, total)
    found = torch.autograd.grad(losses.total, list(model.parameters()))
    for gradient, wanted in zip(found, torch.autograd.grad(total, by_hand), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_without_an_adversary_it_is_the_boosted_cross_entropy(make_method: MakeMethod) -> None:
    """adversarial-training.md, trap 3."""
    losses = losses_of(make_method, Table(CLEAN.clone(), CLEAN.clone()))
    torch.testing.assert_close(losses.total, losses.terms["boosted"], atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.terms["boosted"], expected(CLEAN, CLEAN, 0.0))
    torch.testing.assert_close(losses.terms["clean"], nn.functional.cross_entropy(CLEAN, Y))
    assert losses.terms["accuracy_adv"] == losses.terms["accuracy_clean"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_certain_predictions_is_float32_and_finite(dtype: torch.dtype, make_method: MakeMethod) -> None:
    """adversarial-training.md, trap 9: certain, and wrong, in half precision."""
    wrong = 90 * torch.eye(3)[(Y + 1) % 3].to(dtype)
    for clean in (wrong, 90 * torch.eye(3)[Y].to(dtype)):
        model = Table(clean.clone(), wrong.clone())
        losses = losses_of(make_method, model)
        assert losses.total.dtype == torch.float32
        gradients = torch.autograd.grad(losses.total, list(model.parameters()))
        assert losses.total.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_batch_of_one(make_method: MakeMethod, network: Callable[[], nn.Module], batch: Batch) -> None:
    single = Batch(batch.x[:1], batch.y[:1], None, 0, 0, 0.0)
    method, model = make_method("mart"), network()
    assert method.loss(model.eval(), single, method.inner(model, single)).total.isfinite()


def test_beta_is_not_negative(make_method: MakeMethod) -> None:
    with pytest.raises(InputError, match=r"options.beta must not be negative, not -1"):
        make_method("mart", {"beta": -1.0})
