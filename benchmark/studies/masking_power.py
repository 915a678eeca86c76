"""The detection power of the masking checks: how often they catch planted failures, and suspect honest models.

A checkpoint is taken for honest unless its training ended in a collapse, by its own record: what that left behind may
well deserve suspicion, and its cases are counted apart. Each failure of :mod:`benchmark.studies.planted_failures` is
planted in some of the honest ones. What comes out is a table, and beside it every check of every case.
"""

import statistics
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmark.attacks import masking_checks
from benchmark.engines import Engine, WorkFailed
from benchmark.engines.jobs import Job
from benchmark.evaluation.runner import prepare
from benchmark.evaluation.selection import Selection
from benchmark.evaluation.shards import percent
from benchmark.metrics import masking, pgd, sweep
from benchmark.models.spec import DEFAULT_THREAT, DataSpec
from benchmark.models.subject import Subject, from_checkpoint
from benchmark.results.layout import MASKING_POWER, STORE, read_entries, table_folder, weights_path
from benchmark.results.store import Store
from benchmark.specs.protocol import Protocol, default, threat_of
from benchmark.studies import planted_failures
from benchmark.studies.detection_rates import FILES, Case, Study
from benchmark.studies.planted_failures import FAILURES, Failure
from methods.data import Dataset
from methods.errors import InputError
from methods.files import write_text
from methods.primitives.modes import frozen
from methods.primitives.threat import ThreatModel
from methods.training.devices import select_device
from methods.training.progress import progress as shown

_GRID = {"eps": [0, 0.5, 1, 2, 4, 8], "steps": [1, 5, 20, 50]}
"""The sweep's grid, coarser than its default: its ends and its middle decide the checks."""
_Planting = tuple[Path, str | None]
"""A checkpoint, and the name of what is planted in it."""


def measure_power(
    dataset: str,
    threat: str | None,
    leaderboards: Path,
    *,
    runs: Path = Path("runs"),
    device: str = "auto",
    engine: Engine | None = None,
) -> tuple[Study, Path]:
    """Measure the power of the masking checks on the checkpoints whose weights lie beside the entries of a table.

    Without a threat model the table is that of the data set's standard protocol. What was found is returned with the
    folder that holds it, beside the entries.

    Raises:
        InputError: no such table, or none of its entries has its weights beside it.
    """
    place, data = select_device(device), DataSpec(dataset).load()
    chosen = threat or threat_of(default(data.name)) or DEFAULT_THREAT
    folder = table_folder(leaderboards, data.name, chosen)
    honest, collapsed = {}, {}
    for entry in read_entries(folder).values():
        path = weights_path(folder, entry)
        if path.is_file():
            (collapsed if entry.training.get("collapse") else honest)[path] = entry
    if not honest:
        raise InputError(f"No entry of {data.name} at {chosen} below {leaderboards} has its weights beside it.")
    output, store = folder / MASKING_POWER, runs / STORE
    found = study(
        list(honest), data, output, collapsed=list(collapsed), threat=chosen, device=place, engine=engine, store=store
    )
    return found, output


def study(
    checkpoints: Sequence[Path],
    dataset: Dataset,
    output: Path | None = None,
    *,
    collapsed: Sequence[Path] = (),
    bases: Sequence[Path] | None = None,
    threat: str | None = None,
    config: masking.Config | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    progress: bool = True,
    engine: Engine | None = None,
    store: Path,
) -> Study:
    """Apply the masking checks to every checkpoint, as it is and with failures planted.

    The same arguments give the same files, on the same machine.

    Args:
        checkpoints: honest ones, weights files or run folders.
        collapsed: those whose training ended in a collapse.
        dataset: on whose first test images.
        output: the folder to write :data:`FILES` into; None: write nothing.
        bases: checkpoints to plant every failure in; None: the :func:`extremes`.
        threat: such as ``Linf:8/255``; None: that of the data set's standard protocol.
        config: settings of the masking checks; None: the default ones, with half of Square's queries.
        seed: root of every random stream.
        device: by default the CPU.
        progress: show it on stderr, with an ETA.
        engine: whose workers share the cases; None: this process.
        store: folder of the store, from which an interrupted study continues.

    Raises:
        InputError: no checkpoint, or one that is none or that is no classifier of this data set.
        WorkFailed: workers died of a case.
    """
    if not checkpoints:
        raise InputError("The power of the masking checks is measured on checkpoints, and there are none.")
    device = device or torch.device("cpu")
    settings = protocol(dataset, threat, config, seed)
    every = (*checkpoints, *collapsed)
    total = len(every) + len(FAILURES) * (2 if bases is None else len(bases))
    engine = engine or Engine()
    cases: list[Case] = []

    def checked(cases: Sequence[_Planting]) -> Iterable[Case | None]:
        checking = [
            Checking(
                path,
                failure,
                dataset,
                settings,
                device,
                store,
                name=number,
                title=f"{path.stem}, {failure or 'as it is'}",
                kind="checks",
                gpus=int(device.type == "cuda"),
            )
            for number, (path, failure) in enumerate(cases)
        ]
        return _checked(checking, engine)

    # Several workers have a view of their own.
    with shown("masking checks", total) if progress and engine.alone else nullcontext(lambda *_: None) as advance:
        for place, case in enumerate(checked([(path, None) for path in every])):
            assert case is not None
            cases.append(replace(case, collapsed=place >= len(checkpoints)))
            advance(len(cases), f"{case.subject}: {case.verdict}")
        chosen = extremes(checkpoints, cases[: len(checkpoints)]) if bases is None else bases
        plantings = [(path, failure.name) for path in chosen for failure in FAILURES]
        for done, case in enumerate(checked(plantings), len(every) + 1):
            if case is not None:
                cases.append(case)
                advance(done, f"{case.subject}, {case.failure}: {case.verdict}")
    found = Study(dataset.name, settings, min(settings.config(masking.NAME).images, len(dataset.test)), tuple(cases))
    if output is not None:
        write_text(output / FILES[0], found.markdown())
        write_text(output / FILES[1], found.csv())
    return found


@dataclass(frozen=True)
class Checking(Job):
    """Apply the masking checks to one checkpoint, with a failure planted in it, or as it is."""

    path: Path
    failure: str | None
    dataset: Dataset
    protocol: Protocol
    device: torch.device
    store: Path
    """Folder of the store."""

    def __call__(self, kept: dict[Any, Any]) -> Case | None:
        """Return what the checks find; None where the failure cannot be planted."""
        planted_failure = next((failure for failure in FAILURES if failure.name == self.failure), None)
        with suppress(planted_failures.Unplantable):
            subject = from_checkpoint(self.path, self.device)
            return check(subject, self.dataset, self.protocol, Store(self.store), planted_failure)
        return None


def _checked(jobs: Sequence[Checking], engine: Engine) -> Iterable[Case | None]:
    """Return what the checks find in each, in their order."""
    if engine.alone:
        return (job({}) for job in jobs)
    ended = {one.job.name: one for one in engine.run(jobs, {}, Path())}
    if errors := [one.error for one in ended.values() if one.error is not None]:
        raise WorkFailed(errors[0])
    return [ended[job.name].value for job in jobs]


def check(subject: Subject, dataset: Dataset, protocol: Protocol, store: Store, failure: Failure | None = None) -> Case:
    """Apply the masking checks to one model, with a failure planted in it, or as it is.

    Raises:
        Unplantable: the failure cannot be planted in this model.
    """
    stated = ThreatModel.parse(protocol.threat)
    tried, attacks = subject, protocol
    if failure is not None:
        tried = planted_failures.plant(failure, subject)
        radius = ThreatModel(stated.norm, stated.eps * failure.radius)
        attacks = protocol.model_copy(update={"threat": str(radius)})
    (data,) = prepare(tried, dataset, attacks, Selection([masking.NAME]), store=store)
    with frozen(tried.model):
        arrays, checks = masking.outcomes_and_checks(data, stated)
    seed = subject.metadata.get("seed")
    return Case(
        subject=subject.name if seed is None else f"{subject.name} s{seed}",
        weights=subject.digest,
        failure=None if failure is None else failure.name,
        clean=percent(arrays["clean"]),
        pgd20=percent(arrays["pgd"]),
        checks=tuple(checks),
        verdict=masking_checks.verdict(checks),
    )


def protocol(
    dataset: Dataset, threat: str | None = None, config: masking.Config | None = None, seed: int = 0
) -> Protocol:
    """Return how :func:`study` measures, given some of its arguments.

    Raises:
        InputError: no threat model is given, and none is standard for the data set.
    """
    config = config or masking.Config(queries=500)
    threat = threat or threat_of(default(dataset.name))
    if threat is None:
        raise InputError(f"No standard protocol says how {dataset.name} is attacked: name a threat model.")
    metrics = {pgd.NAME: {}, sweep.NAME: _GRID, masking.NAME: config.model_dump(mode="json")}
    return Protocol(id="masking-power-v1", threat=str(ThreatModel.parse(threat)), seed=seed, metrics=metrics)


def extremes(checkpoints: Sequence[Path], cases: Sequence[Case]) -> list[Path]:
    """Return the checkpoint that is least robust, and the most robust one, among the clear ones that are no less
    accurate than their median: in a poor classifier there is little for a failure to hide.
    """
    clear = [place for place, case in enumerate(cases) if case.verdict == "clear"]
    if not clear:
        return []
    median = statistics.median(cases[place].clean for place in clear)
    robustness = [(cases[place].pgd20, place) for place in clear if cases[place].clean >= median]
    return [checkpoints[place] for _, place in dict.fromkeys((min(robustness), max(robustness)))]
