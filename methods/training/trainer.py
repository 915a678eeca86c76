"""The one training loop.

Everything random is a pure function of (seed, stream name, step), so a run interrupted at any moment and started again
continues from its last checkpoint and ends, on a CPU, with the very bits of an uninterrupted run.

Every step is a line of log.jsonl, and a guard reads the lines: a collapse stops the run with a record, or sends it back
to the last good state with new streams and a lower learning rate.

On several devices every rank runs this loop, on its share of each batch. Rank 0 alone writes, and decides what is not
computed alike everywhere: what the guard says, and when to save.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from methods import get
from methods.backbones import Classifier, build
from methods.data import Dataset, ImageSet
from methods.data.streams import MixedStream, Stream
from methods.errors import InputError
from methods.files import write, write_json, write_text
from methods.primitives import ranks
from methods.primitives.attacks import PGD
from methods.primitives.batch_norm import synchronise
from methods.primitives.losses import cross_entropy, margin
from methods.primitives.modes import first_statistics, frozen
from methods.primitives.random import derive, generator
from methods.primitives.samplers import ReplayBuffer
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import (
    BUFFERS,
    FILES,
    load_state,
    save_state,
    save_weights,
)
from methods.training.compiled import Compiled
from methods.training.config import Experiment, SelectAttack
from methods.training.distributed import check_devices, on_devices
from methods.training.guard import Alarm, Detector, read_log
from methods.training.heap import keep_freed_memory
from methods.training.method import Batch, Losses, Method, Task
from methods.training.optim import Schedule, Updater, average, normalisation, optimizer
from methods.training.pictures import quality, save_buffer, write_grid
from methods.training.progress import Advance, progress
from methods.training.provenance import provenance

_SELECT = SelectAttack()
_VALIDATION_BATCH = 500
_SAMPLES = 1000
"""Images of a replay buffer that are looked at while training."""
_GENERATIONS = 2
"""Snapshots that are kept: a collapse may have begun, unnoticed, before the latest."""


class TrainingFailed(RuntimeError):
    """A training that collapsed and was stopped; the run's manifest says at which step, and why."""


def select_device(name: str) -> torch.device:
    """Return the device called "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: an unknown name, or CUDA asked for where there is none.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f'There is no device "{name}"; use auto, cpu, cuda or cuda:N.') from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f'The device "{name}" is not supported; use auto, cpu, cuda or cuda:N.')
    if device.type == "cuda" and not (available and (device.index or 0) < torch.cuda.device_count()):
        raise InputError(f'The device "{name}" was asked for, but this machine offers no such CUDA device.')
    return device


def run_folder(runs: Path, experiment: Experiment, dataset: Dataset) -> Path:
    """Return ``runs/<recipe>/<dataset>/<digest8>-s<seed>``."""
    digest = experiment.digest(dataset.digests)
    return runs / experiment.recipe / dataset.slug / f"{digest[:8]}-s{experiment.seed}"


@dataclass
class _Best:
    """The best validation so far; later epochs win ties."""

    score: float = -1.0
    epoch: int = -1
    validation: dict[str, float] = field(default_factory=dict)


def train(experiment: Experiment, dataset: Dataset, runs: Path, device: torch.device, devices: int = 1) -> Path:
    """Train, resume, or find already trained the run an experiment describes; return its folder.

    Args:
        experiment: the run.
        dataset: its data.
        runs: where it is kept.
        device: the device, or with several their kind.
        devices: on how many to train; what is trained does not depend on it but for rounding and sampler chains.

    Raises:
        TrainingFailed: the training collapsed, now or when it was last started; the manifest holds the record.
        InputError: a file of the run is foreign or cannot be written, or the guard watches what is not logged; or the
            machine has fewer devices, or the method is not trained on several.
        RankFailed: one of several devices failed; what was saved is resumed.
    """
    folder = run_folder(runs, experiment, dataset)
    manifest = read_manifest(folder)
    if manifest.get("status") == "finished":
        return folder
    if manifest.get("status") == "failed":
        raise TrainingFailed(f"{manifest['error']} Delete {folder} to train it again.")
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
        f"{experiment.recipe} on {dataset.name}, seed {experiment.seed}",
        (InputError, TrainingFailed),
    )
    return folder


def _train(experiment: Experiment, dataset: Dataset, folder: Path, device: torch.device) -> None:
    keep_freed_memory(device)
    _Training(experiment, dataset, folder, device).run()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the record of a finished or failed run; an empty mapping while there is none."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise InputError(f"{path} is truncated or foreign; delete it to train again.")
    return manifest


class _Training:
    """One run from its first step, or its last checkpoint, to its manifest."""

    def __init__(self, experiment: Experiment, dataset: Dataset, folder: Path, device: torch.device) -> None:
        self.experiment, self.dataset, self.folder, self.device = experiment, dataset, folder, device
        config = experiment.train
        self.model = build_model(experiment, dataset).to(device)
        self.model.autocast = torch.bfloat16 if _bf16(config.precision, device) else None
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.train_set = _placed(dataset.train, device)
        self.generated = None if dataset.generated is None else _placed(dataset.generated, device)
        self.method: Method = build_method(experiment, dataset).to(device)
        with _seeded(derive(experiment.seed, "prepare")):
            self.method.prepare(self.train_set)
        self.writes = ranks.rank() == 0
        if ranks.count() > 1:
            synchronise(self.model)
            synchronise(self.method)
        self.interventions: list[dict[str, Any]] = []
        self._begin_streams()
        self.total_steps = config.epochs * self.labelled.steps_per_epoch
        self.schedule = Schedule(config, self.total_steps, self.labelled.steps_per_epoch)
        modules = {"model": self.model, "method": self.method}
        named = {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}
        self.undecayed: list[str] = []
        if not config.decay_norm:
            self.undecayed = [f"{part}.{name}" for part, module in modules.items() for name in normalisation(module)]
        trainable = [parameter for parameter in named.values() if parameter.requires_grad]
        self.optimizer = optimizer(trainable, config, [named[name] for name in self.undecayed])
        self.update = Updater(self.optimizer, config.gradient_clip)
        self.ema = None
        if config.ema is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=average(config, self.total_steps))
        self.network: nn.Module = self.model
        if config.compile:
            sizes = (config.batch_size, _density_batch(experiment))
            own = [of.stop - of.start for of in map(ranks.share, sizes)]
            # Where ranks exchange batch statistics, no graph can hold a pass in train mode.
            self.network = Compiled(self.model, own, train_mode=ranks.count() == 1)
        self.detector = Detector(experiment.guard)
        self.snapshots: list[str] = []
        self.done = 0
        self.best = _Best()
        self.seconds = 0.0
        self.log_bytes = 0
        self.provenance = provenance(device)
        self.commits = [self.provenance["commit"]]

    def run(self) -> None:
        self._restore()
        if self.writes:
            write_text(self.folder / "config.yaml", yaml.safe_dump(self.experiment.resolved(), sort_keys=False))
        title = f"{self.experiment.recipe} on {self.dataset.name}, seed {self.experiment.seed}"
        self.model.train()
        with (
            progress(f"train {title}", self.total_steps, self.done) if self.writes else _silence() as advance,
            _log(self.folder, self.log_bytes) if self.writes else open(os.devnull, "w") as log,
        ):
            for line in read_log(self.folder / "log.jsonl") if self.writes else ():
                self.detector.observe(line)
            if self._rolls_back and not self.snapshots:
                self._snapshot()
            self._loop(advance, log)
        self._finish()

    @property
    def _rolls_back(self) -> bool:
        return self.experiment.guard.action == "rollback"

    @property
    def _restarts(self) -> int:
        return len(self.interventions)

    @property
    def _lr_factor(self) -> float:
        return self.experiment.guard.lr_factor**self._restarts

    def _begin_streams(self) -> None:
        """Take up the random streams of this attempt: another seed after every rollback."""
        seed = self.experiment.seed
        self.seed = derive(seed, "restart", self._restarts) if self._restarts else seed
        self.labelled, self.density = _streams(
            self.experiment, self.train_set, self.generated, self.method.density, self.seed
        )

    def _loop(self, advance: Advance, log: Any) -> None:
        config = self.experiment.train
        per_epoch = self.labelled.steps_per_epoch
        started = saved = time.monotonic()
        before = self.seconds
        while self.done < self.total_steps:
            losses, lr = self._step(self.done)
            self.done += 1
            line = self._line(losses, lr)
            epoch, boundary = divmod(self.done, per_epoch)
            logged = self.done % config.log_every == 0 or boundary == 0
            alarm = ranks.agreed(lambda: self._observe(log, line) if line["nonfinite"] or logged else None)  # noqa: B023
            validated = False
            status = ""
            if boundary == 0 and alarm is None:
                status = f"epoch {epoch}/{config.epochs} loss {line['loss']:.3f}"
                if epoch % config.validate_every == 0 or self.done == self.total_steps:
                    validated = True
                    looked = self._validate(epoch)
                    alarm = ranks.agreed(lambda: self._observe(log, looked))  # noqa: B023
                    if alarm is None:
                        self._keep(epoch, looked["validation"])
                        status += "".join(f" {name} {value:.1f} %" for name, value in looked["validation"].items())
            if alarm is not None:
                self._intervene(alarm, log)
            advance(self.done, status)
            now = time.monotonic()
            self.seconds = before + now - started
            # A snapshot holds the best weights' files; they are those of its step only if what is done again after a
            # crash begins no earlier than at the last snapshot.
            kept = self._rolls_back and (validated or alarm is not None)
            due = ranks.agreed(lambda: now - saved >= config.checkpoint_seconds)  # noqa: B023
            if kept or due or self.done == self.total_steps:
                log.flush()
                self.log_bytes = log.tell()
                self._save()
                saved = now

    def _step(self, step: int) -> tuple[Losses, float]:
        lr = self.schedule.set(self.optimizer, step, self._lr_factor)
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
            step / self.total_steps,
            of=len(x) if ranks.count() > 1 else None,
        )
        fresh = step == 0 and self.experiment.train.first_statistics
        try:
            with first_statistics(self.model) if fresh else nullcontext():
                losses = self.method.step(self.network, batch, self.update)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"The device has no memory for a training step of {len(y)} images: lower train.batch_size."
            ) from error
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return losses, lr

    def _line(self, losses: Losses, lr: float) -> dict[str, Any]:
        """Return the flight record of the step just done."""
        values = _numbers({"loss": losses.total} | losses.terms | {"gradient_norm": self.update.gradient_norm})
        nonfinite = sum(not math.isfinite(value) for value in values.values())
        return self._place() | {
            "lr": lr,
            **values,
            "nonfinite": nonfinite + int(values.get("inner_nonfinite", 0)),
        }

    def _place(self) -> dict[str, Any]:
        return {"step": self.done, "epoch": self.done / self.labelled.steps_per_epoch, "attempt": self._restarts}

    def _observe(self, log: Any, line: Mapping[str, Any]) -> Alarm | None:
        """Write a line to the log and ask the detector what it says of it."""
        recorded = _strict(line)
        log.write(json.dumps(recorded, allow_nan=False) + "\n")
        return self.detector.observe(recorded)

    def _result(self) -> Classifier:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.ema is None else cast(Classifier, self.ema.module)

    def _validate(self, epoch: int) -> dict[str, Any]:
        weights = self._result().state_dict().values()
        nonfinite = int(torch.stack([(~value.isfinite()).sum() for value in weights]).sum())
        progress = self.done / self.total_steps
        line = self._place() | {"epoch": epoch, "progress": progress, "validation": {}, "nonfinite": nonfinite}
        if nonfinite:
            return line
        if len(self.dataset.validation) > 0:
            line["validation"] = validate(
                self._result(),
                self.dataset.validation,
                self.experiment.threat_model,
                self.experiment.seed,
                self.device,
                self.experiment.train.select_attack,
            )
        self._gather()
        if self.method.samples is not None and self.writes:
            line["samples"] = self._look(epoch, self.method.samples)
        return line

    def _gather(self) -> None:
        """Bring the replay buffers up to date with all ranks."""
        for module in self.method.modules():
            if isinstance(module, ReplayBuffer):
                module.gather()

    def _look(self, epoch: int, samples: Tensor) -> dict[str, float]:
        """Draw a grid of the replay buffer, by predicted class, and return numbers on its quality."""
        # Not evenly spaced slots: they can all have begun as the same class.
        slots = torch.randperm(len(samples), generator=generator(self.experiment.seed, "look"))[:_SAMPLES]
        chosen = samples[slots.to(samples.device)]
        with frozen(self._result()) as model, torch.no_grad():
            labels = torch.cat([model(x.to(self.device)).argmax(1) for x in chosen.split(_VALIDATION_BATCH)])
        path = self.folder / "samples" / f"epoch-{epoch:04d}.png"
        write_grid(path, chosen, labels, self.dataset.num_classes)
        return quality(chosen, self.train_set.images)

    def _keep(self, epoch: int, validation: dict[str, float]) -> None:
        """Keep what a validation has shown to be sound: the weights if they are the best, and a snapshot."""
        if validation:
            score = validation[self.experiment.train.select]
            if score >= self.best.score:
                self.best = _Best(score, epoch, validation)
                self._save_weights("best", epoch)
        if self._rolls_back and ranks.agreed(lambda: self.detector.quiet):
            self._snapshot()

    def _save_weights(self, which: str, epoch: int) -> None:
        if not self.writes:
            return
        description = describe(self.experiment, self.dataset, self.method) | {"epoch": epoch, "which": which}
        save_weights(self.folder / FILES[which], self._result().state_dict(), description)
        if self.method.samples is not None:
            save_buffer(self.folder / BUFFERS[which], self.method.samples)

    def _intervene(self, alarm: Alarm, log: Any) -> None:
        """Roll back to the older snapshot, or stop where the guard says so or has done so often enough."""
        guard = self.experiment.guard
        seen = self._place() | {"cause": alarm.cause, "found": alarm.found}
        sentence = alarm.sentence(self.experiment.recipe)
        if not self._rolls_back or alarm.hopeless or self._restarts >= guard.max_restarts:
            if self.writes:
                self._observe(log, seen | {"event": "stop"})
                log.flush()
            if self._restarts:
                sentence = f"{sentence.removesuffix('.')}, after {self._restarts} rollbacks."
            self._fail(sentence, seen)
        path = self.folder / self.snapshots[0]
        state = load_state(path)
        intervention = seen | {"to": state["done"], "restarts": self._restarts + 1}
        self.interventions.append(intervention)
        if self.writes:
            self._observe(log, intervention | {"event": "rollback", "lr_factor": self._lr_factor})
            print(f"{sentence} Going back to step {state['done']}.", file=sys.stderr)
        self._set_state(state, path)
        for file in _best_files(self.folder) if self.writes else ():
            if file.name in state["files"]:
                content = state["files"][file.name].numpy().tobytes()
                write(file, lambda temporary, content=content: temporary.write_bytes(content))
            else:
                file.unlink(missing_ok=True)
        self.snapshots = self.snapshots[:1]
        self._begin_streams()

    def _snapshot(self) -> None:
        """Keep the present state, and the best weights' files, for a rollback."""
        name = f"good-{self._restarts}-{self.done}.pt"
        state = self._state()
        if self.writes:
            files = {
                file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
                for file in _best_files(self.folder)
                if file.is_file()
            }
            save_state(self.folder / name, state | {"files": files})
        self.snapshots = [*self.snapshots, name][-_GENERATIONS:]

    def _state(self) -> dict[str, Any]:
        self._gather()
        return {
            "done": self.done,
            "best": asdict(self.best),
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def _set_state(self, state: dict[str, Any], path: Path) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.best = _Best(**state["best"])
            self.done = state["done"]
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise InputError(f"{path} belongs to another run; delete it to train from the start.") from error

    def _save(self) -> None:
        state = self._state() | {
            "seconds": self.seconds,
            "commits": self.commits,
            "log_bytes": self.log_bytes,
            "interventions": self.interventions,
            "snapshots": self.snapshots,
        }
        if not self.writes:
            return
        save_state(self.folder / "state.pt", state)
        # Only now does no checkpoint mention the others.
        self._remove_snapshots(keep=self.snapshots)

    def _remove_snapshots(self, keep: list[str]) -> None:
        for path in self.folder.glob("good-*.pt"):
            if path.name not in keep:
                path.unlink()

    def _restore(self) -> None:
        # What a killed process was writing.
        for stale in self.folder.rglob("*.tmp") if self.writes else ():
            stale.unlink()
        path = self.folder / "state.pt"
        if not path.is_file():
            for stale in _best_files(self.folder) if self.writes else ():
                stale.unlink(missing_ok=True)
            return
        state = load_state(path)
        self._set_state(state, path)
        try:
            self.seconds, self.log_bytes = state["seconds"], state["log_bytes"]
            self.interventions, self.snapshots = state["interventions"], state["snapshots"]
            self.commits = list(dict.fromkeys([*state["commits"], *self.commits]))
        except KeyError as error:
            raise InputError(f"{path} belongs to another run; delete it to train from the start.") from error
        self._begin_streams()

    def _finish(self) -> None:
        self._gather()
        self._save_weights("last", self.experiment.train.epochs)
        if len(self.dataset.validation) == 0:
            self._save_weights("best", self.experiment.train.epochs)
        self._end("finished", error=None, collapse=None)

    def _fail(self, error: str, collapse: dict[str, Any]) -> NoReturn:
        self._end("failed", error=error, collapse=collapse)
        raise TrainingFailed(error)

    def _end(self, status: str, **record: Any) -> None:
        """Write the manifest and remove what only a resume needs."""
        manifest = {
            "status": status,
            "recipe": self.experiment.recipe,
            "dataset": self.dataset.name,
            "seed": self.experiment.seed,
            "digest": self.experiment.digest(self.dataset.digests),
            "data_digests": dict(self.dataset.digests),
            "steps": self.done,
            "epochs": self.done / self.labelled.steps_per_epoch,
            "best": asdict(self.best),
            "restarts": self._restarts,
            "interventions": self.interventions,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "precision": "bf16" if self.model.autocast else "float32",
            "devices": ranks.count(),
            "undecayed": self.undecayed,
            "seconds": round(self.seconds, 1),
            "provenance": self.provenance | {"commits": self.commits},
        }
        if self.method.attack_rows is not None:
            manifest["attack_rows"] = self.method.attack_rows
        ranks.agreed(lambda: self._write_manifest(manifest | record))

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        write_json(self.folder / "manifest.json", manifest)
        (self.folder / "state.pt").unlink(missing_ok=True)
        self._remove_snapshots(keep=[])


def check(experiment: Experiment, dataset: Dataset, devices: int = 1) -> None:
    """Refuse, before anything is written, an experiment that cannot be built on a data set.

    Raises:
        InputError: the backbone does not take the images, there are fewer of them than a batch holds, the method
            refuses its options or the backbone, or it cannot be trained on so many devices.
    """
    with torch.device("meta"):
        model = build_model(experiment, dataset)
    method = build_method(experiment, dataset)
    method.check(model)
    _streams(experiment, dataset.train, dataset.generated, method.density, experiment.seed)
    if devices > 1:
        _check_several(experiment, method, model, devices)


def _check_several(experiment: Experiment, method: Method, model: Classifier, devices: int) -> None:
    for part in method.modules():
        # What a subclass of a method does is not known from its parent.
        if isinstance(part, Method) and not ("several_devices" in vars(type(part)) and part.several_devices):
            name = type(part).__module__.rpartition(".")[2]
            inside = "" if name == experiment.method else f", the method inside {experiment.method},"
            raise InputError(
                f"{name}{inside} is not trained on several devices: what it computes is not known to be the same when "
                "each holds a share of the batch. Leave out --devices."
            )
    smallest = min(experiment.train.batch_size, _density_batch(experiment))
    if smallest < devices:
        raise InputError(f"A batch of {smallest} images cannot be shared among {devices} devices.")
    synchronise(model)
    synchronise(method)


def _streams(
    experiment: Experiment, train_set: ImageSet, generated: ImageSet | None, density: bool, seed: int
) -> tuple[Stream | MixedStream, Stream | None]:
    """Return the streams of the labelled path and, where the method has one, of the p(x) path."""
    data, train = experiment.data, experiment.train
    if generated is None:
        labelled = Stream(train_set, train.batch_size, data.augment, seed, "labelled", train.drop_last)
    else:
        labelled = MixedStream(
            train_set, generated, data.generated.share, train.batch_size, data.augment, seed, "labelled"
        )
    if not density:
        return labelled, None
    return labelled, Stream(train_set, _density_batch(experiment), data.density, seed, "density", True)


def _density_batch(experiment: Experiment) -> int:
    return experiment.data.density_batch or experiment.train.batch_size


def _best_files(folder: Path) -> tuple[Path, Path]:
    return folder / FILES["best"], folder / BUFFERS["best"]


def build_model(experiment: Experiment, dataset: Dataset) -> Classifier:
    """Return the freshly initialised backbone of an experiment; its weights depend on the seed alone."""
    with _seeded(derive(experiment.seed, "init")):
        return build(experiment.backbone, dataset.num_classes, dataset.image_shape, dataset.mean, dataset.std)


def build_method(experiment: Experiment, dataset: Dataset) -> Method:
    """Return the method of an experiment, not yet prepared; weights of its own depend on the seed alone."""
    task = Task(
        experiment.threat_model,
        dataset.num_classes,
        dataset.image_shape,
        experiment.seed,
        _density_batch(experiment),
        experiment.train.batch_size,
        experiment.train.epochs,
    )
    with _seeded(derive(experiment.seed, "method")):
        return get(experiment.method)(experiment.options, task)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator for a while; afterwards that of the CPU is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def describe(experiment: Experiment, dataset: Dataset, method: Method) -> dict[str, Any]:
    """Return what a weights file says of itself, as plain JSON data."""
    return {
        "backbone": asdict(experiment.backbone),
        "num_classes": dataset.num_classes,
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "recipe": experiment.recipe,
        "method": experiment.method,
        "dataset": dataset.name,
        "threat": experiment.threat,
        "seed": experiment.seed,
        "digest": experiment.digest(dataset.digests),
        "options": experiment.resolved()["options"],
        "generation": method.generation,
    }


def validate(
    model: Classifier,
    images: ImageSet,
    threat: ThreatModel,
    seed: int,
    device: torch.device,
    attack: SelectAttack = _SELECT,
) -> dict[str, float]:
    """Return clean and adversarial accuracy (PGD, step eps/4, uniform start) in percent; the same start every time."""
    pgd, raised = PGD(steps=attack.steps, step_size=0.25), {"ce": cross_entropy, "margin": margin}[attack.objective]
    correct = {"clean": 0, "robust": 0}
    with frozen(model):
        for number, first in enumerate(range(0, len(images), _VALIDATION_BATCH)):
            chosen = slice(first, first + _VALIDATION_BATCH)
            if number % ranks.count() != ranks.rank():
                continue
            x, y = images.unit(chosen).to(device), images.labels[chosen].to(device)

            def objective(x_adv: Tensor, y: Tensor = y) -> Tensor:
                return raised(model(x_adv), y)

            x_adv = pgd(objective, x, threat, generator(seed, "validation", number, device=device))
            with torch.no_grad():
                correct["clean"] += int((model(x).argmax(1) == y).sum())
                correct["robust"] += int((model(x_adv).argmax(1) == y).sum())
    counts = ranks.total(torch.tensor(list(correct.values()), device=device)).tolist()
    return {name: 100 * count / len(images) for name, count in zip(correct, counts, strict=True)}


def _bf16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def _placed(images: ImageSet, device: torch.device) -> ImageSet:
    """Move the images to the device where they take at most half of its free memory; else leave them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.images.nbytes > free / 2:
            return images
    return images.to(device)


@contextmanager
def _silence() -> Iterator[Advance]:
    """Show no progress."""
    yield lambda completed, status="": None


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return scalar tensors as numbers, with one transfer from each device they lie on."""
    numbers: dict[str, float] = {}
    for device in {value.device for value in values.values()}:
        names = [name for name, value in values.items() if value.device == device]
        numbers |= zip(names, torch.stack([values[name].detach().float() for name in names]).tolist(), strict=True)
    return {name: numbers[name] for name in values}


def _strict(value: Any) -> Any:
    """Return plain data with None for every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _log(folder: Path, length: int) -> Iterator[Any]:
    """Open the log for appending, cut to what the resumed checkpoint had written.

    Raises:
        InputError: the log is shorter than that, or cannot be written, for example because the disk is full.
    """
    path = folder / "log.jsonl"
    try:
        with open(path, "a+b") as handle:
            if handle.seek(0, os.SEEK_END) < length:
                raise InputError(f"{path} is shorter than at the last checkpoint; delete {folder} to train again.")
            handle.truncate(length)
        with open(path, "a", encoding="utf-8") as handle:
            yield handle
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error}.") from error
