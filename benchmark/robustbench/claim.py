"""Claim of a submission to RobustBench: an entry and the details of its paper, under RobustBench's names."""

import re
from dataclasses import dataclass

import numpy as np

from benchmark.results.entry import Entry, unpack
from benchmark.robustbench.model_info import LEADERBOARDS, percent
from benchmark.specs.protocol import Protocol
from methods.backbones.classifier import TIMM_PREFIX
from methods.data.catalogue import slug
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

_FAMILIES = {
    "wrn": "WideResNet",
    "jem-wrn": "JEM WideResNet",
    "swish-wrn": "WideResNet-SiLU",
    "resnet": "ResNet",
    "preact-resnet": "PreActResNet",
    "resnet-highres": "ResNet-highres",
}


@dataclass(frozen=True)
class Paper:
    """Details of the paper that a model is submitted with, which its entry does not hold."""

    title: str
    authors: str | None = None
    """Names, separated by ", "; None is allowed in a rehearsal only."""
    url: str | None = None
    """Link to the paper; None is allowed in a rehearsal only."""
    venue: str | None = None
    """Venue with its year, such as "ICML 2024"."""
    reported: float | None = None
    """Robust accuracy that the paper reports, in percent."""
    footnote: str | None = None
    """Footnote of the leaderboard, in plain text."""


@dataclass(frozen=True)
class Claim:
    """A model to submit: its measurements, and the details of its paper."""

    model_id: str
    entry: Entry
    protocol: Protocol
    paper: Paper

    @property
    def threat(self) -> ThreatModel:
        """Threat model of the entry."""
        return ThreatModel.parse(self.entry.threat)

    @property
    def rehearsal(self) -> str | None:
        """First line of every file where RobustBench has no leaderboard for the data set; else None."""
        if any(dataset == self.entry.dataset for dataset, _ in LEADERBOARDS):
            return None
        return (
            f"REHEARSAL, NOT FOR SUBMISSION: measured on {self.entry.dataset} at {self.entry.threat}, "
            "for which RobustBench has no leaderboard."
        )

    @property
    def comment(self) -> str:
        """Comment at the top of a Python file of a rehearsal; else empty."""
        return f"# {self.rehearsal}\n" if self.rehearsal else ""

    @property
    def dataset(self) -> str:
        """RobustBench's name of the data set; a rehearsal stands in for CIFAR-10."""
        return "cifar10" if self.rehearsal else self.entry.dataset

    @property
    def module(self) -> str:
        """Name of the architecture's Python module."""
        return re.sub(r"\W", "_", self.model_id).lower()

    @property
    def factory(self) -> str:
        """Name of the class in that module that makes the model, without arguments."""
        return re.sub(r"\W", "_", self.model_id) + "Net"

    @property
    def architecture(self) -> str:
        """Name of the network as RobustBench shows it, such as ``WideResNet-28-10`` or ``PreActResNet-18``."""
        name = self.entry.subject.architecture
        for own, shown in _FAMILIES.items():
            name = re.sub(f"^{own}-(?=[0-9])", f"{shown}-", name)
        return name.removeprefix(TIMM_PREFIX)

    @property
    def record_path(self) -> str:
        """Path of the model's record in RobustBench's repository."""
        return f"model_info/{slug(self.entry.dataset)}/{self.threat.norm}/{self.model_id}.json"

    @property
    def eps(self) -> str:
        """Radius of the threat model, as RobustBench writes it."""
        return self.entry.threat.partition(":")[2]

    @property
    def doubts(self) -> str | None:
        """Reasons to doubt AutoAttack's number; None where the masking checks are clear and no flag is set."""
        masking, flags = self.entry.measurements.get("masking"), self.entry.measurements["autoattack"].flags
        if masking is None or masking.status == "failed":
            found = ["The masking checks were not run on this model."]
        else:
            verdict = masking.values.get("verdict") or "none, because the model is at chance"
            found = [] if verdict == "clear" else [f"The verdict of the masking checks is: {verdict}."]
        return " ".join([*found, *(f"AutoAttack's number is flagged: {flag.rstrip('.')}." for flag in flags)]) or None

    @property
    def external(self) -> str | None:
        """Best known robust accuracy, where PGD-20 breaks images that AutoAttack leaves robust; else None."""
        autoattack, pgd = (self.entry.measurements.get(name) for name in ("autoattack", "pgd20"))
        if autoattack is None or pgd is None or "accuracy" not in pgd.verdicts:
            return None
        both = np.logical_and(*(unpack(found.verdicts["accuracy"], found.n) for found in (autoattack, pgd)))
        worst = percent(100 * float(both.mean()))
        return None if worst == self.accuracy("autoattack") else worst

    def accuracy(self, metric: str, value: str = "accuracy") -> str:
        """Return an accuracy as RobustBench writes it, or raise InputError where the entry lacks it."""
        return percent(self.number(metric, value))

    def number(self, metric: str, value: str) -> float:
        """Return a number of the entry, or raise InputError where it lacks it."""
        found = self.entry.measurements[metric].values.get(value)
        if not isinstance(found, int | float):
            raise InputError(f'The measurement {metric} of the entry has no number "{value}".')
        return float(found)
