"""Text files of a submission kit for RobustBench: pure functions of a claim."""

import html
import re

from benchmark.attacks.autoattack import STREAM
from benchmark.attacks.cascade import STANDARD
from benchmark.results.entry import Entry
from benchmark.robustbench.claim import Claim
from benchmark.robustbench.model_info import ModelInfo, Rehearsal, percent
from benchmark.specs.schema import checked
from methods.primitives.random import derive

_NO_AUTHORS, _NO_LINK = "N/A", "https://robustbench.github.io/"
"""Authors and link of a rehearsal that names none."""
GDRIVE_ID = "TO BE FILLED IN"
"""Placeholder until the weights are uploaded: RobustBench refuses None."""
_REPOSITORY = "https://github.com/RobustBench/robustbench"
_ARCHITECTURES = f"{_REPOSITORY}/tree/master/robustbench/model_zoo/architectures"
_TITLES = dict(zip(STANDARD, ("APGD-CE", "APGD-T", "FAB-T", "Square"), strict=True))
"""Attack -> its name in AutoAttack's own log."""


def record(claim: Claim) -> Rehearsal:
    """Return RobustBench's record of the model; raise InputError where details of the paper have not its form."""
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
        "architecture": claim.architecture,
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


def zoo_entry(claim: Claim) -> str:
    """Return the lines to paste into ``robustbench/model_zoo/<dataset>.py``."""
    return claim.comment + (
        f"# For robustbench/model_zoo/{claim.dataset}.py: the import, and the entry for the dict "
        f"`{claim.threat.norm.lower()}`.\n"
        f"from robustbench.model_zoo.architectures.{claim.module} import {claim.factory}\n\n"
        f'("{claim.model_id}", {{\n'
        f'    "model": {claim.factory},\n'
        f'    "gdrive_id": "{GDRIVE_ID}",\n'
        "}),\n"
    )


def issue(claim: Claim, digest: str) -> str:
    """Return RobustBench's issue template "New Model(s)", filled in; ``digest``: SHA-256 of the weights file."""
    entry, paper = claim.entry, claim.paper
    reported = "" if paper.reported is None else f" (the paper reports {percent(paper.reported)}%)"
    known, masking = claim.external, entry.measurements.get("masking")
    doubts = (
        f"The masking checks on the first {masking.n if masking else 0} images are clear, and nothing is flagged: "
        "`unreliable` is false in the JSON."
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
        f"- **Architecture**: {claim.architecture}",
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
    """Return AutoAttack's log, from the entry: accuracies after each attack, seeds, versions, and warnings verbatim."""
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
    """Return the kit's README: what to do with each file."""
    lines = [
        f"# {claim.model_id}",
        "",
        f"{claim.paper.title}: {claim.architecture} on {claim.entry.dataset} at {claim.entry.threat}.",
        "",
        f"1. `issue.md`: open an [issue New Model(s)]({_REPOSITORY}/issues/new/choose) with this title",
        "   and text. Say where checkpoint and code are to be found, and tick what you agree to.",
        f"2. `{claim.model_id}.pt`, the weights: upload this plain state dict to Google Drive, readable for everybody.",
        "3. For a pull request, which spares the maintainers the work:",
        f"   - `{claim.module}.py`, the architecture, goes to `robustbench/model_zoo/architectures/`;",
        f"   - `zoo_entry.py` goes into `robustbench/model_zoo/{claim.dataset}.py`, with the Google Drive ID;",
        f"   - `{claim.record_path}` goes to the same place there.",
        "4. `autoattack.log`, how the robust accuracy was measured: attach it to the issue.",
        "5. `proof.json`, what RobustBench's own code made of these files, and their SHA-256, is for you.",
        "",
        "After an edit of the JSON: `python -m benchmark export check FILE`.",
    ]
    if claim.rehearsal:
        lines[3:3] = ["", "Nothing of this is to be sent to RobustBench. With an entry of CIFAR it would be done so:"]
    return _banner(claim) + "\n".join(lines) + "\n"


def _version(entry: Entry, package: str) -> str:
    return str(entry.provenance.get("versions", {}).get(package))


def _banner(claim: Claim) -> str:
    return f"> **{claim.rehearsal}**\n\n" if claim.rehearsal else ""
