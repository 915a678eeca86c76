"""The doctor: what is wrong with a model before anything is measured on it, and what a stated eps is in pixels.

Robustness is quoted at an eps, and an eps has units. A network that takes its images in [-1,1] and is attacked at
"8/255" there is attacked at 4/255 of a pixel's range; the released evaluation of EB-JDAT (jkcjkc/EB-JDAT) does so, and
adds noise to the images it attacks. The doctor finds such things by :mod:`benchmark.models.probes`.
"""

import textwrap
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn

from benchmark.models.finding import Finding
from benchmark.models.input_domain import (
    NORMALISED,
    PIXELS,
    Domain,
    Trial,
    candidates,
    domain_finding,
    expected,
    try_domains,
)
from benchmark.models.output_probes import input_noise
from benchmark.models.probes import FEW, probe_behaviour, probe_outputs
from benchmark.models.subject import Subject
from benchmark.results.significance import wilson
from methods.data import Dataset
from methods.errors import InputError
from methods.primitives.modes import mode

IMAGES = 200
"""Test images on which the input domains are compared."""
_WIDTH = 110
"""Width of the text, in characters."""

REMEDIES = {
    "training mode": "Call model.eval() where the model is made; an evaluation here does so itself.",
    "forward pass": "Make the model accept a batch of images [B,C,H,W] of this data set.",
    "output shape": "Return one logit for each class of the data set, and nothing else.",
    "finite outputs": "Check that the weights are loaded, and look for divisions, logarithms and roots of 0.",
    "constant outputs": "Check that the weights are loaded and that the network reads its input.",
    "input domain": "Put the conversion inside the model, as below, and give the attack its eps in pixels.",
    "stated input range": "State the range that the model was trained on.",
    "accuracy": "Check that the weights are loaded and that the classes come in the data set's order.",
    "probabilities": "Return what enters the softmax; losses take the softmax themselves.",
    "saturated logits": "Remove the factor on the logits, or attack a loss that ignores it, such as DLR (AutoAttack).",
    "state": "Use running statistics, fixed, in every forward pass of an evaluation.",
    "noise": "Evaluate without noise, or attack the expectation (EOT) and say so beside the number.",
    "batch dependence": "Make an image's logits a function of that image alone: BatchNorm with running statistics.",
    "precision": "Evaluate in float64, or bring the logits to a common size.",
    "gradients": "Attacks by gradients fail here: differentiate through the whole model, or use black-box attacks.",
    "finite differences": "Attack with a differentiable stand-in for the step (BPDA), or with black-box attacks.",
}
"""Name of a finding -> what to do about it."""


@dataclass(frozen=True)
class Diagnosis:
    """Result of examining a model."""

    name: str
    dataset: str
    images: int
    """Number of test images that were used."""
    findings: tuple[Finding, ...]
    trials: tuple[Trial, ...]
    """Accuracy in every input domain, [0,1] first; empty where the model's outputs are no logits."""
    domain: Domain
    """Input domain that the model expects, or the stated one where nothing speaks against it."""
    sigma: float | None
    """Standard deviation of the model's noise, as noise on pixels in [0,1]; None where it draws none."""
    equivalents: tuple[str, ...]
    """Sentences on the stated eps in pixels, one for every domain, the model's first."""

    @property
    def status(self) -> int:
        """Exit status: 1 where there is a problem, else 0."""
        return int(any(finding.severity == "problem" for finding in self.findings))

    @property
    def verdict(self) -> str:
        """Outcome in one sentence."""
        parts = []
        for severity in ("problem", "doubt"):
            if names := [finding.name for finding in self.findings if finding.severity == severity]:
                parts.append(f"{len(names)} {severity}{'s' * (len(names) > 1)} ({', '.join(names)})")
        if not parts:
            return f"Nothing is wrong with {self.name} on {self.dataset}: {len(self.findings)} probes found nothing."
        return f"{self.name} on {self.dataset} has {' and '.join(parts)}."

    @property
    def wrapper(self) -> str | None:
        """Python code of a factory whose model takes pixels; None where the model takes them already."""
        return None if self.domain.identity else _wrapper(self.domain, self.name.rpartition(":")[2] or "make")


def examine(
    model: Subject | nn.Module,
    dataset: Dataset,
    *,
    input_range: str | None = None,
    eps: str | None = None,
    device: torch.device | None = None,
    name: str | None = None,
) -> Diagnosis:
    """Examine a model on the first IMAGES test images, however broken it is; it is left in the mode it was in.

    Args:
        model: best as its factory returned it, before any ``eval()``.
        dataset: the test images, and the number of classes.
        input_range: the range that the user states: ``"-1,1"``, or ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.
        eps: a stated eps, ``"8/255"`` or ``"0.03"``, in the model's own units.
        device: where the model is examined; by default where it is.
        name: name of the model, such as ``model.py:make``; a path in front is left out.

    Raises:
        InputError: the range or the eps is none, or the data set has no test images or a single class.
    """
    stated = None if input_range is None else _stated(input_range, dataset.image_shape[0])
    radius = None if eps is None else _number(eps)
    if len(dataset.test) == 0:
        raise InputError(f"{dataset.name} has no test images.")
    if dataset.num_classes < 2:
        raise InputError(f"{dataset.name} has a single class, so that there is nothing to classify.")
    network = model.model if isinstance(model, Subject) else model
    place = device or next((weights.device for weights in network.parameters()), torch.device("cpu"))
    network.to(place)
    x, y = dataset.test.unit(slice(0, IMAGES)).to(place), dataset.test.labels[:IMAGES].to(place)
    domains = _domains(dataset, stated)
    findings = probe_outputs(network, x[:FEW], dataset.num_classes, dataset.name)
    trials, domain, sigma = [], stated or PIXELS, None
    if all(finding.fine for finding in findings[1:]):
        with mode(network, training=False):
            trials = try_domains(network, x, y, domains)
            chosen = expected(trials)
            findings += [domain_finding(trials), _accuracy(chosen, dataset.num_classes)]
            if stated is not None:
                own = next(trial for trial in trials if trial.domain == stated)
                findings.append(_statement(own, chosen))
                chosen = own if findings[-1].fine else chosen
            domain = chosen.domain
            behaviour = probe_behaviour(network, x[:FEW], y[:FEW], domain)
            if any(finding.name == "noise" and not finding.fine for finding in behaviour):
                sigma = input_noise(domain.before(network), x[:FEW])
            findings += behaviour
    return Diagnosis(
        name=(name or (model.name if isinstance(model, Subject) else type(model).__name__)).rsplit("/", 1)[-1],
        dataset=dataset.name,
        images=len(x),
        findings=tuple(findings),
        trials=tuple(trials),
        domain=domain,
        sigma=sigma,
        equivalents=()
        if eps is None or radius is None
        else tuple(equivalent(eps, radius, units) for units in dict.fromkeys([domain, *domains])),
    )


def _domains(dataset: Dataset, stated: Domain | None) -> list[Domain]:
    """Return the domains to try: the usual ones, the data set's own normalisation, and the one that was stated."""
    domains = list(candidates(dataset.image_shape[0]))
    if not dataset.name.startswith("cifar"):
        mean, std = (tuple(Fraction(f"{value:.4f}") for value in values) for values in (dataset.mean, dataset.std))
        domains.append(Domain(f"{dataset.name} normalisation", mean, std))
    if stated is not None and stated not in domains:
        domains.append(stated)
    # Of domains that the images cannot tell apart, the first is taken to be the model's: on CIFAR-100 that is its own.
    own = dataset.name.replace("cifar", "CIFAR-") + " normalisation"
    return sorted(domains, key=lambda domain: len(domain.std) > 1 and domain.name != own)


def _stated(text: str, channels: int) -> Domain:
    named = {domain.name.split()[0].lower().replace("-", ""): domain for domain in NORMALISED}
    folded = text.strip().lower().replace("-", "")
    if folded in named:
        if channels != 3:
            raise InputError(f'"{text}" normalises three channels, and the images have {channels}.')
        return named[folded]
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f'An input range is "LOW,HIGH", such as -1,1, or one of {", ".join(named)}, not "{text}".')
    low, high = (_number(part, "end of an input range", signed=True) for part in parts)
    if low >= high:
        raise InputError(f'An input range is "LOW,HIGH" with LOW below HIGH, not "{text}".')
    mean, std = -low / (high - low), 1 / (high - low)
    return next(
        (domain for domain in candidates(1) if (domain.mean, domain.std) == ((mean,), (std,))),
        Domain(f"[{_decimal(low)},{_decimal(high)}]", (mean,), (std,)),
    )


def _number(text: str, what: str = "eps", signed: bool = False) -> Fraction:
    """Read ``8/255`` or ``0.03`` exactly."""
    numerator, slash, denominator = text.strip().partition("/")
    try:
        value = Fraction(numerator) / Fraction(denominator if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(f'"{text}" is no {what}: write a fraction like 8/255 or a decimal like 0.03.') from None
    if value < 0 and not signed:
        raise InputError(f'An {what} is not negative, as "{text}" is.')
    return value


def _accuracy(best: Trial, num_classes: int) -> Finding:
    """Compare the model's accuracy with that of guessing."""
    chance = 100 / num_classes
    low, _ = wilson(int(best.correct.sum()), len(best.correct))
    sentence = f"it is right on {best.accuracy:.1f} % of {len(best.correct)} test images"
    if low > chance:
        return Finding("accuracy", "fine", best.accuracy, chance, sentence)
    return Finding("accuracy", "doubt", best.accuracy, chance, f"{sentence}, no better than guessing ({chance:.1f} %)")


def _statement(stated: Trial, best: Trial) -> Finding:
    """Compare accuracy in the stated domain with that in the best one."""
    severity, at = "fine", f"where it is right on {stated.accuracy:.1f} %"
    sentence = f"nothing speaks against {stated.domain.name}, {at}"
    if best.beats(stated):
        severity = "problem"
        sentence = f"{stated.domain.name} was stated, {at}, but on {best.accuracy:.1f} % in {best.domain.name}"
    return Finding("stated input range", severity, stated.accuracy, best.accuracy, sentence)


def equivalent(eps: str, radius: Fraction, domain: Domain) -> str:
    """Return a sentence such as "8/255 in [-1,1] is 4/255 in pixels", for an eps of the value ``radius``."""
    pixels = [radius * std for std in domain.std]
    if len(pixels) == 1:
        return f"{eps} {domain.where} is {_written(pixels[0])} in pixels"
    return f"{eps} {domain.where} is {', '.join(f'{float(value):.4f}' for value in pixels)} in pixels (per channel)"


def _written(value: Fraction) -> str:
    """Write an eps exactly where that is short: as a decimal, in 255ths or as a fraction; else to four digits."""
    for unit, digits, suffix in ((1, 4, ""), (255, 3, "/255")):
        if (value * unit * 10**digits).denominator == 1:
            return f"{_decimal(value * unit)}{suffix}"
    return str(value) if value.denominator <= 255**2 else f"{float(value):.4g}"


def _decimal(value: Fraction) -> str:
    return f"{float(value):.10g}"


def _wrapper(domain: Domain, factory: str) -> str:
    values = [*domain.mean, *domain.std]
    if len(values) == 2:
        mean, std = values
        sign, shift = ("+" if mean < 0 else "-"), abs(mean / std)
        header, converted = "", f"x[0] * {_decimal(1 / std)}" + (f" {sign} {_decimal(shift)}" if shift else "")
    else:
        parts = ", ".join(f"({', '.join(map(_decimal, part))})" for part in (domain.mean, domain.std))
        header = f"import torch\n\nmean, std = (torch.tensor(values).view(-1, 1, 1) for values in ({parts}))\n\n\n"
        converted = "(x[0] - mean.to(x[0])) / std.to(x[0])"
    # A hook, and no nn.Sequential around the model: the names of its weights stay what they are in its file.
    return (
        f"{header}def on_pixels():\n"
        f"    model = {factory}()\n"
        f"    model.register_forward_pre_hook(lambda module, x: ({converted},))\n"
        "    return model\n"
    )


def render(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as text: the verdict, the findings with remedies, the domains, eps, and the wrapper."""
    lines = [diagnosis.verdict, ""]
    for finding in sorted(diagnosis.findings, key=lambda finding: ("problem", "doubt", "fine").index(finding.severity)):
        lines += _told(finding)
    units = list(diagnosis.domain.std)
    if diagnosis.sigma is not None and not diagnosis.domain.identity and len(units) == 1:
        own = diagnosis.sigma / float(units[0])
        lines += ["", f"Noise of sigma {own:.2g} in {diagnosis.domain.name} is {diagnosis.sigma:.2g} in pixels."]
    if diagnosis.trials:
        lines += ["", f"Accuracy on {diagnosis.images} test images, by the domain they are given in:"]
        width = max(len(trial.domain.name) for trial in diagnosis.trials)
        for trial in diagnosis.trials:
            mark = "  <- the model's" if trial.domain == diagnosis.domain else ""
            lines.append(f"  {trial.domain.name:<{width}} {trial.accuracy:6.1f} %{mark}")
    if diagnosis.equivalents:
        lines += ["", "What the stated eps is in pixels, by the domain it is stated in:"]
        lines += [f"  {sentence}" for sentence in diagnosis.equivalents]
    if diagnosis.wrapper is not None:
        lines += ["", "A factory whose model takes pixels, for the file of the model:", ""]
        lines += textwrap.indent(diagnosis.wrapper, "    ").splitlines()
    return "\n".join(lines)


def _told(finding: Finding) -> list[str]:
    pairs = ("measured", finding.measured), ("bound", finding.bound)
    numbers = [f"{label} {value:.3g}" for label, value in pairs if value is not None]
    text = f"{finding.severity:<8} {finding.name}: {finding.sentence}" + (f" [{', '.join(numbers)}]" if numbers else "")
    remedy = [] if finding.fine else textwrap.wrap(REMEDIES[finding.name], _WIDTH - 9)
    return [*textwrap.wrap(text, _WIDTH, subsequent_indent=" " * 9), *(" " * 9 + line for line in remedy)]
