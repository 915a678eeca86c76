"""The one training loop.

Everything random is a pure function of (seed, stream name, step), so a run interrupted at any moment and started again
continues from its last checkpoint and ends, on a CPU, with the very bits of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from methods import get
from methods.backbones import Classifier, build
from methods.data import Dataset, ImageSet
from methods.data.streams import Stream
from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen
from methods.primitives.random import derive, generator
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import FILES, load_state, save_state, save_weights, write_json, write_text
from methods.training.config import Experiment
from methods.training.method import Batch, Losses, Method, Task
from methods.training.optim import Updater, learning_rate, optimizer
from methods.training.progress import Advance, progress
from methods.training.provenance import provenance

VALIDATION_ATTACK = PGD(steps=10, step_size=0.25)
_VALIDATION_BATCH = 500


class TrainingFailed(RuntimeError):
    """A training that stopped on a non-finite loss; the run's manifest says at which step."""


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


def train(experiment: Experiment, dataset: Dataset, runs: Path, device: torch.device) -> Path:
    """Train, resume, or find already trained the run an experiment describes; return its folder.

    Raises:
        TrainingFailed: the loss became non-finite, now or in an earlier attempt; the manifest holds the record.
        InputError: a file of the run is foreign or cannot be written.
    """
    folder = run_folder(runs, experiment, dataset)
    manifest = read_manifest(folder)
    if manifest.get("status") == "finished":
        return folder
    if manifest.get("status") == "failed":
        raise TrainingFailed(f"{manifest['error']} Delete {folder} to train it again.")
    _Training(experiment, dataset, folder, device).run()
    return folder


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
        config, seed = experiment.train, experiment.seed
        self.model = build_model(experiment, dataset).to(device)
        self.model.autocast = torch.bfloat16 if _bf16(config.precision, device) else None
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        method = get(experiment.method)
        task = Task(experiment.threat_model, dataset.num_classes, dataset.image_shape, seed)
        train_set = _placed(dataset.train, device)
        self.method: Method = method(experiment.options, task).to(device)
        self.method.prepare(train_set)
        self.labelled, self.density = _streams(experiment, train_set, method.density)
        self.total_steps = config.epochs * self.labelled.steps_per_epoch
        trainable = [*self.model.parameters(), *self.method.parameters()]
        self.optimizer = optimizer([p for p in trainable if p.requires_grad], config)
        self.update = Updater(self.optimizer, config.gradient_clip)
        self.ema = None
        if config.ema is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.network: nn.Module = self.model
        if config.compile:
            self.network = cast(nn.Module, torch.compile(self.model))
        self.done = 0
        self.best = _Best()
        self.seconds = 0.0
        self.log_bytes = 0
        self.provenance = provenance(device)
        self.commits = [self.provenance["commit"]]

    def run(self) -> None:
        self._restore()
        write_text(self.folder / "config.yaml", yaml.safe_dump(self.experiment.resolved(), sort_keys=False))
        title = f"{self.experiment.recipe} on {self.dataset.name}, seed {self.experiment.seed}"
        self.model.train()
        with (
            progress(f"train {title}", self.total_steps, self.done) as advance,
            _log(self.folder, self.log_bytes) as log,
        ):
            self._loop(advance, log)
        self._finish()

    def _loop(self, advance: Advance, log: Any) -> None:
        config = self.experiment.train
        per_epoch = self.labelled.steps_per_epoch
        started = saved = time.monotonic()
        before = self.seconds
        while self.done < self.total_steps:
            losses, lr = self._step(self.done)
            terms = {"loss": losses.total.detach(), **losses.terms}
            self.done += 1
            epoch, boundary = divmod(self.done, per_epoch)
            logged = self.done % config.log_every == 0 or boundary == 0
            if logged or not math.isfinite(float(terms["loss"])):
                values = {name: float(value) for name, value in terms.items()}
                line = {"step": self.done, "epoch": self.done / per_epoch, "lr": lr, **values}
                log.write(json.dumps(line) + "\n")
                if not math.isfinite(values["loss"]):
                    log.flush()
                    self._fail(f"The loss ({', '.join(f'{name} {value:g}' for name, value in values.items())})")
            status = ""
            if boundary == 0:
                status = f"epoch {epoch}/{config.epochs} loss {float(terms['loss']):.3f}"
                if epoch % config.validate_every == 0 or self.done == self.total_steps:
                    validation = self._validate(epoch)
                    log.write(json.dumps({"step": self.done, "epoch": epoch, "validation": validation}) + "\n")
                    status += "".join(f" {name} {value:.1f} %" for name, value in validation.items())
            advance(self.done, status)
            now = time.monotonic()
            self.seconds = before + now - started
            if now - saved >= config.checkpoint_seconds or self.done == self.total_steps:
                log.flush()
                self.log_bytes = log.tell()
                self._save()
                saved = now

    def _step(self, step: int) -> tuple[Losses, float]:
        config = self.experiment.train
        lr = learning_rate(step, self.total_steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Layers that draw from torch's global generator (dropout) get a stream of their own, so that resuming needs
        # no saved generator state.
        torch.manual_seed(derive(self.experiment.seed, "global", step))
        x, y = self.labelled.batch(step)
        x_density = self.density.batch(step)[0].to(self.device) if self.density else None
        batch = Batch(
            x.to(self.device),
            y.to(self.device),
            x_density,
            step,
            self.experiment.seed,
            step / self.total_steps,
        )
        losses = self.method.step(self.network, batch, self.update)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return losses, lr

    def _result(self) -> Classifier:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.ema is None else cast(Classifier, self.ema.module)

    def _validate(self, epoch: int) -> dict[str, float]:
        if len(self.dataset.validation) == 0:
            return {}
        validation = validate(
            self._result(),
            self.dataset.validation,
            self.experiment.threat_model,
            self.experiment.seed,
            self.device,
        )
        score = validation[self.experiment.train.select]
        if score >= self.best.score:
            self.best = _Best(score, epoch, validation)
            self._save_weights("best", epoch)
        return validation

    def _save_weights(self, which: str, epoch: int) -> None:
        description = describe(self.experiment, self.dataset) | {"epoch": epoch, "which": which}
        save_weights(self.folder / FILES[which], self._result().state_dict(), description)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "done": self.done,
            "seconds": self.seconds,
            "commits": self.commits,
            "log_bytes": self.log_bytes,
            "best": asdict(self.best),
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }
        save_state(self.folder / "state.pt", state)

    def _restore(self) -> None:
        # What a killed process was writing.
        for stale in self.folder.glob("*.tmp"):
            stale.unlink()
        path = self.folder / "state.pt"
        if not path.is_file():
            return
        state = load_state(path)
        try:
            self.model.load_state_dict(state["model"])
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.best = _Best(**state["best"])
            self.done, self.seconds, self.log_bytes = state["done"], state["seconds"], state["log_bytes"]
            self.commits = list(dict.fromkeys([*state["commits"], *self.commits]))
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise InputError(f"{path} belongs to another run; delete it to train from the start.") from error

    def _finish(self) -> None:
        if not all(bool(value.isfinite().all()) for value in self._result().state_dict().values()):
            self._fail("The weights")
        self._save_weights("last", self.experiment.train.epochs)
        if len(self.dataset.validation) == 0:
            self._save_weights("best", self.experiment.train.epochs)
        self._manifest("finished", best=asdict(self.best), error=None)
        (self.folder / "state.pt").unlink(missing_ok=True)

    def _fail(self, what: str) -> NoReturn:
        error = f"{what} of {self.experiment.recipe} became non-finite at step {self.done}."
        self._manifest("failed", best=asdict(self.best), error=error)
        raise TrainingFailed(error)

    def _manifest(self, status: str, **record: Any) -> None:
        common = {
            "status": status,
            "recipe": self.experiment.recipe,
            "dataset": self.dataset.name,
            "seed": self.experiment.seed,
            "digest": self.experiment.digest(self.dataset.digests),
            "data_digests": dict(self.dataset.digests),
            "steps": self.done,
            "epochs": self.done / self.labelled.steps_per_epoch,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "precision": "bf16" if self.model.autocast else "float32",
            "seconds": round(self.seconds, 1),
            "provenance": self.provenance | {"commits": self.commits},
        }
        write_json(self.folder / "manifest.json", common | record)


def check(experiment: Experiment, dataset: Dataset) -> None:
    """Refuse, before anything is written, an experiment that cannot be built on a data set.

    Raises:
        InputError: the backbone does not take the images, or there are fewer of them than a batch holds.
    """
    with torch.device("meta"):
        build_model(experiment, dataset)
    _streams(experiment, dataset.train, get(experiment.method).density)


def _streams(experiment: Experiment, train_set: ImageSet, density: bool) -> tuple[Stream, Stream | None]:
    """Return the streams of the labelled path and, where the method has one, of the p(x) path."""
    data, train = experiment.data, experiment.train
    labelled = Stream(train_set, train.batch_size, data.augment, experiment.seed, "labelled", train.drop_last)
    if not density:
        return labelled, None
    batch = data.density_batch or train.batch_size
    return labelled, Stream(train_set, batch, data.density, experiment.seed, "density", True)


def build_model(experiment: Experiment, dataset: Dataset) -> Classifier:
    """Return the freshly initialised backbone of an experiment; its weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(experiment.seed, "init"))
        return build(experiment.backbone, dataset.num_classes, dataset.image_shape, dataset.mean, dataset.std)


def describe(experiment: Experiment, dataset: Dataset) -> dict[str, Any]:
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
    }


def validate(
    model: Classifier, images: ImageSet, threat: ThreatModel, seed: int, device: torch.device
) -> dict[str, float]:
    """Return clean and PGD-10 (step eps/4, uniform start) accuracy in percent; the same start at every call."""
    correct = {"clean": 0, "robust": 0}
    with frozen(model):
        for number, first in enumerate(range(0, len(images), _VALIDATION_BATCH)):
            chosen = slice(first, first + _VALIDATION_BATCH)
            x, y = images.unit(chosen).to(device), images.labels[chosen].to(device)

            def objective(x_adv: Tensor, y: Tensor = y) -> Tensor:
                return cross_entropy(model(x_adv), y)

            x_adv = VALIDATION_ATTACK(objective, x, threat, generator(seed, "validation", number, device=device))
            with torch.no_grad():
                correct["clean"] += int((model(x).argmax(1) == y).sum())
                correct["robust"] += int((model(x_adv).argmax(1) == y).sum())
    return {name: 100 * count / len(images) for name, count in correct.items()}


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
def _log(folder: Path, length: int) -> Iterator[Any]:
    """Open the log for appending, cut to what the resumed checkpoint had written.

    Raises:
        InputError: the log cannot be written, for example because the disk is full.
    """
    path = folder / "log.jsonl"
    try:
        with open(path, "a+b") as handle:
            handle.truncate(length)
        with open(path, "a", encoding="utf-8") as handle:
            yield handle
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error}.") from error
