"""Submission kits for RobustBench: from an entry to a folder of what a new model there needs, and a proof of it.

A kit is refused where RobustBench would refuse the model: its rules are the standard attack on the whole test split at
the leaderboard's eps, by a model whose forward pass is deterministic and optimises nothing. What is written is then
given to RobustBench's own loader, test and generators, in a process of its own.

Data sets without a leaderboard there give a *rehearsal*: the same files and the same proof, marked as such. RobustBench
knows data sets by an enum, so that a rehearsal is registered as a model of CIFAR-10; its record says what it is of.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.evaluation import bundle, evidence
from benchmark.evaluation.verify import ROUNDING, CheckResult, measured_on, verify
from benchmark.models import output_probes
from benchmark.models.probes import FEW
from benchmark.models.subject import weights_digest
from benchmark.results.entry import Entry, read_entry, unpack
from benchmark.robustbench import architecture_file, model_info
from benchmark.robustbench import submission_files as files
from benchmark.robustbench import submission_proof as proof
from benchmark.robustbench.claim import Claim, Paper
from benchmark.robustbench.model_info import LEADERBOARDS, Rehearsal
from benchmark.specs import protocol as protocols
from benchmark.specs.protocol import Protocol
from methods.backbones import BackboneConfig
from methods.data import Dataset
from methods.errors import InputError
from methods.files import write, write_json, write_text
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import Checkpoint, load_checkpoint
from methods.training.config import overlay

_NEEDED = ("clean", "autoattack")
_STOCHASTIC, _ADAPTED = ("randomized defense", "draws noise"), ("dynamic defense",)
"""Words in flags that mark a model as stochastic, and as adapting to its input: those of AutoAttack and of
:mod:`benchmark.models.output_probes`."""
_QUICK = {"cifar10": 70.0, "cifar100": 45.0}
"""Data set -> the least clean accuracy, in percent, that RobustBench's quick test accepts."""
_TOLERANCE = 0.05
"""Difference, in percentage points, between a model's accuracy and its record that RobustBench's slow test allows."""


@dataclass(frozen=True)
class Kit:
    """A kit that was written, with its proof."""

    folder: Path
    rehearsal: str | None
    """What it says at the top of each file, where it is a rehearsal."""
    lines: list[CheckResult]

    @property
    def proven(self) -> bool:
        """Whether no part of the proof failed."""
        return all(line.passed is not False for line in self.lines)


def export(
    entry_file: Path,
    model_id: str,
    paper: Paper,
    *,
    checkpoint: Path | None = None,
    output: Path | None = None,
    device: torch.device | None = None,
    data: Path = Path("data"),
) -> Kit:
    """Write the kit of an entry, prove it, and return it, whether its proof holds or not.

    Args:
        entry_file, paper: the entry, and details of its paper.
        model_id: in RobustBench's form, such as ``Wang2023Better_WRN-28-10``.
        checkpoint: weights file or run folder; None: the copy beside the entries.
        output: the folder to write; None: ``submissions/<model_id>``.
        device: where accuracies are counted; None: the CPU, where logits are compared in any case.
        data: folder of downloaded data sets.

    Raises:
        InputError: RobustBench would not take the entry, or what is given does not fit; nothing is written.
    """
    entry = read_entry(entry_file)
    protocol = _accepted(entry, f"The entry {entry_file}")
    claim = Claim(model_info.check_id(model_id), entry, protocol, paper)
    if claim.rehearsal is None and None in (paper.authors, paper.url):
        raise InputError("RobustBench's records name the authors and a link: give --authors and --url.")
    record, log = files.record(claim), files.autoattack_log(claim)
    found = load_checkpoint(bundle.weights_file(entry_file, entry, checkpoint))
    if weights_digest(found.model) != entry.subject.weights_digest:
        raise InputError(f"{found.path} does not hold the weights that the entry {entry_file} is of.")
    loaded: dict[tuple[str, int | None], Dataset] = {}
    dataset = measured_on(entry, data, loaded)
    steady = output_probes.noise(found.model, dataset.test.unit(slice(0, FEW)))
    if not steady.fine:
        raise InputError(f"RobustBench takes deterministic models alone: {steady.sentence}.")

    folder = output or Path("submissions") / model_id
    digests = _write(folder, claim, record, log, found)
    lines = [evidenced(entry_file, checkpoint=checkpoint, device=device, data=data, loaded=loaded)]
    lines += _proof(folder, claim, found, dataset, device or torch.device("cpu"))
    found_out = {"checks": [asdict(line) for line in lines], "sha256": digests}
    write_json(folder / "proof.json", ({"REHEARSAL": claim.rehearsal} if claim.rehearsal else {}) | found_out)
    return Kit(folder, claim.rehearsal, lines)


def _accepted(entry: Entry, where: str) -> Protocol:
    """Return the protocol of an entry that RobustBench would take, or that can rehearse it; else raise InputError."""
    for refusal in _refusals(entry):
        raise InputError(f"{where} {refusal}")
    protocol = protocols.load(entry.protocol.id, entry.threat)
    if protocol.hash != entry.protocol.hash:
        raise InputError(
            f'{where} was measured under another "{entry.protocol.id}" than the one there is now (hash '
            f"{entry.protocol.hash}, not {protocol.hash}): evaluate again."
        )
    return protocol


def _refusals(entry: Entry) -> Iterator[str]:
    """Yield the reasons for which RobustBench would not take an entry, the plainest first."""
    if entry.subject.kind != "checkpoint":
        yield "is of a model from elsewhere, whose architecture file is not ours to write."
    n, of = entry.data.n, entry.data.of
    if entry.partial or n < of:
        yield f"is partial, {n} of {of} test images, and RobustBench's numbers are of all."
    if (role := entry.protocol.role) != "standard":
        yield (
            f'was measured under "{entry.protocol.id}", a protocol of the role {role}, and RobustBench compares models '
            "under the standard attack alone."
        )
    for metric in _NEEDED:
        found = entry.measurements.get(metric)
        if found is None:
            yield f"has no measurement {metric}, on which RobustBench's leaderboards rest."
        elif found.status == "failed":
            yield f"is no result: its measurement {metric} failed ({found.error})."
        elif "accuracy" not in found.verdicts:
            yield f"is older than verdicts per image, of which {metric} has none: evaluate again."
    threat = ThreatModel.parse(entry.threat)
    eps = LEADERBOARDS.get((entry.dataset, threat.norm))
    if eps is None and any(dataset == entry.dataset for dataset, _ in LEADERBOARDS):
        yield f"is at {threat}, and RobustBench has no {threat.norm} leaderboard of {entry.dataset}."
    if eps is not None and threat != ThreatModel(threat.norm, Fraction(eps)):
        yield (
            f"was attacked at {threat}, and RobustBench's leaderboard of {entry.dataset} is for {threat.norm}:{eps}."
        )
    if doubt := _flagged(entry, _STOCHASTIC):
        yield f"is of a model whose answers differ, and RobustBench takes deterministic ones: {doubt}."
    if doubt := _flagged(entry, _ADAPTED):
        yield f"is of a model that adapts to its input, which RobustBench does not take: {doubt}."


def _flagged(entry: Entry, words: tuple[str, ...]) -> str | None:
    """Return the first flag of an entry that contains one of ``words``; None where there is none."""
    flags = [*entry.subject.flags, *(flag for found in entry.measurements.values() for flag in found.flags)]
    return next((flag.rstrip(".") for flag in flags if any(word in flag for word in words)), None)


def _write(folder: Path, claim: Claim, record: Rehearsal, log: str, found: Checkpoint) -> dict[str, str]:
    """Write every file but the proof, and return the SHA-256 of each."""
    config = overlay(BackboneConfig(), found.metadata["backbone"], "backbone")
    state = {name: value.detach().clone().contiguous() for name, value in found.model.state_dict().items()}
    weights, place = f"{claim.model_id}.pt", claim.record_path
    write(folder / weights, lambda temporary: torch.save(state, temporary))
    model_info.write(folder / place, record)
    texts = {
        f"{claim.module}.py": architecture_file.source(claim, found.model, config),
        "zoo_entry.py": files.zoo_entry(claim),
        "issue.md": files.issue(claim, bundle.file_digest(folder / weights)),
        "autoattack.log": log,
        "README.md": files.readme(claim),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return {name: bundle.file_digest(folder / name) for name in (weights, place, *texts)}


def evidenced(entry_file: Path, **arguments: Any) -> CheckResult:
    """Say whether an entry's accuracies are those of its evidence; arguments as for :func:`verify`."""
    if read_entry(entry_file).evidence is None:
        return CheckResult("evidence", None, "the entry has none")
    try:
        found = verify(entry_file, **arguments)
    except InputError as error:
        return CheckResult("evidence", False, str(error))
    failed = [f"{line.check}: {line.detail}" for line in found.lines if line.passed is False]
    return CheckResult("evidence", not failed, "; ".join(failed) or "the entry is verified by its images")


def _proof(folder: Path, claim: Claim, found: Checkpoint, dataset: Dataset, device: torch.device) -> list[CheckResult]:
    """Give the kit to RobustBench, in a fresh process and a temporary folder, and check what comes back."""
    x, y = dataset.test.unit(), dataset.test.labels
    with torch.no_grad():
        logits = found.model(x[: proof.FEW])
    job = {
        "project": str(Path(__file__).resolve().parents[2]),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "model_id": claim.model_id,
        "architecture": str((folder / f"{claim.module}.py").resolve()),
        "factory": claim.factory,
        "weights": str((folder / f"{claim.model_id}.pt").resolve()),
        "model_info": "model_info",
        "dataset": claim.dataset,
        "threat": claim.entry.threat,
    }
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        torch.save({"x": x, "y": y, "logits": logits}, place / "images.pt")
        record = place / "model_info" / claim.dataset / claim.threat.norm / f"{claim.model_id}.json"
        record.parent.mkdir(parents=True)
        shutil.copyfile(folder / claim.record_path, record)
        command = [sys.executable, "-P", proof.__file__, work]
        finished = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if finished.returncode:
            last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
            return [CheckResult("proof", False, f"the process died with status {finished.returncode}: {last}")]
        result: dict[str, Any] = json.loads((place / "found.json").read_text(encoding="utf-8"))
    return [
        _same("architecture file", result["alone"]),
        _same("RobustBench's load_model", result["robustbench"]),
        *_accuracies(claim, result["robustbench"], logits, y[: proof.FEW]),
        *_consumers(result["consumers"]),
    ]


def _same(check: str, found: dict[str, Any]) -> CheckResult:
    """Check a model that was loaded from the kit."""
    if "error" in found:
        return CheckResult(check, False, found["error"])
    wrong = [f"it needs this project: {', '.join(found['imported'])}"] if found.get("imported") else []
    wrong += ["the zoo has a model of that ID"] if found.get("taken") else []
    wrong += ["it is in training mode"] if found["training"] else []
    wrong += [] if found["equal"] else [f"its logits differ from the checkpoint's by up to {found['difference']:.3g}"]
    return CheckResult(check, not wrong, "; ".join(wrong) or "strict, and its logits are the checkpoint's, bit for bit")


def _accuracies(claim: Claim, found: dict[str, Any], logits: Tensor, y: Tensor) -> Iterator[CheckResult]:
    """Check clean accuracies as RobustBench's test does, and a rehearsal's against the entry."""
    few = f"clean accuracy on {len(y)} images"
    if "error" in found:
        yield CheckResult(few, False, "there is no model to count on")
        return
    if claim.rehearsal is None:
        least = _QUICK[claim.dataset]
        text = f"{found['few']:.2f} %, and RobustBench's test asks for over {least:g} %"
        yield CheckResult(few, found["few"] > least, text)
    else:
        clean = claim.entry.measurements["clean"]
        claimed = 100 * float(unpack(clean.verdicts["accuracy"], clean.n)[: len(y)].mean())
        near = 100 * float((evidence.logit_margin(logits, y).abs() <= ROUNDING).double().mean())
        text = f"{found['few']:.2f} %, and {claimed:.2f} % in the entry"
        yield CheckResult(few, abs(found["few"] - claimed) <= near + 1e-6, text)
    recorded = float(claim.accuracy("clean"))
    text = f"{found['all']:.2f} %, and {recorded:.2f} % in the record"
    holds = abs(round(found["all"], 2) - recorded) <= _TOLERANCE
    yield CheckResult(f"clean accuracy on all {claim.entry.data.n:,} images", holds, text)


def _consumers(found: dict[str, Any]) -> list[CheckResult]:
    if "error" in found:
        return [CheckResult("RobustBench's generators", False, found["error"])]
    return [
        CheckResult(f"RobustBench's {name}", True, f"{len(text)} characters" if text else "nothing, for a venue of N/A")
        for name, text in found["texts"].items()
    ]
