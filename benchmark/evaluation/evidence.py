"""Evidence: the image that broke a verdict, kept so small that whoever doubts the verdict can check it.

An adversarial image is kept as its perturbation in steps of eps/127, one signed byte a pixel. Where the rounding
would leave the threat model or heal the misclassification, the image itself is kept, in float32.
"""

import numpy as np
import torch
from torch import Tensor

from benchmark.models.subject import Subject
from benchmark.results.store import Arrays
from methods.primitives.threat import ThreatModel

FORMAT = 1
"""Version of what :func:`encode` returns; part of the key of every outcome that holds it."""
NONE, BYTES, EXACT = 0, 1, 2
"""Values of ``encoding``: no adversarial image, its perturbation in bytes, or itself."""
LEVELS = 127
SLACK = 1e-6
"""By which float32 may exceed eps."""
MARGIN = 1e-3
"""Margin between logits, relative to the largest, below which another machine may round to the other side."""


def encode(
    subject: Subject, threat: ThreatModel, x: Tensor, y: Tensor, x_adv: Tensor, broken: Tensor, batch_size: int
) -> Arrays:
    """Return the evidence for a shard, an item per image.

    Args:
        subject: the model, for asking whether a rounded image still breaks it.
        threat: the threat model.
        x: images [B,C,H,W].
        y: labels [B].
        x_adv: attacked images [B,C,H,W].
        broken: bool [B]; for which images ``x_adv`` is kept.
        batch_size: images a forward pass.

    Returns:
        ``encoding`` int8 [B]; ``delta`` int8 [B,C,H,W], in eps/127; ``exact`` float32 [B,C,H,W], an attacked image.
        Both are 0 where the encoding is another.
    """
    delta = ((x_adv - x) * (LEVELS / max(threat.radius, SLACK))).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    rounded = shifted(x, delta, threat)
    fits = broken & (threat.distance(rounded, x) <= threat.radius + SLACK)
    if bool(fits.any()):
        fits[fits.clone()] = margin(subject, rounded[fits], y[fits], batch_size) < -MARGIN
    encoding = torch.where(broken, torch.where(fits, BYTES, EXACT), NONE).to(torch.int8)
    place = encoding.view(-1, *[1] * (x.dim() - 1))
    kept = {
        "encoding": encoding,
        "delta": torch.where(place == BYTES, delta, 0),
        "exact": torch.where(place == EXACT, x_adv, 0.0).float(),
    }
    return {name: tensor.cpu().numpy() for name, tensor in kept.items()}


def decode(x: Tensor, evidence: Arrays, threat: ThreatModel) -> Tensor:
    """Return the attacked images [B,C,H,W]; the image itself where none is kept."""
    encoding, delta, exact = (torch.from_numpy(np.asarray(evidence[name])) for name in ("encoding", "delta", "exact"))
    place = encoding.to(x.device).view(-1, *[1] * (x.dim() - 1))
    return torch.where(place == EXACT, exact.to(x.device), shifted(x, delta.to(x.device), threat))


def shifted(x: Tensor, delta: Tensor, threat: ThreatModel) -> Tensor:
    """Return x + delta eps/127, clamped to [0, 1]."""
    return (x + delta.to(x.dtype) * (threat.radius / LEVELS)).clamp(0, 1)


@torch.no_grad()
def margin(subject: Subject, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Return [B]: :func:`logit_margin` of the images ``x`` [B,C,H,W]."""
    return logit_margin(subject.logits(x, batch_size), y)


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return [B]: the logit of ``y`` minus the largest other one, over the largest size of any; negative = wrong."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return (own - others) / logits.abs().amax(1).clamp(min=1e-12)
