import math

import pytest
import torch

from methods.errors import InputError
from methods.primitives.losses import (
    accuracy,
    boosted_cross_entropy,
    cross_entropy,
    dlr,
    kl_divergence,
    margin,
    squared_error,
)

LOGITS = torch.tensor([[1.0, 2.0, 4.0, 3.0], [2.0, -1.0, 0.5, 0.0]])
OTHER = torch.tensor([[0.0, 1.0, -2.0, 0.5], [1.0, 1.0, 0.0, -3.0]])
Y = torch.tensor([2, 1])


def test_cross_entropy() -> None:
    expected = torch.tensor([-math.log(p[y]) for p, y in zip(LOGITS.softmax(1).tolist(), [2, 1], strict=True)])
    torch.testing.assert_close(cross_entropy(LOGITS, Y), expected)


def test_label_smoothing_spreads_over_all_classes() -> None:
    target = torch.full((2, 4), 0.2 / 4)
    target[[0, 1], [2, 1]] += 0.8
    expected = -(target * LOGITS.log_softmax(1)).sum(1)
    torch.testing.assert_close(cross_entropy(LOGITS, Y, label_smoothing=0.2), expected)


def test_cross_entropy_of_targets_that_are_distributions() -> None:
    target = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(cross_entropy(LOGITS, target), -(target * LOGITS.log_softmax(1)).sum(1))
    assert cross_entropy(LOGITS.bfloat16(), target).dtype == torch.float32


def test_squared_error_in_closed_form() -> None:
    """A prediction with c on the wrong classes, evenly: c^2 + c^2/(K - 1), the bounds .178 and .1 of SCORE's clips."""
    target = torch.eye(10)[:2]
    for mass, bound in ((0.4, 0.16 * 10 / 9), (0.3, 0.1), (0.9, 0.9)):
        probabilities = torch.full((2, 10), mass / 9)
        probabilities[[0, 1], [0, 1]] = 1 - mass
        torch.testing.assert_close(squared_error(probabilities.log(), target), torch.full((2,), bound))
    torch.testing.assert_close(squared_error(100 * target.flip(0), target), torch.full((2,), 2.0))


def test_squared_error_has_gradients_through_both_sides() -> None:
    logits, other = LOGITS.clone().requires_grad_(), OTHER.clone().requires_grad_()
    p, q = LOGITS.softmax(1), OTHER.softmax(1)
    of_logits, of_other = torch.autograd.grad(squared_error(logits, other.softmax(1)).sum(), (logits, other))
    for gradient, own, distance in ((of_logits, p, 2 * (p - q)), (of_other, q, 2 * (q - p))):
        torch.testing.assert_close(gradient, own * (distance - (own * distance).sum(1, keepdim=True)))


def test_kl_divergence_against_the_definition() -> None:
    p, q = LOGITS.softmax(1), OTHER.softmax(1)
    torch.testing.assert_close(kl_divergence(LOGITS, OTHER), (p * (p / q).log()).sum(1))


def test_kl_argument_order_confident_clean_uniform_adversarial_is_log_k() -> None:
    clean, adversarial = torch.tensor([[1e4] + [0.0] * 9]), torch.zeros(1, 10)
    torch.testing.assert_close(kl_divergence(clean, adversarial), torch.tensor([math.log(10)]))


def test_kl_of_equals_is_zero_with_zero_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    value = kl_divergence(LOGITS, logits)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(value, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros(2, 4), atol=1e-6, rtol=0)


def test_kl_gradients_flow_through_both_sides_and_stay_finite_where_p_underflows() -> None:
    first, second = torch.tensor([[200.0, 0.0, -200.0]]).requires_grad_(), torch.zeros(1, 3).requires_grad_()
    gradients = torch.autograd.grad(kl_divergence(first, second).sum(), (first, second))
    assert all(gradient.isfinite().all() for gradient in gradients)
    p, q = LOGITS.clone().requires_grad_(), OTHER.clone().requires_grad_()
    value = kl_divergence(p, q)
    of_p, of_q = torch.autograd.grad(value.sum(), (p, q))
    torch.testing.assert_close(of_q, OTHER.softmax(1) - LOGITS.softmax(1))
    log_ratio = LOGITS.log_softmax(1) - OTHER.log_softmax(1)
    torch.testing.assert_close(of_p, LOGITS.softmax(1) * (log_ratio - value.detach()[:, None]))


def test_a_floor_under_q_bounds_the_divergence() -> None:
    clean, adversarial = torch.tensor([[0.0, 200.0, -200.0]]).requires_grad_(), torch.zeros(1, 3).requires_grad_()
    p, q = LOGITS.softmax(1), OTHER.softmax(1)
    floored = kl_divergence(LOGITS, OTHER, floor=1e-2)
    torch.testing.assert_close(floored, (p * (p / (q + 1e-2)).log()).sum(1))
    value = kl_divergence(clean, adversarial + torch.tensor([200.0, 0.0, -200.0]), floor=1e-12)
    torch.testing.assert_close(value, torch.tensor([-math.log(1e-12)]))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value.sum(), (clean, adversarial)))


def test_boosted_cross_entropy_against_the_definition() -> None:
    """The rivals: class 3 of the first image, whose label is the most probable, and class 0 of the second."""
    p = LOGITS.softmax(1)
    rival = torch.stack([p[0, 3], p[1, 0]])
    expected = -p[[0, 1], [2, 1]].log() - (1.0001 - rival + 1e-12).log()
    torch.testing.assert_close(boosted_cross_entropy(LOGITS, Y), expected)


@pytest.mark.parametrize("y", [0, 1, 2, 3])
def test_the_rival_is_never_the_label_even_among_equals(y: int) -> None:
    """adversarial-training.md, trap 9: raising any other class raises the loss, raising the label lowers it."""
    for logits in (torch.zeros(1, 4), torch.tensor([[9.0, 9.0, 0.0, 0.0]]), 50 * torch.eye(4)[y : y + 1]):
        logits = logits.clone().requires_grad_()
        value = boosted_cross_entropy(logits, torch.tensor([y]))
        p = logits.detach().softmax(1).squeeze(0)
        rival = max(float(p[k]) for k in range(4) if k != y)
        assert value.item() == pytest.approx(-math.log(p[y]) - math.log(1.0001 - rival), abs=1e-5)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient[0, y] <= 0


def test_boosted_cross_entropy_of_a_certain_rival_is_finite_in_half_precision() -> None:
    """adversarial-training.md, trap 9: 1.0001 - p is 0 in half precision; it is computed in float32 there as well."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.tensor([[0.0, 40.0, 0.0]], dtype=dtype).requires_grad_()
        value = boosted_cross_entropy(logits, torch.tensor([0]))
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.item() == pytest.approx(40 - math.log(1e-4), rel=1e-3)
        assert gradient.isfinite().all()


def test_margin_is_positive_exactly_when_misclassified() -> None:
    torch.testing.assert_close(margin(LOGITS, Y), torch.tensor([-1.0, 3.0]))


def test_dlr_against_the_definition() -> None:
    torch.testing.assert_close(dlr(LOGITS, Y), torch.tensor([(3.0 - 4.0) / (4.0 - 2.0), (2.0 + 1.0) / (2.0 - 0.0)]))


def test_dlr_is_invariant_to_shift_and_scale() -> None:
    torch.testing.assert_close(dlr(7 * LOGITS + 3, Y), dlr(LOGITS, Y))


def test_dlr_needs_three_classes() -> None:
    with pytest.raises(InputError, match="2 classes"):
        dlr(LOGITS[:, :2], torch.tensor([0, 1]))


def test_accuracy_is_a_percentage_of_the_batch() -> None:
    assert accuracy(LOGITS, Y).item() == 50
    assert accuracy(LOGITS, torch.tensor([2, 0])).item() == 100
    assert accuracy(LOGITS.bfloat16()[:1], torch.tensor([1])).item() == 0
    value = accuracy(LOGITS.clone().requires_grad_(), Y)
    assert value.ndim == 0
    assert value.dtype == torch.float32
    assert not value.requires_grad


def test_losses_are_float32_whatever_the_logits() -> None:
    low = LOGITS.bfloat16()
    values = (
        *(cross_entropy(low, Y), kl_divergence(low, low + 1), kl_divergence(low, low + 1, floor=1e-12)),
        *(margin(low, Y), dlr(low, Y), boosted_cross_entropy(low, Y)),
        squared_error(low, low.softmax(1)),
    )
    assert all(value.dtype == torch.float32 and value.shape == (2,) for value in values)
