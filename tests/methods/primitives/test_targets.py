import pytest
import torch

from methods.errors import InputError
from methods.primitives.losses import cross_entropy
from methods.primitives.targets import one_hot, soft_targets

Y = torch.tensor([2, 0])


def expected(on_label: float, elsewhere: float) -> torch.Tensor:
    target = torch.full((2, 10), elsewhere)
    target[0, 2] = target[1, 0] = on_label
    return target


def test_las_factor_spreads_over_the_other_classes() -> None:
    torch.testing.assert_close(soft_targets(Y, 10, 0.7, "others"), expected(0.7, 0.3 / 9))


def test_gowal_smoothing_spreads_over_all_classes() -> None:
    smoothing = 0.1
    target = soft_targets(Y, 10, 1 - smoothing, "all")
    torch.testing.assert_close(target, expected(1 - smoothing + smoothing / 10, smoothing / 10))
    logits = torch.arange(20.0).view(2, 10).sin()
    torch.testing.assert_close(cross_entropy(logits, target), cross_entropy(logits, Y, smoothing))


def test_one_gamma_of_tdat_is_two_targets() -> None:
    torch.testing.assert_close(soft_targets(Y, 10, 0.15, "others")[0, 2], torch.tensor(0.15))
    torch.testing.assert_close(soft_targets(Y, 10, 0.15, "all"), expected(0.235, 0.085))


@pytest.mark.parametrize("over", ["others", "all"])
@pytest.mark.parametrize("mass", [0.0, 0.4, 1.0])
def test_targets_are_distributions(mass: float, over: str) -> None:
    target = soft_targets(Y, 10, mass, over)  # type: ignore[arg-type]
    assert target.dtype == torch.float32
    torch.testing.assert_close(target.sum(1), torch.ones(2))


def test_one_hot() -> None:
    assert torch.equal(one_hot(Y, 10), expected(1.0, 0.0))


@pytest.mark.parametrize("mass", [-0.1, 1.1, float("nan")])
def test_a_mass_is_a_share(mass: float) -> None:
    with pytest.raises(InputError, match="share of the target"):
        soft_targets(Y, 10, mass, "all")


def test_over_is_one_of_two() -> None:
    with pytest.raises(InputError, match='Did you mean "others"'):
        soft_targets(Y, 10, 0.5, "other")  # type: ignore[arg-type]
