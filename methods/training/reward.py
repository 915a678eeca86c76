"""The reward of a crafted batch: the damage it does to a model, and the good of having learnt from it."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from methods.errors import InputError, not_negative
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen, mode, restored
from methods.primitives.targets import soft_targets
from methods.training.method import Batch, Inner, Method
from methods.training.optim import Updater


@dataclass(frozen=True)
class Reward:
    """The three rewards of LAS-AT (jiaxiaojunQAQ/LAS-AT at ee756b7).

    The loss of the model as it is, then the robust and the clean accuracy after one step of a fresh SGD on the crafted
    batch; afterwards the model is as before, bit for bit. As in the code the attack that measures the step runs in
    train mode and leaves misclassified images alone, and accuracies are those of eval mode.
    A field out of range is an InputError.
    """

    w_robust: float = 4.0
    """LAS-AT 4, LAS-TRADES 8, LAS-AWP 1."""
    w_clean: float = 2.0
    """LAS-AT 2, LAS-TRADES 4, LAS-AWP 1."""
    limit: float = 10.0
    """Largest reward for the loss; LAS-TRADES: 20."""
    label_mass: float = 0.7
    """Probability of the true class in the step's targets, the rest on the others; LAS-TRADES: 1, labels."""
    weight_decay: float = 5e-4
    """Weight decay of the step."""
    attack: PGD = field(default_factory=lambda: PGD(steps=10, step_size=0.25, restarts=2))
    """Attack on the stepped model."""

    def __post_init__(self) -> None:
        for name in ("w_robust", "w_clean", "limit", "weight_decay"):
            not_negative(f"A reward's {name}", getattr(self, name))
        check_mass("A reward's label_mass", self.label_mass)

    def __call__(self, method: Method, model: nn.Module, batch: Batch, inner: Inner, lr: float) -> Tensor:
        """Return the weighted rewards [3]; ``inner`` is the crafted batch, ``lr`` the rate of the step."""
        with frozen(model, training=False), torch.no_grad():
            damage = method.loss(model, batch, inner).total.float().clamp(0, self.limit)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            logits = model(x)
            return cross_entropy(logits, batch.y), logits.argmax(1) != batch.y

        with restored(model):
            self._step(method, model, smoothed(batch, self.label_mass, method.task.num_classes), inner, lr)
            with frozen(model, training=True):
                x_adv = self.attack(objective, batch.x, method.task.threat, batch.generator("reward"))
            with frozen(model, training=False), torch.no_grad():
                robust, clean = ((model(x).argmax(1) == batch.y).float().mean() for x in (x_adv, batch.x))
        return torch.stack([damage, self.w_robust * robust, self.w_clean * clean])

    def _step(self, method: Method, model: nn.Module, batch: Batch, inner: Inner, lr: float) -> None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        update = Updater(torch.optim.SGD(weights, lr, weight_decay=self.weight_decay), None)
        with mode(model, training=True):
            method.descend(model, batch, update, lambda: method.loss(model, batch, inner))


def smoothed(batch: Batch, label_mass: float, num_classes: int) -> Batch:
    """Return the batch with targets of ``label_mass`` on the true class, or, at 1, with its labels."""
    target = None if label_mass == 1 else soft_targets(batch.y, num_classes, label_mass, "others")
    return replace(batch, target=target)


def check_mass(name: str, value: float) -> None:
    """Refuse a probability of the true class outside (0, 1]."""
    if not 0 < value <= 1:
        raise InputError(f"{name} must be in (0, 1], not {value}.")
