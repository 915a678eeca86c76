"""Energies of a classifier read as an energy-based model (JEM, Grathwohl et al. 2020): low energy = likely.

p(x, y) is proportional to exp(f(x)[y]), hence p(x) to sum_y exp(f(x)[y]), and p(y|x) = softmax(f(x))[y]. Both
energies are known up to the same constant, log Z. They are float32 whatever the dtype of the logits.
"""

from torch import Tensor


def marginal_energy(logits: Tensor) -> Tensor:
    """E(x) = -logsumexp f(x) per image: logits [B, K] -> [B]."""
    return -logits.float().logsumexp(1)


def joint_energy(logits: Tensor, y: Tensor) -> Tensor:
    """E(x, y) = -f(x)[y] per image: logits [B, K] and labels [B] -> [B]."""
    return -logits.float().gather(1, y[:, None]).squeeze(1)
