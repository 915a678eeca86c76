"""What the JEM family shares: p(x) by contrastive divergence on persistent chains, p(y|x) by cross-entropy."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from methods.data import ImageSet
from methods.errors import InputError
from methods.primitives.energy import marginal_energy
from methods.primitives.losses import accuracy, cross_entropy
from methods.primitives.negatives import Negatives
from methods.primitives.random import generator
from methods.primitives.ranks import mean
from methods.primitives.starts import start
from methods.training.method import Batch, Inner, Losses, Method, Task

Energy = Callable[[Tensor], Tensor]


class DensityMethod(Method):
    """JEM's objective (Grathwohl et al. 2020), log p(x, y) = log p(x) + log p(y|x):

        w_density [E(x_p) - E(x_q)] + w_clean CE(x, y),     E(x) = -logsumexp f(x)

    with data x_p of the density path, drawn independently of the labelled x, and chains x_q. A subclass has in its
    ``Config`` the fields ``negatives`` (:class:`methods.primitives.negatives.Chains`), ``w_density`` and ``w_clean``.
    """

    density = True

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        config.negatives.check(task.density_batch)

    def check(self, model: nn.Module) -> None:
        first_layer, energy = self._path(model)
        images = torch.empty(2, *self.task.image_shape, device="meta")
        energy(images if first_layer is None else first_layer(images))

    def prepare(self, train: ImageSet) -> None:
        begin = start(self.config.negatives.start, train.images, train.labels, self.task.num_classes)
        random = generator(self.task.seed, "buffer", device=train.images.device)
        self.negatives = Negatives(self.config.negatives, begin, random)

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        return {"x_q": self.sample(model, batch, len(batch.density))}

    def sample(self, model: nn.Module, batch: Batch, n: int) -> Tensor:
        """Continue ``n`` chains down the model's energy -> [n, C, H, W]."""
        first_layer, energy = self._path(model)
        return self.negatives.sample(model, energy, n, batch.generator("sampler", each_rank=True), first_layer)

    def _path(self, model: nn.Module) -> tuple[Energy | None, Energy]:
        """Return the first layer, where the chains need it apart, and the energy behind it."""
        if self.config.negatives.sampler.inner_steps > 1:
            return _split(model)
        return None, self.energy_of(model)

    def energy_of(self, model: nn.Module) -> Energy:
        """Return E: images [B, ...] -> [B]."""
        return lambda x: marginal_energy(model(x))

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        data = mean(marginal_energy(model(batch.density)))
        samples = mean(marginal_energy(model(inner["x_q"])))
        logits = model(batch.x)
        clean = mean(cross_entropy(logits, batch.y))
        return Losses(
            self.config.w_density * (data - samples) + self.config.w_clean * clean,
            {
                "energy_data": data,
                "energy_samples": samples,
                "energy_clean": mean(marginal_energy(logits)),
                "clean": clean,
                "accuracy_clean": accuracy(logits, batch.y),
            },
        )

    def report(self) -> dict[str, Tensor]:
        return self.negatives.report()

    @property
    def samples(self) -> Tensor | None:
        return self.negatives.buffer.images

    @property
    def generation(self) -> dict[str, Any]:
        chains = self.config.negatives
        return {"energy": "marginal", "mode": chains.mode, "start": chains.start, "sampler": asdict(chains.sampler)}


def _split(model: nn.Module) -> tuple[Energy, Energy]:
    """Return a classifier's first layer and the marginal energy of what that layer puts out."""
    first: Any = getattr(model, "first", None)
    rest: Any = getattr(model, "rest", None)
    if first is None or rest is None:
        raise InputError("PYLD's literal inner loop (inner_steps above 1) needs a wide residual network.")
    return first, lambda hidden: marginal_energy(rest(hidden))
