"""One training step as the authors' released code takes it, in our own words: the baseline of the training benchmark.

Float32, uncompiled, contiguous, and pass by pass what the code does, redundant passes and loops included; what it logs
and plots is left out. Sources: TRADES (yaodongyu/TRADES at 6e8e11b), JEM++ (sndnyang/JEMPP at fba6ba5), SADA-JEM
(sndnyang/SADAJEM at 9d8f3c7), EB-JDAT (jkcjkc/EB-JDAT at 327ea16, its JEM++ folder). Each class is a step: called with
a batch, it moves the weights and returns the loss in front of the move. A step is the released one with the settings of
its script (see the recipes).

TRADES works on images in [0, 1]; the others in [-1, 1], where everything here is in those units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from methods.backbones.wide_resnet import WideResNet

RESTARTS = 0.05
"""Share of chains that begin anew at a draw."""


def _sgd(network: nn.Module, lr: float, weight_decay: float) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)


class TRADES:
    """23 forward passes: p(x) anew at each of 10 attack steps, and the clean logits of the loss twice.

    Args:
        network: images in [0, 1] -> logits.
        lr: of SGD with momentum .9 and weight decay 2e-4.
    """

    eps, step_size, steps, beta = 0.031, 0.007, 10, 6.0

    def __init__(self, network: nn.Module, lr: float) -> None:
        self.network, self.optimizer = network, _sgd(network, lr, 2e-4)

    def __call__(self, x: Tensor, y: Tensor, start: Tensor | None = None) -> Tensor:
        """Take a step on images ``x`` and labels ``y``; ``start`` replaces x + 0.001 N(0, 1)."""
        network = self.network
        network.eval()
        x_adv = x + 0.001 * torch.randn_like(x) if start is None else start
        for _ in range(self.steps):
            x_adv.requires_grad_()
            divergence = F.kl_div(network(x_adv).log_softmax(1), network(x).softmax(1), reduction="sum")
            (gradient,) = torch.autograd.grad(divergence, x_adv)
            x_adv = x_adv.detach() + self.step_size * gradient.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(0, 1)
        network.train()
        self.optimizer.zero_grad()
        natural = F.cross_entropy(network(x), y)
        robust = F.kl_div(network(x_adv).log_softmax(1), network(x).softmax(1), reduction="sum") / len(x)
        loss = natural + self.beta * robust
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@dataclass
class Chains:
    """A replay buffer and the Gaussian of each class, from which a whole batch is drawn, image by image, at every step.

    Args:
        images: the buffer, [N, C, H, W].
        gaussians: of the images of each class, flattened.
    """

    images: Tensor
    gaussians: list[MultivariateNormal]

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(0, len(self.images), (n,))
        fresh = torch.zeros(n, *self.images.shape[1:])
        for position in range(n):
            label = int(torch.randint(len(self.gaussians), ()))
            fresh[position] = self.gaussians[label].sample().view(self.images.shape[1:])
        restart = (torch.rand(n) < RESTARTS).float()[:, None, None, None]
        return index, restart * fresh.clamp(-1, 1) + (1 - restart) * self.images[index]


def class_gaussians(images: Tensor, labels: Tensor) -> list[MultivariateNormal]:
    """Return a Gaussian of full covariance for each class of images [N, C, H, W], uint8; the codes' ridge is 1e-4."""
    fitted = []
    for label in labels.unique().tolist():
        members = 2 * (images[labels == label].flatten(1).float() / 255) - 1
        centred = members - members.mean(0)
        covariance = centred.T @ centred / len(members)
        covariance.diagonal().add_(1e-4)
        # The same distribution as by covariance_matrix, whose checks would factor it twice.
        factor = torch.linalg.cholesky(covariance)
        fitted.append(MultivariateNormal(members.mean(0), scale_tril=factor, validate_args=False))
    return fitted


def _energy(logits: Tensor) -> Tensor:
    return -logits.logsumexp(1)


class JEMPP:
    """13 forward passes; each of 10 outer sampler steps has 5 inner ones through the first layer alone.

    Args:
        network: images in [-1, 1] -> logits.
        chains: replay buffer and starts.
        lr: of SGD with momentum .9 and weight decay 4e-4.
    """

    outer, inner, step_size = 10, 5, 0.2

    def __init__(self, network: WideResNet, chains: Chains, lr: float) -> None:
        self.network, self.chains, self.optimizer = network, chains, _sgd(network, lr, 4e-4)

    def __call__(self, x_density: Tensor, x: Tensor, y: Tensor, start: Tensor | None = None) -> Tensor:
        """Take a step on data of the density path and labelled images; ``start`` replaces the chains that are drawn."""
        self.network.train()
        return self._descend(self._loss(x_density, x, y, start))

    def _loss(self, x_density: Tensor, x: Tensor, y: Tensor, start: Tensor | None) -> Tensor:
        data = _energy(self.network(x_density)).mean()
        chains = self._sample(len(x_density), x_density.device, start)
        samples = _energy(self.network(chains)).mean()
        return data - samples + F.cross_entropy(self.network(x), y)

    def _descend(self, loss: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _sample(self, n: int, device: torch.device, start: Tensor | None) -> Tensor:
        index, drawn = self.chains.draw(n)
        x = drawn.to(device) if start is None else start
        first = self.network.conv
        adjoint = x
        for _ in range(self.outer):
            x = x.detach().requires_grad_()
            hidden = first(x)
            (_, adjoint) = torch.autograd.grad(-_energy(self.network.rest(hidden)).sum(), [x, hidden])
            x = x.detach()
            for _ in range(self.inner):
                x.requires_grad_()
                (gradient,) = torch.autograd.grad((first(x) * adjoint).sum(), x)
                x = (x.detach() + self.step_size * gradient.clamp(-1, 1)).clamp(-1, 1)
        # A gradient of the first layer's weights, which the loss then clears.
        (-(first(x) * adjoint).sum()).backward()
        self.chains.images[index] = x.cpu()
        return x


class SADAJEM:
    """K = 5 sampler steps, then the loss at the weights and at the climbed ones: 5 + 3 + 3 forward passes.

    Args:
        network: images in [-1, 1] -> logits.
        chains: replay buffer and starts.
        lr: of SGD with momentum .9 and weight decay 5e-4, behind adaptive SAM of radius 2.
    """

    steps, rho = 5, 2.0

    def __init__(self, network: nn.Module, chains: Chains, lr: float) -> None:
        self.network, self.chains, self.optimizer = network, chains, _sgd(network, lr, 5e-4)
        self.norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    def __call__(self, x_density: Tensor, x: Tensor, y: Tensor, start: Tensor | None = None) -> Tensor:
        """Take a step on data of the density path and labelled images; ``start`` replaces the chains that are drawn."""
        self.network.train()
        data = _energy(self.network(x_density)).mean()
        chains = self._sample(len(x_density), x_density.device, start)
        loss = data - _energy(self.network(chains)).mean() + F.cross_entropy(self.network(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        weights = [weight for weight in self.network.parameters() if weight.grad is not None]
        kept = self._climb(weights)
        momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0
        data, samples = _energy(self.network(x_density)).mean(), _energy(self.network(chains)).mean()
        (data - samples + F.cross_entropy(self.network(x), y)).backward()
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum
        for weight, before in zip(weights, kept, strict=True):
            weight.data = before
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def _climb(self, weights: list[nn.Parameter]) -> list[Tensor]:
        norm = torch.stack([(w.abs() * _gradient(w)).norm() for w in weights]).norm()
        kept = []
        for weight in weights:
            kept.append(weight.data.clone())
            weight.add_(weight.pow(2) * _gradient(weight) * (self.rho / (norm + 1e-12)))
        self.optimizer.zero_grad()
        return kept

    def _sample(self, n: int, device: torch.device, start: Tensor | None) -> Tensor:
        index, drawn = self.chains.draw(n)
        x = drawn.to(device) if start is None else start
        for _ in range(self.steps):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(-_energy(self.network(x)).sum(), x)
            x = (x.detach() + gradient.clamp(-1, 1)).clamp(-1, 1)
        self.chains.images[index] = x.cpu()
        return x


class EBJDAT(JEMPP):
    """JEM++'s step, and 5 attack steps on two images at a time, each with three passes; x_p passes twice, x_adv twice.

    The attack raises f(x_adv)[y] and the squared distance of the unit logit vectors, as the released code does. With
    ``attack_first`` it comes before the rest, as ours does, so that both see the same running statistics; the code has
    it after the labelled images.
    """

    eps, attack_step, attack_steps, chunk = 8 / 255, 2 / 255, 5, 2
    w_energy, w_adversarial = 0.1, 1.0
    attack_first = False

    def __call__(
        self, x_density: Tensor, x: Tensor, y: Tensor, start: Tensor | None = None, x_start: Tensor | None = None
    ) -> Tensor:
        """Take a step; ``start`` replaces the chains, and ``x_start`` the start of the attack, that are drawn."""
        self.network.train()
        x_adv = self._attack(x, y, x_start) if self.attack_first else x
        hosted = self._loss(x_density, x, y, start)
        if not self.attack_first:
            x_adv = self._attack(x, y, x_start)
        gap = _energy(self.network(x_density)).mean() - _energy(self.network(x_adv)).mean()
        adversarial = F.cross_entropy(self.network(x_adv), y)
        return self._descend(hosted + self.w_energy * gap + self.w_adversarial * adversarial)

    def _attack(self, x: Tensor, y: Tensor, x_start: Tensor | None) -> Tensor:
        self.network.eval()
        starts = (x + torch.empty_like(x).uniform_(-self.eps, self.eps)).clamp(-1, 1) if x_start is None else x_start
        found = []
        for clean, labels, x_adv in zip(
            x.split(self.chunk), y.split(self.chunk), starts.split(self.chunk), strict=True
        ):
            for _ in range(self.attack_steps):
                x_adv.requires_grad_()
                raised = self.network(x_adv).gather(1, labels[:, None]).sum()
                unit_clean, unit_adv = F.normalize(self.network(clean)), F.normalize(self.network(x_adv))
                raised = raised + (unit_clean - unit_adv).square().sum()
                (gradient,) = torch.autograd.grad(raised, x_adv)
                x_adv = (x_adv.detach() + self.attack_step * gradient.sign()).clamp(-1, 1)
            found.append(x_adv.detach())
        self.network.train()
        return torch.cat(found)


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad
