"""The one training loop.

Everything random is a pure function of (seed, stream name, step), so a run interrupted at any moment and started again
continues from its last checkpoint and ends, on a CPU, with the very bits of an uninterrupted run.

Every step is a line of log.jsonl, and a guard reads the lines: a collapse stops the run with a record, or sends it back
to the last good state with new streams and a lower learning rate.

On several devices every rank runs this loop, on its share of each batch. Rank 0 alone writes, and decides what is not
computed alike everywhere: what the guard says, and when to save.

What the loop is given is made in ``setup``; what it changes is a ``state``; what it leaves behind is described in
``run_folder``.
"""

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from methods.data import Dataset
from methods.errors import InputError
from methods.primitives import ranks
from methods.primitives.modes import first_statistics
from methods.primitives.random import derive
from methods.training.config import Experiment
from methods.training.distributed import check_devices, on_devices
from methods.training.guard import Alarm
from methods.training.heap import keep_freed_memory
from methods.training.method import Batch, Losses
from methods.training.progress import Advance, progress
from methods.training.provenance import provenance
from methods.training.run_folder import (
    RunLog,
    describe,
    no_log,
    open_log,
    read_manifest,
    run_folder,
    save_result,
    step_record,
    write_config,
    write_manifest,
    writes,
)
from methods.training.setup import check, set_up, streams
from methods.training.state import Best, Rollbacks, resume, save
from methods.training.validation import look, nonfinite_values, validate


class TrainingFailed(RuntimeError):
    """A training that collapsed and was stopped; the run's manifest says at which step, and why."""


def train(experiment: Experiment, dataset: Dataset, runs: Path, device: torch.device, devices: int = 1) -> Path:
    """Train, resume, or find already trained the run that an experiment describes; return its folder.

    What is trained does not depend on the number of ``devices`` but for rounding and sampler chains; with several,
    ``device`` is their kind. ``runs`` is the folder of all runs.

    Raises:
        TrainingFailed: the training collapsed, now or when it was last started; the manifest holds the record.
        InputError: a file of the run is foreign or cannot be written, or the guard watches what is not logged; or the
            machine has fewer devices, or the method is not trained on several.
        RankFailed: one of several devices failed; what was saved is resumed.
    """
    folder = run_folder(runs, experiment, dataset)
    record = read_manifest(folder)
    if record.get("status") == "finished":
        return folder
    if record.get("status") == "failed":
        raise TrainingFailed(f"{record['error']} Delete {folder} to train it again.")
    if devices == 1:
        _train(experiment, dataset, folder, device)
        return folder
    check_devices(device, devices)
    check(experiment, dataset, devices)
    on_devices(
        # A copy, without the digests that the data set keeps and no pickle takes.
        partial(_train, experiment, replace(dataset), folder),
        device,
        devices,
        _title(experiment, dataset),
        (InputError, TrainingFailed),
    )
    return folder


def _title(experiment: Experiment, dataset: Dataset) -> str:
    return f"{experiment.recipe} on {dataset.name}, seed {experiment.seed}"


def _train(experiment: Experiment, dataset: Dataset, folder: Path, device: torch.device) -> None:
    keep_freed_memory(device)
    _Training(experiment, dataset, folder, device).run()


class _Training:
    """One run from its first step, or its last checkpoint, to its manifest."""

    def __init__(self, experiment: Experiment, dataset: Dataset, folder: Path, device: torch.device) -> None:
        self.experiment, self.dataset, self.folder, self.device = experiment, dataset, folder, device
        self.setup = set_up(experiment, dataset, device)
        self.state = self.setup.state
        self.rollbacks = Rollbacks(experiment.guard, self.state, folder)
        self.provenance = provenance(device)
        self.state.history.commits = [self.provenance["commit"]]
        self._begin_attempt()

    def run(self) -> None:
        resume(self.state, self.folder)
        # What is resumed may have been rolled back before.
        self._begin_attempt()
        if writes():
            write_config(self.folder, self.experiment)
        state, guard = self.state, self.experiment.guard
        title = f"train {_title(self.experiment, self.dataset)}"
        state.model.train()
        shown, opened = nullcontext(lambda completed, status="": None), no_log(guard)
        if writes():
            shown = progress(title, self.setup.total_steps, state.done)
            opened = open_log(self.folder, state.history.log_bytes, guard)
        with shown as advance, opened as log:
            if self.rollbacks.wanted and not state.history.snapshots:
                self.rollbacks.snapshot()
            self._loop(advance, log)
        self._finish()

    def _begin_attempt(self) -> None:
        """Take up the random streams of this attempt: another seed after every rollback."""
        seed, restarts = self.experiment.seed, self.state.restarts
        self.seed = derive(seed, "restart", restarts) if restarts else seed
        self.labelled, self.density = streams(
            self.experiment, self.setup.train_set, self.setup.generated, self.state.method.density, self.seed
        )

    def _loop(self, advance: Advance, log: RunLog) -> None:
        config, state, total_steps = self.experiment.train, self.state, self.setup.total_steps
        started = saved = time.monotonic()
        before = state.history.seconds
        while state.done < total_steps:
            losses, lr = self._step(state.done)
            state.done += 1
            line = self._place() | step_record(losses, self.setup.update.gradient_norm, lr)
            epoch, boundary = divmod(state.done, self.setup.steps_per_epoch)
            logged = state.done % config.log_every == 0 or boundary == 0
            alarm = ranks.agreed(lambda: log.observe(line) if line["nonfinite"] or logged else None)  # noqa: B023
            validated = False
            status = ""
            if boundary == 0 and alarm is None:
                status = f"epoch {epoch}/{config.epochs} loss {line['loss']:.3f}"
                if epoch % config.validate_every == 0 or state.done == total_steps:
                    validated = True
                    looked = self._validate(epoch)
                    alarm = ranks.agreed(lambda: log.observe(looked))  # noqa: B023
                    if alarm is None:
                        self._keep(epoch, looked["validation"], log)
                        status += "".join(f" {name} {value:.1f} %" for name, value in looked["validation"].items())
            if alarm is not None:
                self._intervene(alarm, log)
            advance(state.done, status)
            now = time.monotonic()
            state.history.seconds = before + now - started
            # A snapshot holds the best weights' files; they are those of its step only if what is done again after a
            # crash begins no earlier than at the last snapshot.
            kept = self.rollbacks.wanted and (validated or alarm is not None)
            due = ranks.agreed(lambda: now - saved >= config.checkpoint_seconds)  # noqa: B023
            if kept or due or state.done == total_steps:
                state.history.log_bytes = log.flush()
                save(state, self.folder)
                saved = now

    def _step(self, step: int) -> tuple[Losses, float]:
        """Take one optimiser step, counted from 0; return its losses and its learning rate."""
        state, setup = self.state, self.setup
        lr = setup.schedule.set(state.optimizer, step, self.rollbacks.lr_factor)
        # Layers that draw from torch's global generator (dropout) get a stream of their own, so that resuming needs
        # no saved generator state.
        torch.manual_seed(derive(self.seed, "global", step, *([ranks.rank()] if ranks.rank() else [])))
        x, y = self.labelled.batch(step)
        own = ranks.share(len(x))
        x_density = None
        if self.density:
            x_density = self.density.batch(step)[0]
            x_density = x_density[ranks.share(len(x_density))].to(self.device)
        batch = Batch(
            x[own].to(self.device),
            y[own].to(self.device),
            x_density,
            step,
            self.seed,
            step / setup.total_steps,
            of=len(x) if ranks.count() > 1 else None,
        )
        fresh = step == 0 and self.experiment.train.first_statistics
        try:
            with first_statistics(state.model) if fresh else nullcontext():
                losses = state.method.step(setup.network, batch, setup.update)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"The device has no memory for a training step of {len(y)} images: lower train.batch_size."
            ) from error
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        return losses, lr

    def _place(self) -> dict[str, Any]:
        """Return what every line of the log begins with."""
        done, restarts = self.state.done, self.state.restarts
        return {"step": done, "epoch": done / self.setup.steps_per_epoch, "attempt": restarts}

    def _validate(self, epoch: int) -> dict[str, Any]:
        """Return the log's line on the weights as they are after an epoch, counted from 1."""
        experiment, dataset, state = self.experiment, self.dataset, self.state
        nonfinite = nonfinite_values(state.result)
        share = state.done / self.setup.total_steps
        line = self._place() | {"epoch": epoch, "progress": share, "validation": {}, "nonfinite": nonfinite}
        if nonfinite:
            return line
        if len(dataset.validation) > 0:
            line["validation"] = validate(
                state.result,
                dataset.validation,
                experiment.threat_model,
                experiment.seed,
                self.device,
                experiment.train.select_attack,
            )
        state.gather_buffers()
        samples = state.method.samples
        if samples is not None and writes():
            path = self.folder / "samples" / f"epoch-{epoch:04d}.png"
            reference = self.setup.train_set.images
            line["samples"] = look(path, samples, state.result, reference, dataset.num_classes, experiment.seed)
        return line

    def _keep(self, epoch: int, validation: dict[str, float], log: RunLog) -> None:
        """Keep what a validation has shown to be sound: the weights if they are the best, and a snapshot."""
        if validation:
            score = validation[self.experiment.train.select]
            if score >= self.state.best.score:
                self.state.best = Best(score, epoch, validation)
                self._save_result("best", epoch)
        if self.rollbacks.wanted and ranks.agreed(lambda: log.quiet):
            self.rollbacks.snapshot()

    def _save_result(self, which: Literal["best", "last"], epoch: int) -> None:
        if writes():
            method = self.state.method
            about = describe(self.experiment, self.dataset, method) | {"epoch": epoch}
            save_result(self.folder, which, self.state.result, method, about)

    def _intervene(self, alarm: Alarm, log: RunLog) -> None:
        """Roll back and begin another attempt, or stop where the guard says so or has rolled back often enough."""
        seen = self._place() | {"cause": alarm.cause, "found": alarm.found}
        sentence = alarm.sentence(self.experiment.recipe)
        if self.rollbacks.may_go_back(alarm):
            self.rollbacks.go_back(seen, sentence, log)
            self._begin_attempt()
            return
        if writes():
            log.observe(seen | {"event": "stop"})
            log.flush()
        if self.state.restarts:
            sentence = f"{sentence.removesuffix('.')}, after {self.state.restarts} rollbacks."
        self._end(status="failed", error=sentence, collapse=seen)
        raise TrainingFailed(sentence)

    def _finish(self) -> None:
        self.state.gather_buffers()
        self._save_result("last", self.experiment.train.epochs)
        if len(self.dataset.validation) == 0:
            self._save_result("best", self.experiment.train.epochs)
        self._end(status="finished", error=None, collapse=None)

    def _end(self, **how: Any) -> None:
        experiment, dataset, setup, state = self.experiment, self.dataset, self.setup, self.state
        record = {
            "recipe": experiment.recipe,
            "dataset": dataset.name,
            "seed": experiment.seed,
            "digest": experiment.digest(dataset.digests),
            "data_digests": dict(dataset.digests),
            "epochs": state.done / setup.steps_per_epoch,
            "devices": ranks.count(),
            "undecayed": setup.undecayed,
            "provenance": self.provenance | {"commits": state.history.commits},
        }
        ranks.agreed(lambda: write_manifest(self.folder, record | state.record() | how))
