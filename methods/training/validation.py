"""What a validation looks at: accuracies on the validation images, the weights, and the samples of a replay buffer."""

from pathlib import Path

import torch
from torch import Tensor, nn

from methods.backbones import Classifier
from methods.data import ImageSet
from methods.primitives import ranks
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy, margin
from methods.primitives.modes import frozen
from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel
from methods.training.config import SelectAttack
from methods.training.pictures import quality, write_grid

_SELECT = SelectAttack()
_BATCH = 500
_SAMPLES = 1000
"""Largest number of images of a replay buffer that :func:`look` shows to the model and measures."""


def validate(
    model: Classifier,
    images: ImageSet,
    threat: ThreatModel,
    seed: int,
    device: torch.device,
    attack: SelectAttack = _SELECT,
) -> dict[str, float]:
    """Return accuracy on clean images and under PGD, in percent, as ``clean`` and ``robust``.

    PGD takes steps of eps/4 from a uniform start, which the seed decides: the same at every validation. The model is in
    eval mode meanwhile. On several devices the ranks share the batches, and each returns the accuracies on all images.
    """
    pgd, raised = PGD(steps=attack.steps, step_size=0.25), {"ce": cross_entropy, "margin": margin}[attack.objective]
    correct = {"clean": 0, "robust": 0}
    with frozen(model):
        for number, first in enumerate(range(0, len(images), _BATCH)):
            chosen = slice(first, first + _BATCH)
            if number % ranks.count() != ranks.rank():
                continue
            x, y = images.unit(chosen).to(device), images.labels[chosen].to(device)

            def objective(x_adv: Tensor, y: Tensor = y) -> Tensor:
                return raised(model(x_adv), y)

            x_adv = pgd(objective, x, threat, generator(seed, "validation", number, device=device))
            with torch.no_grad():
                correct["clean"] += int((model(x).argmax(1) == y).sum())
                correct["robust"] += int((model(x_adv).argmax(1) == y).sum())
    counts = ranks.total(torch.tensor(list(correct.values()), device=device)).tolist()
    return {name: 100 * count / len(images) for name, count in zip(correct, counts, strict=True)}


def nonfinite_values(model: nn.Module) -> int:
    """Return how many weights and buffer entries are NaN or infinite."""
    return int(torch.stack([(~value.isfinite()).sum() for value in model.state_dict().values()]).sum())


def look(
    path: Path, samples: Tensor, model: Classifier, reference: Tensor, num_classes: int, seed: int
) -> dict[str, float]:
    """Write a grid of a replay buffer's images, a row per predicted class, and return numbers on their quality.

    ``samples`` are the buffer, float32 [N, C, H, W] in [0, 1], and ``reference`` the training images they are compared
    with, uint8 [M, C, H, W]. The model predicts in eval mode. Of more than a thousand samples the seed chooses the same
    thousand every time.

    Raises:
        InputError: the file cannot be written.
    """
    # Not evenly spaced slots: they can all have begun as the same class.
    slots = torch.randperm(len(samples), generator=generator(seed, "look"))[:_SAMPLES]
    chosen = samples[slots.to(samples.device)]
    device = next(model.parameters()).device
    with frozen(model), torch.no_grad():
        labels = torch.cat([model(x.to(device)).argmax(1) for x in chosen.split(_BATCH)])
    write_grid(path, chosen, labels, num_classes)
    return quality(chosen, reference)
