"""Early stopping of attacks: an image that is broken is not forwarded again.

The attacks of `pyautoattack` follow every image to the last iteration, broken or not. Here the network that they query
is wrapped in :class:`EarlyStopping`: during one run of an attack, the images that the attack itself has seen
misclassified keep the logits they had, and only the others are forwarded. The run returns for such an image the very
point that was seen. The attacks still see whole batches, so that the random numbers of the other images, and with them
their verdicts, are those of the untouched package, up to rounding by the size of a forward batch.

An image counts as broken when it is misclassified at a query that the attack counts (every query of APGD; of FAB the
queries for labels, at points within eps) and by a margin that rounding cannot turn round, so that the final
classification agrees. A closer misclassification is left to the attack. Square drops broken images itself; there, a
point is not forwarded again that it has asked for already.

The network of the search may be faster and less exact than the one that is attacked. Then each misclassification is
put to the exact network first. Where that one disagrees, the attack gets its logits, and goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor

from benchmark.evaluation.evidence import MARGIN, logit_margin
from methods.primitives.threat import ThreatModel

Network = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] -> logits [B,K]."""

_REPEATED = 1e-4
"""Difference of two passes on one image, relative to the largest logit, above which it is more than rounding."""


@dataclass
class QueryCount:
    """Count of the queries of the attacks in their runs, in images."""

    forwarded: int = 0
    """Number of images that went through the network of the search."""
    skipped: int = 0
    """Number of images that were answered from memory."""
    refuted: list[Tensor] = field(default_factory=list)
    """Points [C,H,W] that the network of the search misclassifies and the exact one does not."""

    def owners(self, threat: ThreatModel, x: Tensor) -> Tensor:
        """Return which images ``x`` [B,C,H,W] have a refuted point, bool [B]; a point belongs to its nearest image."""
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for point in self.refuted:
            found[threat.distance(point.expand_as(x), x).argmin()] = True
        return found


def separable(network: Network, x: Tensor, logits: Tensor) -> bool:
    """Tell whether images' logits [B,K] are the same again and in another batch, on which early stopping relies."""
    some = torch.arange(0, len(x), 2, device=x.device).flip(0)
    # A network that draws noise meets the same numbers afterwards.
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        again = network(x[some]).float()
    return bool((again - logits[some]).abs().max() <= _REPEATED * logits.abs().max().clamp(min=1e-12))


def stop_early(attacker: AutoAttack, search: Network, exact: Network | None = None) -> QueryCount:
    """Let the attacks query another network, and stop for each image as soon as it is broken.

    The attacks are changed in place; the attacker's own checks of the model, and its classification of what they
    return, stay. In their runs they query ``search``, which is :func:`separable`, and ``exact`` confirms each
    misclassification; None: ``search`` is exact itself. The count that is returned grows as the attacks run.
    """
    count = QueryCount()
    for attack in (attacker.apgd, attacker.apgd_targeted):
        if not attack.use_largereps:  # as for L1: the first runs are in larger balls
            _stop_apgd(attack, EarlyStopping(search, exact, count))
    if isinstance(attacker.fab, FABAttack_PT):
        _stop_fab(attacker.fab, EarlyStopping(search, exact, count))
    _stop_square(attacker.square, EarlyStopping(search, exact, count))
    return count


class _AllBroken(Exception):
    """Ends a run whose further queries could change nothing."""


class _Run:
    """One run of an attack on the images ``x`` [B,C,H,W] with the labels ``y`` [B]."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.y = y
        self.broken = torch.zeros(len(y), dtype=torch.bool, device=x.device)
        self.seen = x.detach().clone()
        """Points [B,C,H,W]: where an image is broken, the one that was seen misclassified."""
        self.logits: Tensor | None = None
        """Logits [B,K] of the last query."""

    def begun(self, points: Tensor) -> bool:
        """Tell whether a query belongs to the search, and not to its preparation."""
        return True

    def counts(self, points: Tensor) -> Tensor:
        """Return for which images the attack counts a misclassification at this query, bool [B]."""
        return torch.ones_like(self.broken)

    def remembered(self, points: Tensor) -> Tensor:
        """Return the logits [B,K] of the last query, with gradients that exist and differ from class to class."""
        assert self.logits is not None
        if not points.requires_grad:
            return self.logits
        # No attack can divide by this slope and find 0.
        nothing = (points - points.detach()).flatten(1).sum(1, keepdim=True)
        return self.logits + nothing * torch.arange(self.logits.shape[1], device=points.device)


class _FabRun(_Run):
    """A run of FAB: it classifies the clean images first, then asks in turn for gradients and for labels."""

    def __init__(self, x: Tensor, y: Tensor, norm: str, eps: float) -> None:
        super().__init__(x, y)
        self._x, self._norm, self._eps = x.detach(), norm, eps
        self._begun = False

    def begun(self, points: Tensor) -> bool:
        self._begun |= points.requires_grad
        return self._begun

    def counts(self, points: Tensor) -> Tensor:
        if points.requires_grad:
            return torch.zeros_like(self.broken)
        away = (self._x - points).flatten(1)
        # The package's own formulas, which decide about points at eps.
        size = away.abs().amax(1) if self._norm == "Linf" else (away**2).sum(-1).sqrt()
        return ~(size > self._eps)


class EarlyStopping:
    """Network as one attack queries it: in a run (:meth:`during`), broken images are not forwarded.

    Other queries, and those of another number of images than the run's, are answered by the exact network, whole.
    """

    def __init__(self, search: Network, exact: Network | None, count: QueryCount) -> None:
        self._search, self._exact, self.count = search, exact, count
        self._run: _Run | None = None
        self._labels: Tensor | None = None

    def __call__(self, points: Tensor) -> Tensor:
        """Return logits [B,K] for ``points`` [B,C,H,W]."""
        if self._labels is not None:
            return self._confirmed(points, self._forwarded(points), self._labels)
        if self._run is not None and len(points) == len(self._run.y) and self._run.begun(points):
            return self._searched(points, self._run)
        return (self._exact or self._search)(points)

    def during(self, run: _Run, attack: Callable[[], Any]) -> Any:
        """Return what ``attack`` returns; None where all images were broken before its end."""
        self._run = run
        try:
            return attack()
        except _AllBroken:
            return None
        finally:
            self._run = None

    def labelled(self, y: Tensor, query: Callable[[], Any]) -> Any:
        """Return what ``query`` returns, which forwards all of its images, whose labels are ``y`` [B]."""
        self._labels = y
        try:
            return query()
        finally:
            self._labels = None

    def _searched(self, points: Tensor, run: _Run) -> Tensor:
        left = (~run.broken).nonzero().squeeze(1)
        if not len(left):
            raise _AllBroken
        self.count.skipped += len(points) - len(left)
        whole, counted = len(left) == len(points), run.counts(points)[left]
        chosen, labels = (points, run.y) if whole else (points[left], run.y[left])
        logits = self._confirmed(chosen, self._forwarded(chosen), labels, counted)
        broken = left[counted & (logit_margin(logits.detach(), labels) < -MARGIN)]
        run.broken[broken] = True
        run.seen[broken] = points.detach()[broken]
        if not whole:
            logits = run.remembered(points).index_copy(0, left, logits)
        run.logits = logits.detach().clone()
        return logits

    def _forwarded(self, points: Tensor) -> Tensor:
        self.count.forwarded += len(points)
        return self._search(points)

    def _confirmed(self, points: Tensor, logits: Tensor, y: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return the logits, those of the exact network where an image that is ``counted`` is misclassified."""
        if self._exact is None:
            return logits
        wrong = logits.detach().argmax(1) != y
        claimed = (wrong if counted is None else wrong & counted).nonzero().squeeze(1)
        if not len(claimed):
            return logits
        with torch.no_grad():
            exact = self._exact(points.detach()[claimed]).to(logits)
        self.count.refuted.extend(points.detach()[claimed[exact.argmax(1) == y[claimed]]])
        return logits + torch.zeros_like(logits).index_copy(0, claimed, exact - logits.detach()[claimed])


def _stop_apgd(attack: APGDAttack, queries: EarlyStopping) -> None:
    single_run, attack.model = attack.attack_single_run, queries

    def stopping(x: Tensor, y: Tensor, x_init: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        run = _Run(x, y)
        found = queries.during(run, lambda: single_run(x, y, x_init))
        if found is None:
            return run.seen, ~run.broken, torch.zeros_like(y, dtype=x.dtype), run.seen
        best, correct, loss, adversarial = found
        return best, correct, loss, _placed(run, adversarial)

    attack.attack_single_run = stopping


def _stop_fab(attack: FABAttack_PT, queries: EarlyStopping) -> None:
    single_run, attack.predict = attack.attack_single_run, queries

    def stopping(x: Tensor, y: Tensor | None = None, use_rand_start: bool = False, is_targeted: bool = False) -> Tensor:
        if y is None:
            return single_run(x, y, use_rand_start, is_targeted)
        run = _FabRun(x, y, attack.norm, attack.eps)
        found = queries.during(run, lambda: single_run(x, y, use_rand_start, is_targeted))
        return run.seen if found is None else _placed(run, found)

    attack.attack_single_run = stopping


def _stop_square(attack: SquareAttack, queries: EarlyStopping) -> None:
    single_run, margin_and_loss = attack.attack_single_run, attack.margin_and_loss
    attack.predict = queries

    def forwarded(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return queries.labelled(y, lambda: margin_and_loss(x, y))

    def stopping(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        attack.margin_and_loss = _SquareRun(forwarded, queries.count)
        return single_run(x, y)

    attack.attack_single_run = stopping


class _SquareRun:
    """One run of Square, which often proposes the point that an image has reached already.

    Where a square is cut at eps and at [0, 1], nothing of it may be left. Then the known margin and loss of that point
    are returned. Points are followed as Square follows them: an image keeps the one of the lowest loss, and is dropped
    when broken.
    """

    def __init__(self, forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], count: QueryCount) -> None:
        self._forward, self._count = forward, count
        self._points: Tensor | None = None
        """Points [B,C,H,W] of the images that are still attacked."""
        self._margin = self._loss = torch.zeros(0)
        """Margin and loss [B] at those points."""

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return margins and losses [B] at ``x`` [B,C,H,W] with labels ``y`` [B]."""
        known = self._points
        if known is None or known.shape != x.shape:
            margin, loss = self._forward(x, y)
            if known is None:
                self._keep(margin > 0, x.clone(), margin, loss)
            return margin, loss
        new = (x != known).flatten(1).any(1).nonzero().squeeze(1)
        if len(new) == len(x):
            margin, loss = self._forward(x, y)
        else:
            self._count.skipped += len(x) - len(new)
            margin, loss = self._margin.clone(), self._loss.clone()
            if len(new):
                margin[new], loss[new] = self._forward(x[new], y[new])
        moved = (loss < self._loss) | (margin <= 0)
        points = torch.where(moved.view(-1, *[1] * (x.dim() - 1)), x, known)
        lowest = torch.minimum(loss, self._loss)
        self._keep(margin > 0, points, torch.where(moved, margin, self._margin), lowest)
        return margin, loss

    def _keep(self, left: Tensor, points: Tensor, margin: Tensor, loss: Tensor) -> None:
        if bool(left.all()):
            self._points, self._margin, self._loss = points, margin, loss
        else:
            self._points, self._margin, self._loss = points[left], margin[left], loss[left]


def _placed(run: _Run, images: Tensor) -> Tensor:
    """Return the images of a run [B,C,H,W], each broken one replaced by the point that was seen misclassified."""
    return torch.where(run.broken.view(-1, *[1] * (images.dim() - 1)), run.seen, images)
