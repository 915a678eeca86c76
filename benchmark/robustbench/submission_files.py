"""The files of a submission kit for RobustBench, as text: pure functions of an entry and of what its author adds."""

from __future__ import annotations

import ast
import html
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import get_args

import numpy as np

from benchmark.attacks.autoattack import STREAM
from benchmark.attacks.cascade import STANDARD
from benchmark.results.entry import Entry, unpack
from benchmark.robustbench.model_info import LEADERBOARDS, ModelInfo, Rehearsal, percent
from benchmark.specs.protocol import Protocol
from benchmark.specs.schema import checked
from methods import errors
from methods.backbones import classifier, resnet, wide_resnet
from methods.backbones.classifier import TIMM_PREFIX, BackboneConfig, Classifier
from methods.data.catalogue import slug
from methods.errors import InputError
from methods.primitives import splitting
from methods.primitives.random import derive
from methods.primitives.threat import ThreatModel

_NO_AUTHORS, _NO_LINK = "N/A", "https://robustbench.github.io/"
"""Of a rehearsal."""
GDRIVE_ID = "TO BE FILLED IN"
"""Until the weights are there: RobustBench refuses None."""
_REPOSITORY = "https://github.com/RobustBench/robustbench"
_FAMILIES = {
    "wrn": "WideResNet",
    "jem-wrn": "JEM WideResNet",
    "swish-wrn": "WideResNet-SiLU",
    "resnet": "ResNet",
    "preact-resnet": "PreActResNet",
    "resnet-highres": "ResNet-highres",
}
_ARCHITECTURES = f"{_REPOSITORY}/tree/master/robustbench/model_zoo/architectures"
_TITLES = dict(zip(STANDARD, ("APGD-CE", "APGD-T", "FAB-T", "Square"), strict=True))


@dataclass(frozen=True)
class Paper:
    """What an entry does not know of the paper that its model is submitted with."""

    title: str
    authors: str | None = None
    """Separated by ", "; only a rehearsal does without."""
    url: str | None = None
    """Only a rehearsal does without."""
    venue: str | None = None
    """Such as "ICML 2024"."""
    reported: float | None = None
    """The paper's own robust accuracy, in percent."""
    footnote: str | None = None
    """Plain text."""


@dataclass(frozen=True)
class Claim:
    """A model, what was measured of it and what its author says, ready to be written down."""

    model_id: str
    entry: Entry
    protocol: Protocol
    paper: Paper

    @property
    def threat(self) -> ThreatModel:
        """The threat model."""
        return ThreatModel.parse(self.entry.threat)

    @property
    def rehearsal(self) -> str | None:
        """What every file says at its top where RobustBench has no leaderboard for the data set; else None."""
        if any(dataset == self.entry.dataset for dataset, _ in LEADERBOARDS):
            return None
        return (
            f"REHEARSAL, NOT FOR SUBMISSION: measured on {self.entry.dataset} at {self.entry.threat}, "
            "for which RobustBench has no leaderboard."
        )

    @property
    def dataset(self) -> str:
        """RobustBench's name of the data set; a rehearsal plays CIFAR-10."""
        return "cifar10" if self.rehearsal else self.entry.dataset

    @property
    def module(self) -> str:
        """Name of the architecture's Python module."""
        return re.sub(r"\W", "_", self.model_id).lower()

    @property
    def factory(self) -> str:
        """Name of the class in it that makes the model, without arguments."""
        return re.sub(r"\W", "_", self.model_id) + "Net"

    @property
    def eps(self) -> str:
        """The radius, as RobustBench writes it."""
        return self.entry.threat.partition(":")[2]

    @property
    def doubts(self) -> str | None:
        """Why AutoAttack's number may not be believed, in words; None where the masking court cleared it."""
        court, flags = self.entry.measurements.get("masking"), self.entry.measurements["autoattack"].flags
        if court is None or court.status == "failed":
            found = ["No masking court sat on this model."]
        else:
            verdict = court.values.get("verdict") or "none, because the model is at chance"
            found = [] if verdict == "clear" else [f"The masking court's verdict is: {verdict}."]
        return " ".join([*found, *(f"AutoAttack's number is flagged: {flag.rstrip('.')}." for flag in flags)]) or None

    @property
    def external(self) -> str | None:
        """The best known robust accuracy, where PGD-20 breaks images that AutoAttack leaves robust; else None."""
        autoattack, pgd = (self.entry.measurements.get(name) for name in ("autoattack", "pgd20"))
        if autoattack is None or pgd is None or "accuracy" not in pgd.verdicts:
            return None
        both = np.logical_and(*(unpack(found.verdicts["accuracy"], found.n) for found in (autoattack, pgd)))
        worst = percent(100 * float(both.mean()))
        return None if worst == self.accuracy("autoattack") else worst

    def accuracy(self, metric: str, value: str = "accuracy") -> str:
        """Return an accuracy as RobustBench writes it; errors as :meth:`number`."""
        return percent(self.number(metric, value))

    def number(self, metric: str, value: str) -> float:
        """Return a number of the entry.

        Raises:
            InputError: the entry lacks it.
        """
        found = self.entry.measurements[metric].values.get(value)
        if not isinstance(found, int | float):
            raise InputError(f'The measurement {metric} of the entry has no number "{value}".')
        return float(found)


def record(claim: Claim) -> Rehearsal:
    """Return RobustBench's record of the model.

    Raises:
        InputError: the author's part has not its form.
    """
    paper, title = claim.paper, claim.paper.title
    year = next(iter(re.findall(r"\d{4}", claim.model_id)), "")
    content: dict[str, object] = {
        "link": paper.url or _NO_LINK,
        "name": f"REHEARSAL, NOT FOR SUBMISSION: {title}" if claim.rehearsal else title,
        "authors": paper.authors or _NO_AUTHORS,
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": claim.entry.dataset,
        "venue": paper.venue or (f"Rehearsal {year}" if claim.rehearsal else "N/A"),
        "architecture": architecture_name(claim),
        "eps": claim.eps,
        "clean_acc": claim.accuracy("clean"),
        "reported": "" if paper.reported is None else percent(paper.reported),
        "autoattack_acc": claim.accuracy("autoattack"),
    }
    if claim.external is not None:
        content["external"] = claim.external
    if paper.footnote is not None:
        content["footnote"] = html.escape(paper.footnote, quote=False)
    if claim.doubts is None:
        content["unreliable"] = False
    return checked(Rehearsal if claim.rehearsal else ModelInfo, content, "RobustBench's record of the model")


def architecture_name(claim: Claim) -> str:
    """Return the network's name as RobustBench shows it, such as ``WideResNet-28-10`` or ``PreActResNet-18``."""
    name = claim.entry.subject.architecture
    for own, shown in _FAMILIES.items():
        name = re.sub(f"^{own}-(?=[0-9])", f"{shown}-", name)
    return name.removeprefix(TIMM_PREFIX)


def architecture(claim: Claim, model: Classifier, config: BackboneConfig) -> str:
    """Return the source of a module that needs nothing of this project, with a class that makes the model.

    It consists of the source that made the model here, so that it cannot drift from it.
    """
    mean, std = ([float(value) for value in buffer.flatten()] for buffer in (model.mean, model.std))
    sources = [_Source(errors, ("InputError",)), _Source(splitting), _Source(wide_resnet)]
    sources.append(_Source(classifier, ("Classifier",)))
    if config.architecture.startswith(TIMM_PREFIX):
        from methods.backbones import timm_adapter

        sources += [_Source(errors, ("nearest",)), _Source(timm_adapter)]
        name = config.architecture.removeprefix(TIMM_PREFIX)
        network = f'timm_network("{name}", {model.num_classes}, {model.image_shape}, {config.norm_momentum})'
    elif config.architecture in get_args(resnet.Shape):
        sources.append(_Source(resnet))
        network = (
            f'ResNet("{config.architecture}", {config.widen}, {model.image_shape[0]}, {model.num_classes}, '
            f"{config.norm_momentum})"
        )
    else:
        network = (
            f'WideResNet("{config.architecture}", {config.depth}, {config.widen}, {model.image_shape[0]}, '
            f'{model.num_classes}, "{config.norm}", {config.norm_momentum}, {config.energy_head})'
        )
    parts = [
        f'{_comment(claim)}"""{claim.model_id}: {architecture_name(claim)}, with its input normalisation.\n\n'
        'Trilemma (MIT licence) wrote it from the source that trained the model.\n"""\n\n'
        + "\n".join(["from __future__ import annotations", "", *_imports(sources)]),
        *(text for source in sources for text in source.definitions.values()),
        f"class {claim.factory}(Classifier):\n"
        f'    """The network as it was trained: images [B,C,H,W] in [0,1] to logits."""\n\n'
        "    def __init__(self) -> None:\n"
        f"        network = {network}\n"
        f"        super().__init__(network, {model.num_classes}, {model.image_shape}, {mean}, {std})",
    ]
    return "\n\n\n".join(parts) + "\n"


class _Source:
    """What stands in a module below its imports, or the definitions named alone."""

    def __init__(self, module: ModuleType, names: tuple[str, ...] = ()) -> None:
        text = inspect.getsource(module)
        lines, self.statements = text.splitlines(), ast.parse(text).body
        self.definitions: dict[ast.stmt, str] = {}
        for node in self.statements[1:]:  # below the docstring
            named = not names or getattr(node, "name", None) in names
            if named and not isinstance(node, ast.Import | ast.ImportFrom):
                self.definitions[node] = "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _imports(sources: Sequence[_Source]) -> list[str]:
    """Return the imports of the modules, this project's left out, that their definitions need."""
    used = {
        name.id
        for source in sources
        for node in source.definitions
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }
    whole, parts = set[str](), dict[str, set[str]]()
    for node in (node for source in sources for node in source.statements):
        if isinstance(node, ast.Import):
            whole |= {f"import {alias.name}" for alias in node.names if alias.name in used}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] != "methods":
            needed = {ast.unparse(alias) for alias in node.names if (alias.asname or alias.name) in used}
            parts.setdefault(node.module, set()).update(needed)
    named = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(parts.items()) if names]
    return [*sorted(whole), *named]


def zoo_entry(claim: Claim) -> str:
    """Return what is pasted into ``robustbench/model_zoo/<dataset>.py``."""
    return (
        f"{_comment(claim)}"
        f"# For robustbench/model_zoo/{claim.dataset}.py: the import, and the entry for the dict "
        f"`{claim.threat.norm.lower()}`.\n"
        f"from robustbench.model_zoo.architectures.{claim.module} import {claim.factory}\n\n"
        f'("{claim.model_id}", {{\n'
        f'    "model": {claim.factory},\n'
        f'    "gdrive_id": "{GDRIVE_ID}",\n'
        "}),\n"
    )


def issue(claim: Claim, digest: str) -> str:
    """Return RobustBench's issue template "New Model(s)", filled in, under its title.

    Args:
        claim: what is submitted.
        digest: SHA-256 of the file of the weights.
    """
    entry, paper = claim.entry, claim.paper
    reported = "" if paper.reported is None else f" (the paper reports {percent(paper.reported)}%)"
    known, court = claim.external, entry.measurements.get("masking")
    doubts = (
        f"The masking court, which sat on the first {court.n if court else 0} images, found nothing, and nothing is "
        "flagged: `unreliable` is false in the JSON."
    )
    if claim.doubts:
        doubts = f"{claim.doubts} So `unreliable` is left out of the JSON, which the leaderboard shows as Unknown."
    attack = f"AutoAttack standard (pyautoattack {_version(entry, 'pyautoattack')})"
    lines = [
        f"Title of the issue: `[New Model] {claim.model_id}`",
        "",
        "# Paper Information",
        "",
        f"- **Paper Title**: {paper.title}",
        f"- **Paper URL**: {paper.url or _NO_LINK}",
        f"- **Paper authors**: {paper.authors or _NO_AUTHORS}",
        "",
        "# Leaderboard Claim(s)",
        "",
        "## Model 1",
        "",
        f"- **Architecture**: {architecture_name(claim)}",
        f"- **Dataset**: {entry.dataset}",
        f"- **Threat Model**: {claim.threat.norm}",
        f"- **eps**: {claim.eps}",
        f"- **Clean accuracy**: {claim.accuracy('clean')}%",
        f"- **Robust accuracy**: {claim.accuracy('autoattack')}%{reported}",
        "- **Additional data**: false",
        f"- **Evaluation method**: {attack} on all {entry.data.n:,} test images, in order; see `autoattack.log`.",
        f"  - {doubts}",
        *([f"  - Best known robust accuracy, AutoAttack and PGD-20 together: {known}%."] if known else []),
        *(f"  - Of the model: {flag}." for flag in entry.subject.flags),
        f"- **Checkpoint and code**: `{claim.model_id}.pt` (SHA-256 {digest}) and `{claim.module}.py` of this kit "
        "(put their URL here)",
        "",
        "# Model Zoo:",
        "",
        "- [ ] I want to add my models to the Model Zoo (check if true)",
        f"- [ ] I use an architecture that is included among those [here]({_ARCHITECTURES}) or in `timm`. If not, I "
        "added the link to the architecture implementation so that it can be added.",
        "- [ ] I agree to release my model(s) under MIT license (check if true) **OR** under a custom license, located "
        "here: (put the custom license URL here if a custom license is needed. If no URL is specified, we assume that "
        "you are fine with MIT)",
    ]
    return _banner(claim) + "\n".join(lines) + "\n"


def autoattack_log(claim: Claim) -> str:
    """Return what the entry has on AutoAttack: accuracies in cascade, seeds, versions, and its warnings verbatim."""
    entry, found = claim.entry, claim.entry.measurements["autoattack"]
    size, root = claim.protocol.shard, claim.protocol.seed
    starts = range(0, entry.data.n, size)
    versions = ", ".join(f"{name} {_version(entry, name)}" for name in ("pyautoattack", "torch"))
    ran = entry.provenance
    lines = [
        f"AutoAttack standard, {claim.threat.norm}, eps {claim.eps}",
        f"model: {entry.recipe}, {entry.subject.architecture}, weights SHA-256 {entry.subject.weights_digest}",
        f"images: all {found.n} test images of {entry.dataset}, in order, SHA-256 {entry.data.digests.get('test')}",
        f"protocol: {entry.protocol.id} ({entry.protocol.hash})",
        f"software: {versions}, Python {ran.get('python')}, commit {ran.get('commit')}",
        f"device: {ran.get('device')} ({ran.get('device_name')})",
        "",
        f"initial accuracy: {claim.accuracy('autoattack', 'clean_accuracy')}%",
        *(
            f"robust accuracy after {title}: {claim.accuracy('autoattack', f'after_{name}')}% "
            f"({claim.number('autoattack', f'seconds_{name}'):.1f} s)"
            for name, title in _TITLES.items()
        ),
        f"robust accuracy: {claim.accuracy('autoattack')}%",
        f"largest perturbation: {claim.number('autoattack', 'max_perturbation')}",
        "",
        *(f"warning: {flag}" for flag in found.flags or ["none"]),
        "",
        f"seeds: of root {root}, one for each shard of {size} images, given to each of AutoAttack's attacks",
        *(
            f"images {start} to {min(start + size, entry.data.n) - 1}: {derive(root, STREAM, index)}"
            for index, start in enumerate(starts)
        ),
    ]
    return (f"{claim.rehearsal}\n" if claim.rehearsal else "") + "\n".join(lines) + "\n"


def readme(claim: Claim) -> str:
    """Return what to do with each file of the kit."""
    lines = [
        f"# {claim.model_id}",
        "",
        f"{claim.paper.title}: {architecture_name(claim)} on {claim.entry.dataset} at {claim.entry.threat}.",
        "",
        f"1. `issue.md`: open an [issue New Model(s)]({_REPOSITORY}/issues/new/choose) with this title",
        "   and text. Say where checkpoint and code are to be found, and tick what you agree to.",
        f"2. `{claim.model_id}.pt`, the weights: upload this plain state dict to Google Drive, readable for everybody.",
        "3. For a pull request, which spares the maintainers the work:",
        f"   - `{claim.module}.py`, the architecture, goes to `robustbench/model_zoo/architectures/`;",
        f"   - `zoo_entry.py` goes into `robustbench/model_zoo/{claim.dataset}.py`, with the Google Drive ID;",
        f"   - `{record_path(claim)}` goes to the same place there.",
        "4. `autoattack.log`, how the robust accuracy was measured: attach it to the issue.",
        "5. `proof.json`, what RobustBench's own code made of these files, and their SHA-256, is for you.",
        "",
        "After an edit of the JSON: `python -m benchmark export check FILE`.",
    ]
    if claim.rehearsal:
        lines[3:3] = ["", "Nothing of this is to be sent to RobustBench. With an entry of CIFAR it would be done so:"]
    return _banner(claim) + "\n".join(lines) + "\n"


def record_path(claim: Claim) -> str:
    """Return where RobustBench keeps the record of the model."""
    return f"model_info/{slug(claim.entry.dataset)}/{claim.threat.norm}/{claim.model_id}.json"


def _version(entry: Entry, package: str) -> str:
    return str(entry.provenance.get("versions", {}).get(package))


def _comment(claim: Claim) -> str:
    return f"# {claim.rehearsal}\n" if claim.rehearsal else ""


def _banner(claim: Claim) -> str:
    return f"> **{claim.rehearsal}**\n\n" if claim.rehearsal else ""
