"""The entry of a measured run, with its evidence and its picture."""

from pathlib import Path
from typing import Any

from benchmark.evaluation import bundle
from benchmark.leaderboard import sample_grids
from benchmark.results.entry import DataInfo, Entry, ProtocolInfo, SubjectInfo
from benchmark.results.layout import STORE, picture_path, write_entry
from benchmark.results.store import Store
from benchmark.results.training_record import training_record
from benchmark.runs.jobs import Measured
from benchmark.runs.run import Run
from benchmark.specs import recipes
from methods.training.checkpoint import FILES
from methods.training.run_folder import read_manifest


def record(run: Run, measured: Measured) -> Path:
    """Write the entry of a measured run, and its evidence; return the entry's file.

    Raises:
        InputError: a file cannot be written, or the run's log is damaged.
    """
    assert run.evaluation is not None
    assert run.protocol is not None
    assert run.leaderboards is not None
    dataset, store = run.plan.data(run.experiment), Store(run.plan.runs / STORE)
    entry = _entry(run, measured)
    # A bundle holds what was added to the test images, and `verify` does not know their noise.
    kept = run.evidence and not run.protocol.noise
    digest = bundle.write(run.leaderboards, entry, store, run.folder / FILES[run.model.which]) if kept else None
    path = write_entry(run.leaderboards, entry.model_copy(update={"evidence": digest}))
    generated = measured.measurements.get("generation")
    if generated is not None and (panels := sample_grids.panels_of(generated, store)):
        title = f"{run.experiment.recipe} on {dataset.name}, seed {run.experiment.seed}"
        sample_grids.write_panels(picture_path(path), title, panels, dataset.classes)
    return path


def _entry(run: Run, measured: Measured) -> Entry:
    assert run.protocol is not None
    dataset, manifest, experiment = run.plan.data(run.experiment), read_manifest(run.folder), run.experiment
    n = next(iter(measured.measurements.values())).n
    training = training_record(run.folder, manifest)
    return Entry(
        recipe=experiment.recipe,
        method=experiment.method,
        dataset=dataset.name,
        threat=run.protocol.threat,
        seed=experiment.seed,
        config_digest=manifest["digest"],
        ablation=run.cell,
        subject=_with_collapse(measured.subject, training.get("collapse")),
        data=DataInfo(digests=dict(dataset.digests), n=n, of=len(dataset.test)),
        partial=n < len(dataset.test),
        protocol=ProtocolInfo(id=run.protocol.id, hash=run.protocol.hash, role=run.protocol.role),
        measurements=measured.measurements,
        training=training
        | {"threat": experiment.threat, "budget": experiment.budget, "settings": experiment.resolved()},
        provenance=measured.provenance,
        overrides=recipes.flat(run.plan.changes),
    )


def _with_collapse(subject: SubjectInfo, collapse: dict[str, Any] | None) -> SubjectInfo:
    """Return what is known of a model, with the doubt that its training collapsed, where it did."""
    if collapse is None:
        return subject
    cause, epoch = collapse["cause"], collapse["epoch"]
    doubt = f"the training collapsed ({cause}) and was stopped in epoch {epoch:.1f}; the weights are older"
    return subject.model_copy(update={"flags": [*subject.flags, doubt]})
