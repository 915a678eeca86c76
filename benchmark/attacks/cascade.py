"""A cascade of AutoAttack's attacks on one shard: each attack sees the images that are still correct.

The package `pyautoattack` is observed from outside and not changed: every verdict is its own. Its settings are those of
:mod:`benchmark.attacks.autoattack`; the images behind the verdicts may be earlier ones than the package would return
(:mod:`benchmark.attacks.early_stopping`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pyautoattack import AutoAttack
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from benchmark.attacks.autoattack import Precision, adversary, dealt, distances, hasten
from benchmark.evaluation import evidence
from benchmark.evaluation.shards import Shard, Shards, counted, percent, standard_error
from benchmark.models.pyautoattack_state import contained
from benchmark.models.subject import Subject
from benchmark.results.entry import Value
from benchmark.results.store import Arrays
from methods.primitives.threat import ThreatModel

STANDARD = ("apgd_ce", "apgd_t", "fab_t", "square")
"""Attacks of AutoAttack *standard*, in order."""
WRONG_BOX = "fab_t_wrong_box"
"""Name of FAB-T as EB-JDAT's released evaluator runs it (:class:`WrongBoxFAB`)."""
CLEAN_ERROR, ROBUST = -1, 0
"""Values of ``broken_by`` beside 1, 2, ...: the position of the breaking attack in the cascade."""


@dataclass(frozen=True)
class Cascade:
    """Attacks that run one after another, and for how long each."""

    attacks: Sequence[str] = STANDARD
    """Names from :data:`benchmark.attacks.autoattack.NAMES` and :data:`WRONG_BOX`, each at most once."""
    iterations: int | None = None
    """Number of iterations of APGD and FAB; None: the standard 100."""
    queries: int | None = None
    """Number of Square's queries for each image; None: the standard 5,000."""
    precision: Precision = "float32"
    """Number format of the attacks' passes. The images that they find are classified in float32 in any case."""

    def run(self, subject: Subject, threat: ThreatModel, shard: Shard, batch_size: int) -> Arrays:
        """Attack a shard.

        The subject is frozen and in eval mode. ``batch_size`` is the number of images in a forward pass; unless the
        shard says otherwise, it decides how random numbers are dealt out.

        Returns:
            For each image: ``broken_by``, :data:`CLEAN_ERROR`, :data:`ROBUST` or the position, from 1, of the attack
            that broke it; ``perturbation``, its size; and the evidence (:mod:`benchmark.evaluation.evidence`). In
            another precision than float32 also ``refuted``: whether a misclassification did not hold in float32. For
            the shard: ``shard_warnings``, and ``shard_seconds_<attack>``.

        Raises:
            FloatingPointError: a logit is NaN or infinite.
            RuntimeError: an image that comes back is outside the threat model, or NaN.
        """
        x, y, together = shard.x, shard.y, dealt(shard, batch_size)
        with contained() as messages:
            attacker = self._adversary(subject, threat, shard, batch_size)
            queries = hasten(attacker, subject, shard, batch_size, self.precision)
            watch = _Watch(attacker, self.attacks, len(y), together)
            x_adv, y_adv = attacker.run_standard_evaluation(x, y, batch_size=together)

        broken_by = watch.broken_by(y.cpu())
        if not torch.equal(broken_by == ROBUST, (y_adv == y).cpu()):
            raise RuntimeError(
                "AutoAttack's verdicts do not agree with the attacks seen; its version may be unsupported"
            )
        return {
            "broken_by": broken_by.numpy(),
            "perturbation": distances(threat, x_adv, x).cpu().numpy(),
            **({} if self.precision == "float32" else {"refuted": queries.owners(threat, x).cpu().numpy()}),
            **evidence.encode(subject, threat, x, y, x_adv, (broken_by > ROBUST).to(x.device), batch_size),
            "shard_warnings": np.array(messages, dtype=np.str_),
            **{f"shard_seconds_{name}": np.array([spent]) for name, spent in watch.seconds.items()},
        }

    def over(self, data: Shards) -> tuple[Arrays, list[str]]:
        """Attack all shards; return the outcomes of :meth:`run`, joined, and the warnings of all as flags."""
        arrays = data.map(lambda shard: self.run(data.subject, data.threat, shard, data.batch_size))
        return arrays, counted(str(message) for message in arrays["shard_warnings"])

    def verdicts(self, samples: Arrays) -> dict[str, np.ndarray]:
        """Return the outcome per image [N] behind the final, the clean, and each attack's accuracy."""
        broken_by = samples["broken_by"]
        after = [(broken_by == ROBUST) | (broken_by > position) for position in range(len(self.attacks) + 1)]
        names = ("clean_accuracy", *(f"after_{name}" for name in self.attacks))
        return {"accuracy": broken_by == ROBUST} | dict(zip(names, after, strict=True))

    def values(self, arrays: Arrays, threat: ThreatModel) -> dict[str, Value]:
        """Return the values of a measurement: accuracies in percent, seconds, eps, and the largest perturbation."""
        correct = self.verdicts(arrays)
        return {
            **{name: percent(outcome) for name, outcome in correct.items()},
            "standard_error": standard_error(correct["accuracy"]),
            **{f"seconds_{name}": float(arrays[f"shard_seconds_{name}"].sum()) for name in self.attacks},
            "eps": str(threat).partition(":")[2],
            "max_perturbation": float(arrays["perturbation"].max()),
        }

    def _adversary(self, subject: Subject, threat: ThreatModel, shard: Shard, batch_size: int) -> AutoAttack:
        made = adversary(subject, threat, shard, batch_size)
        if self.iterations is not None:
            made.apgd.n_iter = made.apgd_targeted.n_iter = made.fab.n_iter = self.iterations
        if self.queries is not None:
            made.square.n_queries = self.queries
        if WRONG_BOX in self.attacks:
            # The package calls it by its methods alone.
            made.fab = WrongBoxFAB(made.fab, made.model, threat)  # pyright: ignore[reportAttributeAccessIssue]
        made.attacks_to_run = [_PARTS[name][1] for name in self.attacks]
        return made


_PARTS = {
    "apgd_ce": ("apgd", "apgd-ce"),
    "apgd_dlr": ("apgd", "apgd-dlr"),
    "apgd_t": ("apgd_targeted", "apgd-t"),
    "fab_t": ("fab", "fab-t"),
    WRONG_BOX: ("fab", "fab-t"),
    "square": ("square", "square"),
}
"""Attack -> the attribute of AutoAttack that holds it, and the package's name of it."""


class WrongBoxFAB:
    """FAB-T as EB-JDAT's released evaluator runs it: images in [-1, 1], the box still [0, 1].

    Every iterate is clamped to that box, so an image with a pixel below -eps (in [-1, 1] units) cannot be attacked:
    that pixel alone ends farther than eps from where it was. Such images are left out without asking the network,
    which changes no verdict; on the few others FAB really runs. Linf only, as in that evaluator
    (jkcjkc/EB-JDAT at 327ea16, torchattacks/attacks/fab.py).
    """

    def __init__(self, standard: FABAttack_PT, model: nn.Module, threat: ThreatModel) -> None:
        self.targeted, self.n_restarts, self.seed = True, 1, standard.seed
        self.n_target_classes = standard.n_target_classes
        self._eps = 2 * threat.radius
        settings = {"n_iter": standard.n_iter, "seed": standard.seed, "device": standard.device}
        self._fab = FABAttack_PT(
            lambda u: model((u + 1) / 2), norm="Linf", n_restarts=1, eps=self._eps, verbose=False, **settings
        )
        self._fab.targeted, self._fab.n_target_classes = True, standard.n_target_classes

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x_adv [B,C,H,W] in [0, 1] units for images x [B,C,H,W] and labels y [B]; x where there is none."""
        u = 2 * x - 1
        inside = u.flatten(1).amin(1) >= -self._eps
        x_adv = x.clone()
        if bool(inside.any()):
            self._fab.seed = self.seed
            found = self._fab.perturb(u[inside], y[inside])
            x_adv[inside] = torch.where(found == u[inside], x[inside], (found + 1) / 2)
        return x_adv


class _Watch:
    """Record of which attack broke which image, from AutoAttack's own forward passes.

    ``run_standard_evaluation`` classifies each batch right after attacking it, by ``get_logits`` on the returned
    images; and right before the first attack it classifies the clean images, batch by batch. Both calls are recorded.
    """

    def __init__(self, attacker: AutoAttack, attacks: Sequence[str], images: int, batch_size: int) -> None:
        self.seconds = dict.fromkeys(attacks, 0.0)
        self._attacks = tuple(attacks)
        self._batches = -(-images // batch_size)
        self._clean: list[Tensor] = []
        """Predictions of each forward pass before the first attack."""
        self._verdicts: list[tuple[str, Tensor]] = []
        """Attack and predictions of each attacked batch."""
        self._attacking: str | None = None
        for part in {_PARTS[name][0] for name in attacks}:
            own = getattr(attacker, part)
            own.perturb = self._timed(part, own, own.perturb)
        attacker.get_logits = self._recorded(attacker.get_logits)  # pyright: ignore[reportAttributeAccessIssue]

    def _name(self, part: str, own: object) -> str:
        """Return the name of the attack that runs: two share one object of the package, which knows the loss."""
        loss = f"_{getattr(own, 'loss', '')}"
        names = [name for name in self._attacks if _PARTS[name][0] == part]
        return next((name for name in names if name.endswith(loss)), names[0])

    def _timed(self, part: str, own: object, perturb: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(x: Tensor, y: Tensor) -> Tensor:
            start = time.perf_counter()
            x_adv = perturb(x, y)
            if x_adv.is_cuda:
                torch.cuda.synchronize(x_adv.device)
            name = self._name(part, own)
            self.seconds[name] += time.perf_counter() - start
            self._attacking = name
            return x_adv

        return timed

    def _recorded(self, get_logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def recorded(x: Tensor) -> Tensor:
            logits = get_logits(x)
            predicted = logits.detach().argmax(1).cpu()
            if self._attacking is not None:
                self._verdicts.append((self._attacking, predicted))
                self._attacking = None
            elif not self._verdicts:
                self._clean.append(predicted)
            return logits

        return recorded

    def broken_by(self, y: Tensor) -> Tensor:
        """Return ``broken_by`` of :meth:`Cascade.run`, int64 [B], given the labels [B] on the CPU."""
        clean = torch.cat(self._clean[-self._batches :])
        result = torch.where(clean == y, ROBUST, CLEAN_ERROR)
        for position, name in enumerate(self._attacks):
            predictions = [predicted for attack, predicted in self._verdicts if attack == name]
            if predictions:
                attacked = (result == ROBUST).nonzero().squeeze(1)
                result[attacked[torch.cat(predictions) != y[attacked]]] = position + 1
        return result
