"""Checks for gradient masking: does an attack's failure speak for the model, or against the attack?

Each check is a pure function from numbers to a :class:`benchmark.results.entry.Check`: what was measured, what it is
held against, and whether it passed. They follow Athalye et al. 2018 (arXiv 1802.00420, section 3.1), Carlini et al.
2019 (arXiv 1902.06705, section 5), the flags of AutoAttack (Croce and Hein 2020) and Pintor et al. 2022 (arXiv
2106.09947). :mod:`benchmark.metrics.masking` measures the numbers, :mod:`benchmark.studies.masking_power` how often the
checks are right.

Most checks count images of which honest models have next to none, such as those that a weaker attack breaks and a
stronger one does not. Such a check tolerates a share of them, below, and fails only where there are more than that
share explains at the level :data:`LEVEL` (exact one-sided binomial test): it is as careful with 20 images as with
10,000. No threshold is a model's or a data set's own.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import binom

from benchmark.results.entry import Check, Measurement, Value

LEVEL = 0.01
"""Probability of failing a check whose images occur exactly as often as it tolerates."""
BEATEN = 0.02
"""Share of images by which a stronger attack may lose to a weaker one: the luck of one random start."""
MISSED = 0.05
"""Share that another kind of attack may break and no white-box attack does: neither is optimal."""
UNSTABLE = 0.10
"""Share that more search of the same kind may break: further starts, averaged gradients, AutoAttack. Honest networks of
the JEM family lose up to 9 points to AutoAttack after PGD-20, which makes PGD-20 a loose bound and not a false one."""
SURVIVING = 0.05
"""Share that may stay correct where the threat model lets every image become any other."""
VANISHING = 0.05
"""Share whose gradient may be exactly zero; honest networks have none unless the softmax saturates."""
CONTRADICTED = 0.10
"""Share on which finite differences may contradict autograd: networks of ReLUs have kinks, which one step may cross."""
CASCADE = 0.005
"""Share that Square may add to AutoAttack's gradient attacks. AutoAttack warns from 0.2 points on, whatever n is; at
10,000 images this fails from 0.7 points on."""
FAR = 0.25
"""Share of the radius that covers all images from which on no classifier should survive; CIFAR-10's most robust
networks fall to about 0 at 64/255."""
BUDGET = (0.95, 1.001)
"""Shares of eps between which the largest perturbation should lie."""

AT_CHANCE = "does not apply: the model classifies clean images no better than chance, so that attacks show nothing"
NO_GRADIENT = "no gradient reaches the images"
NO_NOISE = "the model draws no noise"


@dataclass(frozen=True)
class Count:
    """Number of images, of ``n``, for which something holds."""

    images: int
    n: int

    @property
    def percent(self) -> float:
        """Share of the images, in percent."""
        return 100 * self.images / self.n


def most(n: int, tolerated: float) -> int:
    """Return the largest count of ``n`` images that a share of ``tolerated`` explains at :data:`LEVEL`."""
    return int(binom.isf(LEVEL, n, tolerated))


def above_chance(clean: Count, classes: int) -> bool:
    """Tell whether more clean images are classified correctly than chance explains at :data:`LEVEL`."""
    return clean.images > most(clean.n, 1 / classes)


def absent(name: str, reason: str) -> Check:
    """Return a check that does not apply, and was not measured, for a reason."""
    return Check(name=name, measured=None, bound=None, passed=None, meaning=f"does not apply: {reason}")


def at_chance(check: Check) -> Check:
    """Return a check of an attack's outcome as it stands for a model at chance: without a verdict."""
    return check if check.passed is None else check.model_copy(update={"passed": None, "meaning": AT_CHANCE})


def _within(name: str, measured: float, bound: float, meaning: str) -> Check:
    return Check(name=name, measured=measured, bound=bound, passed=measured <= bound, meaning=meaning)


def _rare(name: str, count: Count | None, tolerated: float, meaning: str, otherwise: str = NO_GRADIENT) -> Check:
    """Hold the share of some images, in percent, against the largest that the tolerated one explains."""
    if count is None:
        return absent(name, otherwise)
    return _within(name, count.percent, 100 * most(count.n, tolerated) / count.n, meaning)


def _not_weaker(
    name: str, stronger: Count | None, weaker: Count | None, meaning: str, otherwise: str = NO_GRADIENT
) -> Check:
    """Hold the accuracy under a stronger attack, in percent, against that under a weaker one and some luck."""
    if stronger is None or weaker is None:
        return absent(name, otherwise)
    luck = Count(most(weaker.n, BEATEN), weaker.n)
    return _within(name, stronger.percent, weaker.percent + luck.percent, meaning)


def unbounded(correct: Count | None) -> Check:
    """Check ``correct``, the images correct under an attack that may turn each image into any other."""
    meaning = "An attack without a bound should leave about 0 % correct; where it does not, the gradient is no guide."
    return _rare("unbounded", correct, SURVIVING, meaning)


def large_radius(correct: Count | None, share: float) -> Check:
    """Check ``correct``, the images correct at the largest radius, the ``share`` of the one that covers all images."""
    name = "large radius"
    if correct is not None and share < FAR:
        return absent(name, f"the sweep ends below {100 * FAR:g} % of the radius that covers all images")
    meaning = "Accuracy (%) should fall to about 0 as eps grows; where it does not, the attack fails, not the images."
    return _rare(name, correct, SURVIVING, meaning)


def monotone(correct: Sequence[Count]) -> Check:
    """Check the largest rise in ``correct``, the images correct under the same attack at ascending radii."""
    pairs = itertools.combinations(correct, 2)
    smaller, larger = max(pairs, key=lambda pair: pair[1].images - pair[0].images, default=(None, None))
    meaning = "Accuracy (%) should not rise as eps grows, because the larger ball holds the smaller one."
    return _not_weaker("monotone in eps", larger, smaller, meaning)


def one_step(many: Count | None, one: Count | None) -> Check:
    """Compare the images correct under the iterative attack with those under a single step of it."""
    meaning = "Iterative attacks should beat one step (accuracy, %); where they do not, the gradient misleads them."
    return _not_weaker("one step", many, one, meaning)


def iterations(more: Count | None, twenty: Count | None) -> Check:
    """Compare the images correct after more than 20 iterations with those after 20."""
    meaning = "More iterations should not be weaker than 20 (accuracy, %); where they are, the search is at random."
    return _not_weaker("iterations", more, twenty, meaning, "there is no gradient, or no attack of more iterations")


def eot(averaged: Count | None, single: Count | None) -> Check:
    """Compare the images correct under PGD on averaged gradients with those under PGD, for a model that draws noise."""
    meaning = "PGD on averaged gradients (EOT) should be at least as strong as on single ones (accuracy, %)."
    return _not_weaker("EOT", averaged, single, meaning, NO_NOISE)


def eot_gain(broken: Count | None) -> Check:
    """Check ``broken``, the images broken by PGD on averaged gradients and not by PGD, for a model that draws noise."""
    meaning = "EOT should not break many images that PGD does not; where it does, noise hides the gradient."
    return _rare("EOT gain", broken, UNSTABLE, meaning, NO_NOISE)


def restarts(broken: Count | None) -> Check:
    """Check ``broken``, the images broken by PGD from further random starts and not from the first."""
    meaning = "Further random starts should not break many more images; where they do, PGD's number is luck."
    return _rare("restarts", broken, UNSTABLE, meaning)


def logit_scale(broken: Count | None) -> Check:
    """Check ``broken``, the images broken by PGD on logits that are divided by their spread, and not by PGD."""
    meaning = "Rescaled logits should not help PGD break images; where they do, the softmax saturates."
    return _rare("logit scale", broken, MISSED, meaning)


def random_noise(broken: Count | None) -> Check:
    """Check ``broken``, the images broken by random perturbations of size eps and not by PGD."""
    meaning = "Random noise of size eps should break no image that PGD does not; where it does, PGD searches nothing."
    return _rare("random noise", broken, BEATEN, meaning)


def square(broken: Count | None) -> Check:
    """Check ``broken``, the images broken by Square and by no white-box attack."""
    meaning = "Square, a black box, should break no image that white-box attacks do not; where it does, they are blind."
    return _rare("Square", broken, MISSED, meaning)


def transfer(broken: Count | None) -> Check:
    """Check ``broken``, the images broken by an attack on another network and by no white-box attack on this one."""
    meaning = "Attacks made on another network should break no image that white-box attacks on this one do not."
    return _rare("transfer", broken, MISSED, meaning, "there is no other network for these images")


def budget(largest: float | None, eps: float) -> Check:
    """Compare the largest perturbation of the attack with the stated eps, in the same units."""
    name = "budget"
    if largest is None or eps == 0:
        return absent(name, NO_GRADIENT if largest is None else "eps is 0")
    meaning = "The attack's largest perturbation should be the eps that is stated; half is what wrong units give."
    low, high = BUDGET
    return Check(name=name, measured=largest, bound=eps, passed=low <= largest / eps <= high, meaning=meaning)


def gradient(reaches: bool) -> Check:
    """Check whether autograd leads from the logits to the images."""
    meaning = "Gradients should reach the images; where none does, no white-box attack is possible as things stand."
    return Check(name="gradient", measured=float(reaches), bound=1.0, passed=reaches, meaning=meaning)


def zero_gradients(vanishing: Count | None) -> Check:
    """Check ``vanishing``, the images whose cross-entropy has a gradient that is exactly 0, or not finite."""
    meaning = "Gradients should not vanish; where they do, PGD is its random start and no more."
    return _rare("zero gradients", vanishing, VANISHING, meaning)


def finite_differences(contradicted: Count | None) -> Check:
    """Check ``contradicted``, the images on which small steps change the logits otherwise than autograd says."""
    meaning = "Small steps should change the logits as the gradient says; where not, they jump, or it is false."
    return _rare("finite differences", contradicted, CONTRADICTED, meaning)


def determinism(difference: float, bound: float) -> Check:
    """Check the difference of two passes on the same images, relative to the largest logit."""
    meaning = "Two passes on the same images should give the same logits; noise makes each verdict a draw."
    return _within("determinism", difference, bound, meaning)


def batch_dependence(difference: float, bound: float) -> Check:
    """Check how much an image's logits depend on the other images of a batch, relative to the largest logit."""
    meaning = "An image's logits should not depend on its neighbours, as they do with batch statistics."
    return _within("batch dependence", difference, bound, meaning)


def batch_norm_mode(gained: Count | None) -> Check:
    """Check ``gained``, the images correct with the batch's own statistics and not in eval mode."""
    meaning = "Eval mode should classify what batch statistics do; where it does not, the running statistics are off."
    return _rare("batch norm mode", gained, MISSED, meaning, "the model has no batch normalisation")


def state(moved: float) -> Check:
    """Check ``moved``, the number of buffers that a forward pass changes."""
    return _within("state", moved, 0.0, "A forward pass should change no buffer, as BatchNorm in train mode does.")


def probabilities(found: bool) -> Check:
    """Check whether the outputs are probabilities."""
    meaning = "Outputs should be logits: losses take the softmax, and twice is once too often."
    return _within("probabilities", float(found), 0.0, meaning)


def input_domain(given: float, rival: float, name: str, beaten: bool) -> Check:
    """Compare the accuracies, in percent, in [0,1] and in the best other domain; ``beaten``: by a clear margin."""
    meaning = f"No other input domain should suit the model clearly better than [0,1]; the best other is {name}."
    return Check(name="input domain", measured=given, bound=rival, passed=not beaten, meaning=meaning)


def against_autoattack(
    pgd_accuracy: float, autoattack_accuracy: float, n: int, square_points: float | None = None
) -> list[Check]:
    """Compare PGD-20 with AutoAttack, by their accuracies in percent on the same ``n`` images.

    Check what AutoAttack adds to PGD-20, whether it is the stronger one, and, where ``square_points`` says by how many
    points Square lowered the accuracy at the end of the cascade, what Square adds to the gradient attacks.
    """
    pgd, autoattack = (Count(round(accuracy * n / 100), n) for accuracy in (pgd_accuracy, autoattack_accuracy))
    gap = "AutoAttack should not break many more images than PGD-20; where it does, PGD-20 overstates robustness."
    weaker = "AutoAttack should not be weaker than PGD-20 (accuracy, %); where it is, its gradients mislead it."
    cascade = "Square should add next to nothing to AutoAttack's gradient attacks; where it does, they are blind."
    checks = [
        _rare("AutoAttack gain", Count(pgd.images - autoattack.images, n), UNSTABLE, gap),
        _not_weaker("AutoAttack", autoattack, pgd, weaker),
    ]
    if square_points is not None:
        checks.append(_rare("Square in cascade", Count(round(square_points * n / 100), n), CASCADE, cascade))
    return checks


def verdict(checks: Sequence[Check]) -> str | None:
    """Return "suspect: " and the names of the failed checks, or "clear".

    The verdict is None where nothing failed, but attacks could show nothing because the model is at chance.
    """
    failed = [check.name for check in checks if check.passed is False]
    if failed:
        return f"suspect: {', '.join(failed)}"
    return None if any(check.meaning == AT_CHANCE for check in checks) else "clear"


def with_checks(found: Measurement, added: Iterable[Check]) -> Measurement:
    """Return a measurement of the metric ``masking`` with more checks, their flags, and the verdict on all of them."""
    outcomes = list(added)
    if any(check.meaning == AT_CHANCE for check in found.checks):
        outcomes = [at_chance(check) for check in outcomes]
    checks = [*found.checks, *outcomes]
    content = {"checks": checks, "values": found.values | summary(checks), "flags": [*found.flags, *flags(outcomes)]}
    return found.model_copy(update=content)


def summary(checks: Sequence[Check]) -> dict[str, Value]:
    """Return the values of a measurement of ``masking``: the verdict, and how many checks failed and applied."""
    return {
        "verdict": verdict(checks),
        "failed": sum(check.passed is False for check in checks),
        "applied": sum(check.passed is not None for check in checks),
    }


def flags(checks: Iterable[Check]) -> list[str]:
    """Return a sentence for each failed check."""
    return [
        f"{check.name}: {check.measured:.4g} against {check.bound:.4g}. {check.meaning}"
        for check in checks
        if check.passed is False
    ]
