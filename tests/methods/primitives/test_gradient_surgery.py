"""The edit of one tensor's gradient against the formula, and where it would divide by 0."""

import pytest
import torch

from methods.primitives.gradient_surgery import edited_gradient

G = torch.tensor([[3.0, 0.0], [0.0, 4.0]])


def test_a_conflict_is_projected_away() -> None:
    """cos <= 0: what remains of (3, 0, 0, 4) beside (-1, 0, 0, 0) is (0, 0, 0, 4), orthogonal to it."""
    other = torch.tensor([[-1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(edited_gradient(G, other, clip=100.0), torch.tensor([[0.0, 0.0], [0.0, 4.0]]))
    slanted = torch.tensor([[-2.0, 1.0], [0.5, -1.0]])
    edited = edited_gradient(G, slanted, clip=100.0)
    torch.testing.assert_close(edited, G - (G * slanted).sum() / slanted.square().sum() * slanted)
    assert abs((edited * slanted).sum().item()) < 1e-5


def test_what_agrees_is_mixed_by_the_cosine() -> None:
    """(3, 0, 0, 4) and (0, 0, 0, 1): cos = 4/5."""
    other = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(edited_gradient(G, other, clip=100.0), 0.8 * other + 0.2 * G)
    torch.testing.assert_close(edited_gradient(G, G, clip=100.0), G)


def test_orthogonal_gradients_do_not_meet() -> None:
    torch.testing.assert_close(edited_gradient(G, torch.tensor([[0.0, 7.0], [0.0, 0.0]]), clip=100.0), G)


@pytest.mark.parametrize("other", [G, -torch.eye(2), torch.zeros(2, 2)])
def test_clip_is_the_largest_norm(other: torch.Tensor) -> None:
    whole = edited_gradient(G, other, clip=100.0)
    short = edited_gradient(G, other, clip=0.1)
    torch.testing.assert_close(short, whole * 0.1 / whole.norm())
    torch.testing.assert_close(edited_gradient(G / 100, other / 100, clip=0.1), whole / 100)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_no_scale_of_the_clean_gradient_is_unsafe(scale: float) -> None:
    """adversarial-training.md, trap 13: a clean gradient of 0 edits nothing."""
    other = scale * torch.tensor([[-1.0, 0.0], [0.0, 0.0]])
    edited = edited_gradient(G, other, clip=100.0)
    torch.testing.assert_close(edited, G if scale == 0 else torch.tensor([[0.0, 0.0], [0.0, 4.0]]))


@pytest.mark.parametrize("other", [G, -G, torch.zeros(2, 2)])
def test_a_gradient_of_0_stays_0(other: torch.Tensor) -> None:
    assert torch.equal(edited_gradient(torch.zeros(2, 2), other, clip=0.1), torch.zeros(2, 2))


def test_opposite_gradients_leave_nothing() -> None:
    torch.testing.assert_close(edited_gradient(G, -G, clip=0.1), torch.zeros(2, 2), atol=1e-6, rtol=0)
