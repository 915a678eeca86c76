"""A run: one training of a plan, and the evaluation of its checkpoint."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmark.models.spec import ModelSpec
from benchmark.results.entry import Cell
from benchmark.runs.jobs import Evaluation, EvaluationJob, TrainingJob, evaluation_job, gpus
from benchmark.runs.plan import Plan
from benchmark.specs.protocol import Protocol
from methods.errors import InputError
from methods.training.config import Experiment
from methods.training.distributed import check_devices
from methods.training.run_folder import run_folder
from methods.training.setup import check


@dataclass(frozen=True)
class Run:
    """A run of a plan, and what is measured of it for which entry, where anything is."""

    plan: Plan
    experiment: Experiment
    evaluation: Evaluation | None = None
    protocol: Protocol | None = None
    leaderboards: Path | None = None
    cell: Cell | None = None
    """The cell of an ablation that the run stands for."""
    evidence: bool = True
    """Whether to keep the bundle, and a copy of the weights, with which the entry can be verified."""
    after: frozenset[Path] = frozenset()
    """Folders of runs that must be trained before it is measured."""

    @cached_property
    def folder(self) -> Path:
        """Where it lies."""
        return run_folder(self.plan.runs, self.experiment, self.plan.data(self.experiment))

    @property
    def title(self) -> str:
        """Which run, and where a protocol is not that of its plan, under which."""
        name = f"{self.cell.name} {self.cell.row}" if self.cell else self.experiment.recipe
        apart = self.protocol is not None and self.protocol.hash != self.plan.evaluation_protocol.hash
        under = f" under {self.protocol.id} at {self.protocol.threat}" if self.protocol and apart else ""
        return f"{name} on {self.experiment.dataset}, seed {self.experiment.seed}{under}"

    def check(self, here: bool) -> None:
        """Refuse what cannot be trained or measured.

        Args:
            here: whether this machine must have the device.
        """
        if self.evaluation is not None and self.protocol is not None:
            self.evaluation.selection.check(self.protocol, self.plan.dataset)
        devices = self.plan.devices
        if here:
            check_devices(self.plan.torch_device, devices)
        elif devices > 1:
            raise InputError("--devices spreads a training over devices of this machine: it goes with --engine local.")
        check(self.experiment, self.plan.data(self.experiment), devices)

    @property
    def model(self) -> ModelSpec:
        """The checkpoint that is measured."""
        return ModelSpec(self.folder, "best" if self.evaluation is None else self.evaluation.which)

    def training(self) -> TrainingJob:
        """Return the job that trains it."""
        experiment, plan = self.experiment, self.plan
        return TrainingJob(
            experiment=experiment,
            data=plan.data_spec(experiment),
            device=plan.device,
            runs=plan.runs,
            folder=self.folder,
            devices=plan.devices,
            name=self.folder,
            title=f"train {experiment.recipe} on {experiment.dataset}, seed {experiment.seed}",
            kind="training",
            gpus=gpus(plan.device),
        )

    def measuring(self, number: int) -> list[EvaluationJob]:
        """Return the jobs that measure it, the one that assembles the parts last.

        Args:
            number: the run's, among all.
        """
        if self.evaluation is None or self.protocol is None:
            return []
        data, after = self.plan.data_spec(self.experiment), self.after | {self.folder}
        job = evaluation_job(
            self.evaluation, self.model, data, self.protocol, self.plan.runs, self.title, run=number, after=after
        )
        return job.parts(len(self.plan.data(self.experiment).test))
