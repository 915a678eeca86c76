"""The attacks of AutoAttack (Croce & Hein 2020) one at a time, by the `pyautoattack` package.

Every attack gets an explicit seed per shard (the package's default is the clock), a device (its default is the CPU),
and K - 1 targets where there are fewer than ten classes (its nine do not exist then). Its warnings are collected, its
traces in the process undone, and the size of its perturbation is measured again.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, cast

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torch.nn import functional

from benchmark.attacks.early_stopping import Network, QueryCount, separable, stop_early
from benchmark.attacks.frozen_batchnorm import with_frozen_batchnorm
from benchmark.evaluation.shards import Shard
from benchmark.models.pyautoattack_state import contained
from benchmark.models.subject import Subject
from methods.errors import InputError
from methods.primitives.splitting import in_pieces
from methods.primitives.threat import ThreatModel

NAMES = ("apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square")
STREAM = "autoattack"
"""Name of the random stream of the seeds: AutoAttack's own, so that its first attack alone finds the same images."""
_CLASSES = {"apgd_dlr": (3, "DLR loss"), "apgd_t": (4, "targeted DLR loss")}
"""Attack -> the number of logits that its loss compares, and the name of that loss."""
_SLACK = 1e-5
"""Amount by which a perturbation may exceed eps by rounding, in the units of eps."""

Precision = Literal["float32", "bfloat16"]


def check(subject: Subject, attacks: Sequence[str]) -> None:
    """Raise InputError for attacks whose loss compares more logits than the subject has classes."""
    for name in attacks:
        needed, loss = _CLASSES.get(name, (0, ""))
        if subject.num_classes < needed:
            raise InputError(
                f"{name} compares {needed} logits ({loss}), but there are {subject.num_classes} classes; measure "
                "without it, such as --metrics clean,pgd20."
            )


def attack_and_classify(
    name: str, subject: Subject, threat: ThreatModel, shard: Shard, batch_size: int, *, queries: int | None = None
) -> tuple[Tensor, Tensor, list[str]]:
    """Attack every correctly classified image of a shard with one attack, under AutoAttack's standard settings.

    Args:
        name: of :data:`NAMES`; ``apgd_dlr`` has the settings of ``apgd_ce``.
        subject, threat, shard: the model, frozen and in eval mode; norm and eps; the images.
        batch_size: images a forward pass; unless the shard says otherwise, it decides how random numbers are dealt out.
        queries: number of Square's queries for each image; None: the standard 5,000.

    Returns:
        x_adv [B,C,H,W], misclassified, or the image itself where the attack failed or the image is wrong already; the
        class that the model predicts for each, int64 [B]; and the package's warnings.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
        RuntimeError: an image that comes back is outside the threat model, or NaN.
    """
    with contained() as messages:
        attacker = adversary(subject, threat, shard, batch_size)
        hasten(attacker, subject, shard, batch_size)
        attacker.attacks_to_run = [name.replace("_", "-")]
        if queries is not None:
            attacker.square.n_queries = queries
        x_adv, y_adv = attacker.run_standard_evaluation(shard.x, shard.y, batch_size=dealt(shard, batch_size))
    distances(threat, x_adv, shard.x)
    return x_adv, y_adv, messages


def dealt(shard: Shard, batch_size: int) -> int:
    """Return how many images random numbers are drawn for at once, given the number of a forward pass."""
    return min(shard.dealt or batch_size, len(shard.y))


def adversary(subject: Subject, threat: ThreatModel, shard: Shard, batch_size: int | None = None) -> AutoAttack:
    """Make AutoAttack *standard* for a shard, on a network that takes ``batch_size`` images at once, or any number."""
    model = cast(nn.Module, subject.model if batch_size is None else _pieced(subject.model, shard, batch_size))
    seed, device = shard.seed(STREAM), subject.device
    made = AutoAttack(model, norm=threat.norm, eps=threat.radius, seed=seed, device=device, version="standard")
    targets = min(made.apgd_targeted.n_target_classes, subject.num_classes - 1)
    made.apgd_targeted.n_target_classes = made.fab.n_target_classes = targets
    return made


def hasten(
    attacker: AutoAttack, subject: Subject, shard: Shard, batch_size: int, precision: Precision = "float32"
) -> QueryCount:
    """Stop the attacks early, on a faster network, if an image's logits depend on it alone; else change nothing.

    The attacks are changed in place; ``precision`` is the number format of their passes. The count of their queries,
    which is returned, grows as they run. FloatingPointError: a logit is NaN or infinite, which the package would count
    as robust or broken by chance.
    """
    with torch.no_grad():
        logits = subject.logits(shard.x, batch_size)
    first = shard.x[:batch_size], logits[:batch_size]
    if not separable(subject.model, *first):
        if precision != "float32":
            warnings.warn("searched in float32, as the network draws noise or mixes images", stacklevel=2)
        return QueryCount()
    if precision == "float32":
        model = with_frozen_batchnorm(subject.model)
        return stop_early(attacker, _pieced(model if separable(model, *first) else subject.model, shard, batch_size))
    lowered = _lowered(subject, getattr(torch, precision))
    return stop_early(attacker, _pieced(lowered, shard, batch_size), _pieced(subject.model, shard, batch_size))


def _pieced(network: Network, shard: Shard, batch_size: int) -> Network:
    """Return the network for any number of images, which it takes in batches of at most ``batch_size``."""
    return network if batch_size >= dealt(shard, batch_size) else in_pieces(network, batch_size)


def _lowered(subject: Subject, dtype: torch.dtype) -> Network:
    """Return the subject's network under autocast, except for the layer that makes the logits.

    In bfloat16 a logit of 5 has neighbours 0.03 away, which hides most of what Square gains with a query.
    """
    model = subject.model
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    heads = [module for module in linear if module.out_features == subject.num_classes][-1:]

    def network(x: Tensor) -> Tensor:
        hooks = [head.register_forward_hook(_in_float32) for head in heads]
        try:
            with torch.autocast(x.device.type, dtype=dtype):
                return model(x).float()
        finally:
            for hook in hooks:
                hook.remove()

    return network


def _in_float32(head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    assert isinstance(head, nn.Linear)
    with torch.autocast(output.device.type, enabled=False):
        return functional.linear(inputs[0].float(), head.weight, head.bias)


def distances(threat: ThreatModel, x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the size of each perturbation [B], from the image clamped to [0, 1]: attacks clamp what they return.

    RuntimeError: one is outside the threat model, or NaN.
    """
    perturbation = threat.distance(x_adv.clamp(0, 1), x.clamp(0, 1))
    outside = bool((x_adv < x.clamp(max=0)).any()) or bool((x_adv > x.clamp(min=1)).any())
    if not bool((perturbation <= threat.radius + _SLACK).all()) or outside:
        largest = float(perturbation.max())
        raise RuntimeError(f"AutoAttack left the threat model: NaN, outside [0, 1], or {largest:.6f} from the image")
    return perturbation
