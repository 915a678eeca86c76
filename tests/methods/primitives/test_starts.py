import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods.errors import InputError
from methods.primitives import starts
from methods.primitives.random import generator
from methods.primitives.starts import PCA, ClassGaussian, Gaussian, Start, StartName, Uniform, start

N = 40000
"""Draws: the mean of pixels of spread 0.04 is then known to 2e-4, their covariance to 2e-5."""


def data() -> tuple[Tensor, Tensor]:
    """Correlated pixels well inside [0, 1], so that the clamp does not bite; the classes are interleaved."""
    z = torch.randn(40, 4, generator=generator(0, "data"))
    mix = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, -0.5, 0.0], [0.0, 0.0, 1.0, 0.2], [0.0, 0.0, 0.0, 1.0]])
    labels = torch.arange(40) % 2
    images = 0.4 + 0.1 * labels[:, None] + 0.03 * z @ mix
    return images.view(40, 1, 2, 2), labels


def drawn(begin: Start, label: int) -> Tensor:
    return begin.sample(torch.full((N,), label), generator(1)).flatten(1)


@pytest.mark.parametrize("name", get_args(StartName))
def test_every_start_draws_images_in_the_unit_range(name: str) -> None:
    images, labels = data()
    begin = start(name, images, labels, 2)
    before = torch.get_rng_state()
    x = begin.sample(torch.tensor([0, 1, 1]), generator(1))
    assert x.shape == (3, 1, 2, 2)
    assert x.dtype == torch.float32
    assert 0 <= x.min() < x.max() <= 1
    assert torch.equal(begin.sample(torch.tensor([0, 1, 1]), generator(1)), x)
    assert not torch.equal(begin.sample(torch.tensor([0, 1, 1]), generator(2)), x)
    assert begin.sample_any(5, generator(1)).shape == (5, 1, 2, 2)
    assert begin.sample_any(0, generator(1)).shape == (0, 1, 2, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_summed_in_pieces_give_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = ClassGaussian(*data(), 2)
    y = torch.tensor([0, 1, 1])
    whole = begin.sample(y, generator(1))
    monkeypatch.setattr(starts, "_PIECE", 7)
    torch.testing.assert_close(begin.sample(y, generator(1)), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", get_args(StartName))
def test_no_start_puts_the_training_set_into_checkpoints(name: str) -> None:
    assert not start(name, *data(), 2).state_dict()


@pytest.mark.parametrize("name", get_args(StartName))
def test_bytes_are_read_as_unit_images(name: str) -> None:
    images, labels = data()
    coded = (images * 255).round().to(torch.uint8)
    y = torch.tensor([0, 1, 1])
    from_bytes = start(name, coded, labels, 2).sample(y, generator(1))
    from_floats = start(name, coded.float() / 255, labels, 2).sample(y, generator(1))
    torch.testing.assert_close(from_bytes, from_floats, atol=1e-6, rtol=0)


def test_unknown_start_offers_the_nearest() -> None:
    with pytest.raises(InputError, match=r'"gausian" is none of class_gaussian, .*Did you mean "gaussian"'):
        start("gausian", *data(), 2)


@pytest.mark.parametrize("name", ["class_gaussian", "pca"])
def test_class_start_keeps_the_order_of_the_labels(name: str) -> None:
    images, labels = data()
    x = start(name, images, labels, 2).sample(torch.tensor([1, 0] * 500), generator(1))
    expected = images[labels == 1].mean() - images[labels == 0].mean()
    assert (x[0::2].mean() - x[1::2].mean()).item() == pytest.approx(expected.item(), abs=5e-3)


def test_sample_any_draws_classes_uniformly() -> None:
    images = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(4, 1, 1, 1)
    begin = ClassGaussian(images, torch.tensor([0, 1, 2, 2]), num_classes=3, ridge=0.0)
    x = begin.sample_any(6000, generator(1)).flatten()
    assert torch.isclose(x, torch.tensor(0.2)).float().mean().item() == pytest.approx(1 / 3, abs=0.03)
    assert torch.isclose(x, torch.tensor(0.4)).float().mean().item() == pytest.approx(1 / 3, abs=0.03)


def test_uniform_covers_the_range_evenly_and_ignores_the_images() -> None:
    images, labels = data()
    x = Uniform(images, labels, 2).sample(torch.zeros(N, dtype=torch.int64), generator(1))
    torch.testing.assert_close(x, Uniform(1 - images, labels, 2).sample(torch.ones(N), generator(1)))
    for share in (0.25, 0.5, 0.75):
        assert (x < share).float().mean().item() == pytest.approx(share, abs=5e-3)


@pytest.mark.parametrize("label", [0, 1])
def test_class_gaussian_has_the_mean_and_covariance_of_the_class(label: int) -> None:
    images, labels = data()
    x = drawn(ClassGaussian(images, labels, num_classes=2, ridge=0.01), label)
    members = images[labels == label].flatten(1)
    torch.testing.assert_close(x.mean(0), members.mean(0), atol=1e-3, rtol=0)
    covariance = members.T.cov(correction=0) + 0.01**2 * torch.eye(4)
    torch.testing.assert_close(x.T.cov(), covariance, atol=5e-5, rtol=0)


def test_class_gaussian_of_black_images_is_the_ridge_clamped() -> None:
    black = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    x = start("class_gaussian", black, torch.zeros(3, dtype=torch.int64), 1).sample_any(500, generator(1))
    assert x.min() == 0
    # sqrt(1e-4) in [-1, 1] is 0.005 here (energy-methods.md 1.4).
    assert x[x > 0].square().mean().sqrt().item() == pytest.approx(0.005, rel=0.03)
    assert (x == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_gaussian_has_the_mean_and_covariance_of_all_images() -> None:
    images, labels = data()
    x = drawn(Gaussian(images, labels, num_classes=2, ridge=0.01), 0)
    everything = images.flatten(1)
    torch.testing.assert_close(x.mean(0), everything.mean(0), atol=1e-3, rtol=0)
    covariance = everything.T.cov(correction=0) + 0.01**2 * torch.eye(4)
    torch.testing.assert_close(x.T.cov(), covariance, atol=1e-4, rtol=0)
    assert not torch.allclose(covariance, images[labels == 0].flatten(1).T.cov(correction=0), atol=1e-3)
    assert torch.equal(
        x[:9], Gaussian(images, labels, 2, ridge=0.01).sample(torch.ones(N), generator(1)).flatten(1)[:9]
    )


def test_gaussian_adds_the_pieces_it_is_fitted_in() -> None:
    """Images are read 2,000 at a time; a mean or covariance of pieces would show."""
    images, labels = data()
    many = torch.cat([images.repeat(60, 1, 1, 1), images[:7].expand(7, 1, 2, 2)])
    fitted = Gaussian(many, labels.repeat(61)[: len(many)], 2, ridge=0.01)
    covariance = many.flatten(1).T.cov(correction=0) + 0.01**2 * torch.eye(4)
    torch.testing.assert_close(fitted.mean, many.flatten(1).mean(0), atol=1e-6, rtol=0)
    assert fitted.factor is not None
    torch.testing.assert_close(fitted.factor @ fitted.factor.T, covariance, atol=1e-6, rtol=1e-4)


def test_gaussian_of_fewer_images_than_pixels() -> None:
    images = torch.rand(5, 3, 8, 8, generator=generator(0))
    x = Gaussian(images, torch.zeros(5, dtype=torch.int64), 1).sample_any(10, generator(1))
    assert x.isfinite().all()


def test_gaussian_beyond_a_covariance_matrix_has_the_same_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "_LARGEST_COVARIANCE", 3)
    monkeypatch.setattr(starts, "_GAUSSIAN_PIECE", 7)
    test_gaussian_has_the_mean_and_covariance_of_all_images()


@pytest.mark.parametrize("name", get_args(StartName))
def test_no_start_forms_a_matrix_of_pixels_by_pixels_at_64_pixels(name: str) -> None:
    images = torch.randint(256, (30, 3, 64, 64), dtype=torch.uint8, generator=generator(0))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple) else (result,):
                if isinstance(value, Tensor):
                    largest = max(largest, value.numel())
            return result

    with Watch():
        x = start(name, images, torch.arange(30) % 3, 3).sample(torch.tensor([0, 1, 2, 2]), generator(1))
    assert x.isfinite().all()
    assert largest <= images.numel()


def spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return variances (n - 1 degrees of freedom), largest first, and principal components as rows."""
    values, vectors = torch.linalg.eigh(images.flatten(1).double().T.cov())
    return values.flip(0), vectors.flip(1).T


def few_and_many() -> list[Tensor]:
    """Fewer and more images than pixels: each takes its own Gram matrix."""
    mix = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05]))
    mix = mix @ torch.linalg.qr(torch.randn(8, 8, generator=generator(0, "mix"))).Q
    draw = torch.randn(60, 8, generator=generator(0, "pca")) @ mix
    return [(0.5 + 0.02 * draw[:n]).view(n, 2, 2, 2) for n in (6, 60)]


@pytest.mark.parametrize("images", few_and_many(), ids=["n < d", "n > d"])
def test_pca_draws_along_the_components_that_hold_the_variance(images: Tensor) -> None:
    """energy-methods.md 4.2: x = mu + sum s_i z_i 0.005 PC_i, s_i = sqrt(n - 1) sqrt(lambda_i)."""
    n = len(images)
    variances, components = spectrum(images)
    shares = variances.cumsum(0) / variances.sum()
    kept = int((shares < 0.95).sum()) + 1
    assert 1 < kept < min(n - 1, 8)

    x = drawn(PCA(images, torch.zeros(n, dtype=torch.int64), 1), 0).double()
    along = (x - images.flatten(1).double().mean(0)) @ components.T
    scale = 0.005 * math.sqrt(n - 1) * variances.sqrt()
    torch.testing.assert_close(along[:, :kept].std(0), scale[:kept], atol=0, rtol=0.02)
    assert along[:, kept:].abs().max() < 1e-5
    torch.testing.assert_close(along.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-4, rtol=0)
    correlation = along[:, :kept].T.corrcoef() - torch.eye(kept, dtype=torch.float64)
    assert correlation.abs().max() < 0.03


@pytest.mark.parametrize("retained", [0.3, 0.95, 1.0])
def test_pca_is_the_same_from_either_gram_matrix(retained: float) -> None:
    """Six images of eight pixels, and the same with the pixels that are always grey left out."""
    images = few_and_many()[0]
    turned = torch.linalg.svd(images.flatten(1) - images.flatten(1).mean(0), full_matrices=True)
    flat = images.flatten(1) @ turned.Vh.T
    wide, tall = flat.view(6, 8, 1, 1), flat[:, :5].reshape(6, 5, 1, 1)
    labels = torch.zeros(6, dtype=torch.int64)
    covariances = []
    for shown in (wide, tall):
        _, scaled = PCA(shown, labels, 1, retained=retained)._components(0)
        covariances.append(scaled.T @ scaled)
    torch.testing.assert_close(covariances[0][:5, :5], covariances[1], atol=1e-5, rtol=1e-4)
    assert covariances[0][5:].abs().max() < 1e-5


@pytest.mark.parametrize(("decay", "retained"), [(0.7, 0.95), (0.7, 1.0), (1.0, 0.95)])
def test_pca_of_large_images_takes_the_same_components(
    decay: float, retained: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few components are sought in a subspace; where they do not hold the variance, all are computed."""
    spread = decay ** torch.arange(30.0)
    images = 0.5 + 0.1 * torch.randn(200, 30, generator=generator(0)) * spread
    begin = {"images": images.view(200, 30, 1, 1), "labels": torch.zeros(200, dtype=torch.int64), "num_classes": 1}
    _, exact = PCA(**begin, retained=retained)._components(0)
    state = torch.get_rng_state()
    monkeypatch.setattr(starts, "_SUBSPACE", 14)
    _, found = PCA(**begin, retained=retained)._components(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == len(exact)
    torch.testing.assert_close(found.T @ found, exact.T @ exact, atol=1e-3, rtol=1e-3)


def test_pca_of_equal_images_is_their_mean() -> None:
    images = torch.full((3, 1, 2, 2), 0.25)
    x = PCA(images, torch.zeros(3, dtype=torch.int64), 1).sample_any(4, generator(0))
    torch.testing.assert_close(x, torch.full((4, 1, 2, 2), 0.25))


@pytest.mark.parametrize(
    ("name", "labels", "said"),
    [
        ("class_gaussian", [0, 1, 0, 1], "1 or more images of each class; class 2 has 0"),
        ("pca", [0, 1, 0, 2], "2 or more images of each class; class 1 has 1"),
    ],
)
def test_a_class_start_needs_images_of_every_class(name: str, labels: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        start(name, torch.rand(4, 1, 2, 2), torch.tensor(labels), 3)


def test_starts_name_what_they_are() -> None:
    assert set(get_args(starts.StartName)) == {"class_gaussian", "gaussian", "uniform", "pca"}
