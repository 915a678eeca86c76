"""Probes: each sick model gets its own finding and no other, and an honest one gets none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.models.gradient_probes import finite_differences, gradients, saturated_logits
from benchmark.models.input_domain import (
    BYTES,
    NORMALISED,
    SYMMETRIC,
    Domain,
    candidates,
    domain_finding,
    expected,
    try_domains,
)
from benchmark.models.output_probes import input_noise, noise
from benchmark.models.probes import probe
from methods.backbones import BackboneConfig, build

K = 4


class Then(nn.Module):
    """A network, then a function of its logits; before it a function of its input."""

    def __init__(
        self,
        network: nn.Module,
        after: Callable[[Tensor], Any] = lambda z: z,
        before: Callable[[Tensor], Any] = lambda x: x,
    ) -> None:
        super().__init__()
        self.network, self.after, self.before = network, after, before
        self.training = network.training

    def forward(self, x: Tensor) -> Any:
        return self.after(self.network(self.before(x)))


def images(channels: int = 3, count: int = 64) -> Tensor:
    """Return images [N,C,8,8] whose bytes are random, 0 and 255 among them."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, 8, 8), generator=generator) / 255


def balanced(network: nn.Sequential, x: Tensor) -> nn.Sequential:
    """Centre the logits on ``x``, so that every class is predicted, and spread them; in eval mode."""
    network.eval()
    last = network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        logits = network(x)
        spread = logits.std(0)
        last.weight.div_(spread[:, None])
        last.bias.copy_((last.bias - logits.mean(0)) / spread)
    return network


def cnn(x: Tensor) -> nn.Sequential:
    """A small network with BatchNorm whose kinks and ties are those of any: ReLU and max-pooling."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(x.shape[1], 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, K),
    )
    network(x)  # one pass in training mode fills the running statistics
    return balanced(network, x)


def linear(x: Tensor) -> nn.Sequential:
    torch.manual_seed(0)
    return balanced(nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), K)), x)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return images()


@pytest.fixture
def network(x: Tensor) -> nn.Sequential:
    return cnn(x)


@pytest.fixture
def y(network: nn.Module, x: Tensor) -> Tensor:
    """The network's own predictions, two of them wrong."""
    with torch.no_grad():
        y = network(x).argmax(1)
    y[:2] = (y[:2] + 1) % K
    return y


def found(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, str]:
    return {finding.name: finding.severity for finding in probe(model, x, y, K) if not finding.fine}


def straight_through(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function whose backward pass is the identity."""
    return x + (function(x) - x).detach()


def quantised(x: Tensor) -> Tensor:
    return (8 * x).round() / 8


class Kill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        return 0 * outer[0]


class OwnStatistics(nn.Module):
    """BatchNorm that is in training mode whatever its flags say."""

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, True, self.momentum)


class Stubborn(nn.Sequential):
    """A model that eval() does not reach."""

    def train(self, mode: bool = True) -> Stubborn:
        super().train(True)
        return self


def single_precision(network: nn.Module, before: Callable[[Tensor], Tensor] = lambda x: x) -> nn.Module:
    """A model that runs in float32 and in nothing else."""
    return Then(network, before=lambda x: before(x.float()))


HONEST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda net: net,
    "shifted and scaled": lambda net: Then(net, lambda z: 5 * z + 100),
    "tiny logits": lambda net: Then(net, lambda z: 1e-3 * z),
    "float32 only": single_precision,
    "clamped input": lambda net: Then(net, before=lambda x: x.clamp(0, 1)),
    "weight norm": lambda net: nn.Sequential(*list(net)[:-1], nn.utils.parametrizations.weight_norm(net[-1])).eval(),  # pyright: ignore
}

SICK: dict[str, tuple[Callable[[nn.Module], nn.Module], dict[str, str]]] = {
    "probabilities": (lambda net: Then(net, lambda z: z.softmax(1)), {"probabilities": "problem"}),
    "log-probabilities": (lambda net: Then(net, lambda z: z.log_softmax(1)), {"probabilities": "doubt"}),
    "training mode": (lambda net: net.train(), {"training mode": "problem"}),
    "dropout in training mode": (
        lambda net: nn.Sequential(net, nn.Dropout(0.5).train()),
        {"training mode": "problem"},
    ),
    "eval() without effect": (lambda net: Stubborn(*net).eval(), {"training mode": "problem"}),  # pyright: ignore
    "own batch statistics": (
        lambda net: nn.Sequential(net, OwnStatistics(K, 0.0)).eval(),
        {"batch dependence": "problem"},
    ),
    "moving statistics": (
        lambda net: nn.Sequential(OwnStatistics(3, 0.1), net).eval(),
        {"batch dependence": "problem", "state": "problem"},
    ),
    "no running statistics": (
        lambda net: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), net).eval(),
        {"batch dependence": "problem"},
    ),
    "centred in the batch": (lambda net: Then(net, lambda z: z - z.mean(0)), {"batch dependence": "problem"}),
    "depends on its place": (
        lambda net: Then(net, lambda z: z * (1 + 0.1 * torch.arange(len(z), dtype=z.dtype)[:, None])),
        {"batch dependence": "problem"},
    ),
    "noise on the input": (
        lambda net: Then(net, before=lambda x: x + 0.02 * torch.randn_like(x)),
        {"noise": "problem"},
    ),
    "noise on the logits": (lambda net: Then(net, lambda z: z + 0.1 * torch.randn_like(z)), {"noise": "problem"}),
    "dropout that is always on": (lambda net: Then(net, before=lambda x: F.dropout(x, 0.1)), {"noise": "problem"}),
    "in place": (
        lambda net: Then(net, before=lambda x: x.mul_(2).div_(2).add_(0.001)),
        {"state": "problem", "gradients": "problem"},
    ),
    "detached": (lambda net: Then(net, before=lambda x: x.detach()), {"gradients": "problem"}),
    "without a graph": (lambda net: Then(net, torch.no_grad()(lambda z: z.clone())), {"gradients": "problem"}),
    "gradient set to zero": (lambda net: Then(net, before=lambda x: Kill.apply(x)), {"gradients": "problem"}),
    "gradient NaN": (lambda net: Then(net, lambda z: z + (0 * z).sqrt()), {"gradients": "problem"}),
    "bytes": (lambda net: Then(net, before=lambda x: (255 * x).round().byte() / 255), {"gradients": "problem"}),
    "rounded": (lambda net: Then(net, before=quantised), {"gradients": "problem"}),
    "rounded, straight-through": (
        lambda net: Then(net, before=lambda x: straight_through(x, quantised)),
        {"finite differences": "problem"},
    ),
    "rounded to bytes, straight-through": (
        lambda net: Then(net, before=lambda x: straight_through(x, lambda pixels: (255 * pixels).round() / 255)),
        {"finite differences": "problem"},
    ),
    "rounded, straight-through, float32 only": (
        lambda net: single_precision(net, lambda x: straight_through(x, quantised)),
        {"finite differences": "problem"},
    ),
    "blurred, straight-through": (
        lambda net: Then(net, before=lambda x: straight_through(x, lambda pixels: F.avg_pool2d(pixels, 3, 1, 1))),
        {"finite differences": "problem"},
    ),
    "rounded and noisy": (
        lambda net: Then(net, before=lambda x: straight_through(x + 0.02 * torch.randn_like(x), quantised)),
        {"noise": "problem", "finite differences": "problem"},
    ),
    "half of it detached": (
        lambda net: Then(net, before=lambda x: 0.5 * x + 0.5 * x.flip(3).detach()),
        {"finite differences": "problem"},
    ),
    "logits times 1000": (lambda net: Then(net, lambda z: 1000 * z), {"saturated logits": "problem"}),
    "NaN": (lambda net: Then(net, lambda z: z * torch.nan), {"finite outputs": "problem"}),
    "infinite for one class": (
        lambda net: Then(net, lambda z: torch.cat([z[:, :-1], z[:, -1:] / 0], 1)),
        {"finite outputs": "problem"},
    ),
    "another number of classes": (lambda net: Then(net, lambda z: z[:, :3]), {"output shape": "problem"}),
    "a vector": (lambda net: Then(net, lambda z: z[:, 0]), {"output shape": "problem"}),
    "a number": (lambda net: Then(net, lambda z: z.sum()), {"output shape": "problem"}),
    "a tuple": (lambda net: Then(net, lambda z: (z, z)), {"output shape": "problem"}),
    "an exception": (lambda net: Then(net, lambda z: z @ z), {"forward pass": "problem"}),
    "the same for all": (lambda net: Then(net, lambda z: 0 * z + 1), {"constant outputs": "problem"}),
    "expects [-1,1]": (lambda net: Then(net, before=lambda v: (v + 1) / 2), {"input domain": "problem"}),
    "expects [0,255]": (lambda net: Then(net, before=lambda v: v / 255), {"input domain": "problem"}),
    "only two images at once": (
        lambda net: Then(net, lambda z: z if len(z) > 1 else z.reshape(K, 2)),
        {"batch dependence": "problem"},
    ),
}


@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST.keys())
def test_honest_model_gives_no_finding(
    network: nn.Module, x: Tensor, y: Tensor, make: Callable[[nn.Module], nn.Module]
) -> None:
    model = make(network)
    assert found(model, x, y) == {}


@pytest.mark.parametrize("normalize", ["dataset", "half", "none"])
@pytest.mark.parametrize("architecture", ["wrn", "jem-wrn"])
def test_honest_backbone_gives_no_finding(x: Tensor, architecture: str, normalize: Any) -> None:
    torch.manual_seed(0)
    model = build(BackboneConfig(architecture, 10, 1, normalize=normalize), K, (3, 8, 8), (0.5,) * 3, (0.3,) * 3).eval()
    with torch.no_grad():
        centre = model(x).mean(0)
        y = (model(x) - centre).argmax(1)
    assert found(Then(model, lambda z: z - centre.to(z)).eval(), x, y) == {}


def test_honest_linear_model_on_grey_images_gives_no_finding() -> None:
    x = images(channels=1)
    model = linear(x)
    assert found(model, x, model(x).argmax(1)) == {}


@pytest.mark.parametrize(("make", "findings"), SICK.values(), ids=SICK.keys())
def test_sick_model_gets_its_own_findings_and_is_left_as_it_was(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    make: Callable[[nn.Module], nn.Module],
    findings: dict[str, str],
) -> None:
    model = make(network)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.random.get_rng_state()
    assert found(model, x, y) == findings
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), stream)


@pytest.mark.parametrize("domain", [SYMMETRIC, BYTES, *NORMALISED], ids=lambda domain: domain.name)
def test_expected_domain_is_found_and_its_conversion_cures(
    network: nn.Module, x: Tensor, y: Tensor, domain: Domain
) -> None:
    """What a network expects is undone before it: in its own domain it is the honest network again."""
    mean, std = (torch.tensor([float(v) for v in part]).view(-1, 1, 1) for part in (domain.mean, domain.std))
    model = Then(network, before=lambda v: v * std.to(v) + mean.to(v)).eval()
    trials = try_domains(model, x, y, candidates(3))
    finding = domain_finding(trials)
    assert finding.severity == "problem"
    assert f"expects inputs {'in' if domain.name[0] == '[' else 'after'} {domain.name}, not [0,1]" in finding.sentence
    assert expected(trials).accuracy == pytest.approx(100 * 62 / 64)
    assert found(model, x, y) == {"input domain": "problem"}
    assert found(domain.before(model), x, y) == {}


def test_ties_of_flat_images_are_no_wrong_gradients(network: nn.Module, x: Tensor) -> None:
    flat = x.clone()
    flat[:, :, :, :5] = 0
    assert finite_differences(network, flat, network(flat).argmax(1)).fine


def test_detached_part_that_the_gradient_knows_nothing_of_is_found(x: Tensor) -> None:
    """Two unrelated weights: the slope along the known one's gradient is nearly right, along others it is not."""
    torch.manual_seed(2)
    seen, hidden = (nn.Linear(192, K) for _ in range(2))
    model = Then(nn.Flatten(), lambda v: seen(v) + 0.5 * hidden(v.detach()))
    finding = finite_differences(model, x, torch.zeros(len(x), dtype=torch.long))
    assert finding.severity == "problem"
    assert finding.measured is not None
    assert finding.measured > 0.3


def test_domains_that_the_images_cannot_tell_apart_are_named(network: nn.Module, x: Tensor, y: Tensor) -> None:
    model = Then(network, before=lambda v: v * 0.247 + 0.48).eval()
    sentence = domain_finding(try_domains(model, x, y, candidates(3))).sentence
    assert "these images do not tell it from" in sentence
    assert sum(domain.name in sentence for domain in NORMALISED) >= 2
    assert BYTES.name not in sentence


@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_noise_on_the_input_is_measured_in_pixels(network: nn.Module, x: Tensor, sigma: float) -> None:
    model = Then(network, before=lambda x: x + sigma * torch.randn_like(x)).eval()
    assert input_noise(model, x) == pytest.approx(sigma, rel=0.15)
    assert "Gaussian noise of sigma" in noise(model, x[:16]).sentence


def test_share_of_images_without_gradient_is_measured(network: nn.Module, x: Tensor, y: Tensor) -> None:
    half = torch.arange(len(x)).view(-1, 1, 1, 1) % 2
    model = Then(network, before=lambda v: torch.where(half.bool(), v, v.detach()))
    finding = gradients(model, x, y)
    assert (finding.severity, finding.measured) == ("problem", 0.5)


def test_saturation_begins_where_probabilities_underflow(network: nn.Module, x: Tensor) -> None:
    """softmax(0, -g) underflows in float32 at g = 87.3, and the cross-entropy's gradient with it."""
    for gap, severity in ((80.0, "fine"), (90.0, "problem")):
        logits = torch.tensor([0.0, -gap, -500.0, -500.0], requires_grad=True)
        model = Then(network, lambda z, logits=logits: 0 * z + logits)
        assert saturated_logits(model, x).severity == severity
        F.cross_entropy(logits[None], torch.tensor([0])).backward()
        assert logits.grad is not None
        assert (float(logits.grad.abs().max()) < torch.finfo(torch.float32).tiny) is (severity == "problem")


def test_numerically_fragile_model_is_a_doubt(network: nn.Module, x: Tensor, y: Tensor) -> None:
    model = Then(network, lambda z: (z + 1e6) - 1e6)
    assert found(model, x, y)["precision"] == "doubt"


def test_probe_that_the_model_stops_becomes_a_finding(network: nn.Module, x: Tensor, y: Tensor) -> None:
    def all_or_none(z: Tensor) -> Tensor:
        if len(z) == 1:
            raise ValueError("one image\nis no batch")
        return z

    (finding,) = [finding for finding in probe(Then(network, all_or_none), x, y, K) if not finding.fine]
    assert finding.name == "batch dependence"
    assert finding.sentence == "the model stopped the probe of batch dependence: ValueError: one image is no batch"
