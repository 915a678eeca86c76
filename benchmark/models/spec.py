"""Data sets and models by name: small values with which any process loads the same ones."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmark.models import zoo
from benchmark.models.factory import from_factory, make_model
from benchmark.models.subject import Subject, from_checkpoint
from benchmark.specs.recipes import canonical
from methods.data import Dataset, load
from methods.errors import InputError
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import FILES

DATA = Path("data")
"""Where data sets are downloaded to, relative to the working folder."""
DEFAULT_THREAT = "Linf:8/255"
"""For data sets whose overlay and protocol name none."""
Which = Literal["best", "last"]
"""Checkpoint of a run: best on validation, or of the last epoch."""
_MODELS, _KEPT_PARAMETERS = "models", 2**28
"""Key of what is loaded, and the number of parameters that it may have in all (1 GiB in float32)."""


@dataclass(frozen=True)
class DataSpec:
    """A data set, as a training splits it."""

    name: str
    """As ``--dataset`` takes it."""
    validation: int | None = None
    """Training images that are held out for validation; None: the data set's own number."""
    size: int | None = None
    """Height and width in pixels to which a folder's images are resized; None: as they are."""
    generated: Path | None = None
    """Images that the training mixed with the real ones."""

    def load(self, kept: dict[Any, Any] | None = None) -> Dataset:
        """Load the model, try it where it is no checkpoint of this project, and return it in eval mode.

        What this process has ``kept`` is not loaded again, a checkpoint while its file stays the same. InputError: what
        is named does not exist, does not load, or is no classifier of this data set.
        """
        kept = {} if kept is None else kept
        if self not in kept:
            kept[self] = load(
                self.name, root=DATA, validation=self.validation, size=self.size, generated=self.generated
            )
        return kept[self]


@dataclass(frozen=True)
class ModelSpec:
    """A model: this project's checkpoint, one that your own code makes, or one of RobustBench's zoo.

    InputError refuses what is not exactly one of the three, or has an option of another one.
    """

    checkpoint: Path | None = None
    """A run folder or a weights file of this project."""
    which: Which = "best"
    factory: str | None = None
    """``FILE.py:FACTORY``, ``package.module:FACTORY`` or ``timm:NAME``."""
    weights: Path | None = None
    """State dict for the factory's model."""
    robustbench: str | None = None
    """Id of a model of RobustBench's zoo."""
    threat: str = DEFAULT_THREAT
    """Whose norm is part of a model's place in the zoo."""
    model_dir: Path | None = None
    """Where weights of the zoo lie; None: :data:`benchmark.models.zoo.MODEL_DIR`."""

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.checkpoint, self.factory, self.robustbench)) != 1:
            raise InputError("Give one of --checkpoint PATH, --model FILE:FACTORY and --robustbench MODEL_ID.")
        if self.weights is not None and self.factory is None:
            raise InputError("--weights goes with --model FILE:FACTORY.")
        if self.model_dir is not None and self.robustbench is None:
            raise InputError("--model-dir goes with --robustbench MODEL_ID.")

    @property
    def missing(self) -> bool:
        """Whether it is a run folder that holds no such checkpoint, as after a training that was stopped."""
        folder = self.checkpoint
        return folder is not None and folder.is_dir() and not (folder / FILES[self.which]).is_file()

    @property
    def zoo_folder(self) -> Path:
        """Where weights of the zoo lie."""
        return self.model_dir or zoo.MODEL_DIR

    @property
    def name(self) -> str | None:
        """How the user names a model that is no checkpoint of this project."""
        return self.factory or self.robustbench

    def check(self, dataset: str) -> None:
        """Refuse a zoo model that cannot be loaded before its data are, which may be a long download."""
        name = canonical(dataset).partition("-")[0]
        if self.robustbench is not None and name in zoo.DATASETS.values():
            zoo.check(self.robustbench, name, ThreatModel.parse(self.threat), self.zoo_folder)

    def metadata(self, device: torch.device, kept: dict[Any, Any]) -> dict[str, Any]:
        """Return what a checkpoint says of itself, such as its data set and threat model; nothing of other models."""
        return {} if self.checkpoint is None else self._checkpoint(self.checkpoint, device, kept).metadata

    def load(self, dataset: Dataset, device: torch.device, kept: dict[Any, Any] | None = None) -> Subject:
        """Load the model, try it where it is no checkpoint of this project, and return it in eval mode.

        What this process has ``kept`` is not loaded again, a checkpoint while its file stays the same. InputError: what
        is named does not exist, does not load, or is no classifier of this data set.
        """
        kept = {} if kept is None else kept
        if self.checkpoint is not None:
            return self._checkpoint(self.checkpoint, device, kept)

        def make() -> Subject:
            if self.robustbench is not None:
                return zoo.from_zoo(self.robustbench, ThreatModel.parse(self.threat), self.zoo_folder, dataset, device)
            return from_factory(str(self.factory), self.weights, dataset, device)

        return _kept(kept, (self, device, dataset.name, dataset.num_classes, tuple(dataset.image_shape)), make)

    def unexamined(self, dataset: Dataset, device: torch.device, kept: dict[Any, Any]) -> Subject | nn.Module:
        """Load the model whatever it is good for, in the mode its factory left; a checkpoint as :meth:`load` does."""
        if self.checkpoint is not None:
            return self._checkpoint(self.checkpoint, device, kept)
        if self.robustbench is not None:
            threat = ThreatModel.parse(self.threat)
            return zoo.load(self.robustbench, zoo.zoo_dataset(dataset), threat, self.zoo_folder)
        return make_model(str(self.factory), self.weights, dataset, device)

    def _checkpoint(self, path: Path, device: torch.device, kept: dict[Any, Any]) -> Subject:
        file = path / FILES[self.which] if path.is_dir() else path
        state = file.stat() if file.is_file() else None
        version = None if state is None else (state.st_mtime_ns, state.st_size, state.st_ino)
        return _kept(kept, (file, version, device), lambda: from_checkpoint(path, device, self.which))


def _kept(kept: dict[Any, Any], name: Hashable, make: Callable[[], Subject]) -> Subject:
    """Return a model that this process has loaded already, or load it; beyond a limit the oldest are dropped."""
    loaded: dict[Hashable, Subject] = kept.setdefault(_MODELS, {})
    if name not in loaded:
        loaded[name] = make()
        while len(loaded) > 1 and sum(subject.parameters for subject in loaded.values()) > _KEPT_PARAMETERS:
            del loaded[next(iter(loaded))]
    return loaded[name]
