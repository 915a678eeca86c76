"""The contract between a paper and the trainer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from methods.data import ImageSet
from methods.primitives.random import generator, rows_generator
from methods.primitives.ranks import count, largest, rank, share, total
from methods.primitives.threat import ThreatModel
from methods.training.memory import fitted

Inner = dict[str, Tensor]
"""What the inner problem produced with the weights held fixed: adversarial images, sampler chains, cached logits.

``x_adv`` is the adversary of ``x`` where the method put other clean images in place of the batch's (CutMix).
"""


@dataclass(frozen=True)
class Card:
    """Where a method comes from and how closely this implementation can follow it."""

    title: str
    arxiv: str
    code: str
    """Reference repository at a commit, or "none"."""
    family: Literal["standard", "adversarial training", "energy-based"]
    fidelity: Literal["official", "paper-only", "reconstruction"]


@dataclass(frozen=True)
class Task:
    """What a method is told of the problem it is trained on."""

    threat: ThreatModel
    num_classes: int
    image_shape: tuple[int, int, int]
    seed: int
    density_batch: int = 1
    """Images a step on the p(x) path, and so chains a step."""
    batch_size: int = 1
    """Labelled images a step; the last batch of an epoch may be smaller."""
    epochs: int = 1
    """Passes over the labelled images in the whole training."""


@dataclass(frozen=True)
class Batch:
    """One step's images: all of them, or on several devices this rank's share of them.

    Args:
        x: labelled images, float32 [B, C, H, W]; in [0, 1] unless the recipe adds input noise.
        y: labels, int64 [B].
        x_density: images of the p(x) path, float32 [B', C, H, W], drawn and augmented independently of ``x``;
            None unless the method asks for them with ``density = True``.
        step: optimiser step, counted from 0 over the whole training.
        seed: the run's seed.
        progress: share of the training already done, in [0, 1).
        target: probabilities of the classes, float32 [B, K], where a method around another gives it other targets
            than labels (LAS-AT smooths them).
        of: labelled images of the step over all ranks, where this rank holds its share of them; None: ``x`` is all.
    """

    x: Tensor
    y: Tensor
    x_density: Tensor | None
    step: int
    seed: int
    progress: float
    target: Tensor | None = None
    of: int | None = None

    @property
    def density(self) -> Tensor:
        """The images of the p(x) path, for methods that asked for them."""
        if self.x_density is None:
            raise RuntimeError("this batch has no density path: set density = True in the method")
        return self.x_density

    @property
    def labels(self) -> Tensor:
        """What the classifier is to say: ``target`` [B, K] where there is one, else the classes ``y`` [B]."""
        return self.y if self.target is None else self.target

    def generator(self, name: str, each_rank: bool = False) -> torch.Generator:
        """Return this step's random stream called ``name``, on the device of the images.

        A stream depends on (seed, name, step) alone: drawing once more from one never shifts another, and a
        resumed run needs no saved state. On several devices a rank gets the numbers that one device would draw for
        its labelled images (:class:`methods.primitives.random.RowsGenerator`), or with ``each_rank`` a stream of its
        own, for what is not drawn image by image.
        """
        if self.of is None:
            return generator(self.seed, name, self.step, device=self.x.device)
        if each_rank:
            return generator(self.seed, name, self.step, "rank", rank(), count(), device=self.x.device)
        rows = share(self.of)
        return rows_generator(self.seed, name, self.step, device=self.x.device, rows=rows, of=self.of)


@dataclass(frozen=True)
class Losses:
    """The value to minimise (a scalar with a graph) and the scalars the log shows of it.

    Terms may carry their graph, so that a method that wraps another can add to what that one computed.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Update(Protocol):
    """The optimiser as a method sees it."""

    @property
    def lr(self) -> float:
        """Learning rate of the step that is next."""
        ...

    def __call__(self, total: Tensor) -> None:
        """Take one step down the gradient of ``total``."""

    def gradient(self, total: Tensor) -> None:
        """Put the gradient of ``total`` into the parameters' ``.grad``, replacing what was there."""

    def apply(self) -> None:
        """Take one step with the gradients as they are now."""


class Method(nn.Module):
    """A training method: one inner problem and one loss.

    It is a Module so that replay buffers and teachers move and checkpoint by themselves. A method file defines one
    subclass with its own ``Config`` (a frozen dataclass with a default for each field) and ``card``.
    """

    Config: ClassVar[type]
    card: ClassVar[Card]
    density: ClassVar[bool] = False
    """Whether the trainer must feed the p(x) path (``Batch.x_density``)."""
    any_attack: ClassVar[bool] = False
    """Whether ``loss`` needs nothing of ``inner`` but ``x_adv``, so that a method around this one may craft it."""
    several_devices: ClassVar[bool] = False
    """Whether the method may be trained on several devices. Each class says so for itself: it averages over images with
    :func:`methods.primitives.ranks.mean`, draws image by image or with ``each_rank``, and lets no other state than that
    of its replay buffer depend on the images."""
    attack_rows: int | None = None
    """Images at a time of the inner problem's passes in eval mode, since the device was full; None: it never was."""

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__()
        self.config = config
        self.task = task

    def check(self, model: nn.Module) -> None:
        """Refuse with an InputError, before anything is trained, a network that lacks what the method needs.

        ``model`` is built like the one to be trained, but on the meta device: it has shapes and no values.
        """

    def prepare(self, train: ImageSet) -> None:
        """Fit to the training images whatever must exist before the first step, such as a replay buffer."""

    def inner(self, model: nn.Module, batch: Batch) -> Inner:
        """Attack or sample with the weights held fixed; every tensor returned is detached.

        Called again for the same batch it does the same again: :meth:`step` does so where the device was full.
        """
        return {}

    def loss(self, model: nn.Module, batch: Batch, inner: Inner) -> Losses:
        """Return the loss: a pure function of (weights, batch, inner), so that it can be called twice a step."""
        raise NotImplementedError

    def descend(self, model: nn.Module, batch: Batch, update: Update, loss: Callable[[], Losses]) -> Losses:
        """Move the weights one step down ``loss``; only methods whose update differs (SAM, AWP) override this."""
        losses = loss()
        update(losses.total)
        return losses

    def step(self, model: nn.Module, batch: Batch, update: Update) -> Losses:
        """Make one training step; the terms are those of the loss and what was seen of the inner problem."""
        images = max(len(batch.x), 0 if batch.x_density is None else len(batch.x_density))
        inner, self.attack_rows = fitted(lambda: self.inner(model, batch), model, images, self.attack_rows)
        losses = self.descend(model, batch, update, lambda: self.loss(model, batch, inner))
        split = {} if self.attack_rows is None else {"attack_rows": torch.tensor(float(self.attack_rows))}
        return Losses(losses.total, losses.terms | observed(batch, inner) | self.report() | split)

    def report(self) -> dict[str, Tensor]:
        """Return what the state of the method adds to the log of a step, as scalars."""
        return {}

    @property
    def samples(self) -> Tensor | None:
        """The replay buffer's images, float32 [N, C, H, W] in [0, 1]; None where there is no buffer."""
        return None

    @property
    def generation(self) -> dict[str, Any]:
        """How the model's density is sampled, for whoever generates from its weights.

        ``energy``: "marginal" (-logsumexp of the logits) or "scalar" (the energy head). ``mode``: the mode of the
        network while sampling. ``start``: the name of the chains' start. ``sampler``: the settings of its
        :class:`methods.primitives.samplers.SGLD`. The last two are None where nothing was sampled.
        """
        return {"energy": "marginal", "mode": "eval", "start": None, "sampler": None}


def observed(batch: Batch, inner: Inner) -> dict[str, Tensor]:
    """Return the largest perturbation, and how many values of the inner problem are NaN or infinite."""
    seen: dict[str, Tensor] = {}
    if "x_adv" in inner:
        seen["delta_max"] = largest((inner["x_adv"] - inner.get("x", batch.x)).abs())
    if inner:
        nonfinite = torch.stack([(~value.isfinite()).sum() for value in inner.values()]).sum()
        seen["inner_nonfinite"] = total(nonfinite.float())
    return seen
