"""Experiments as data: typed, strict, and hashed.

A mapping (from YAML) is laid over a dataclass instance field by field; an unknown key, a wrong type or a value out
of range is an InputError that names the key. Numbers may be written as fractions ("2/255").
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from methods import get
from methods.backbones import BackboneConfig
from methods.data.streams import Augment
from methods.errors import InputError, nearest, not_negative
from methods.primitives.threat import ThreatModel
from methods.training.guard import Guard

LATER = {"later": True}
"""Metadata of a field that came after the first results: at its default, a training's digest is what it was before."""


@dataclass(frozen=True)
class SelectAttack:
    """The attack under which validation picks the best epoch: PGD, step eps/4, uniform start, eval mode."""

    steps: int = 10
    """Number of PGD steps; the benchmark: 10; Bag of Tricks and AWP: 20; Gowal et al.: 40."""
    objective: Literal["ce", "margin"] = "ce"
    """Cross-entropy, or the margin max_k z_k - z_y (Gowal et al.)."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"train.select_attack.steps must be at least 1, not {self.steps}.")


@dataclass(frozen=True)
class TrainConfig:
    """Optimiser, schedule, precision and model selection of one training."""

    epochs: int = 100
    """Passes over the labelled training split."""
    batch_size: int = 128
    """Labelled images a step."""
    drop_last: bool = False
    """Skip an epoch's last, smaller batch."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """SGD momentum, or Adam's first beta."""
    nesterov: bool = False
    weight_decay: float = 5e-4
    """On every parameter, biases and normalisation included, unless ``decay_norm`` is false."""
    decay_norm: bool = field(default=True, metadata=LATER)
    """Whether weights and biases of normalisation layers decay too; Gowal et al.: false."""
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = "constant"
    milestones: tuple[float, ...] = ()
    """Shares of the training at which the step schedule decays."""
    decay: float | tuple[float, ...] = 0.1
    """Factor of each decay of the step schedule, or one for each milestone."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0 (one-cycle: length of its rise, from lr/25)."""
    epoch_schedule: bool = field(default=False, metadata=LATER)
    """Move the rate between epochs only, as schedulers that are stepped once an epoch do."""
    momentum_cycle: tuple[float, float] | None = field(default=None, metadata=LATER)
    """Least and greatest momentum of the one-cycle schedule, which moves it against the rate (torch: .85, .95); null:
    ``momentum`` throughout."""
    gradient_clip: float | None = None
    """Largest L2 norm of the weights' gradient."""
    ema: float | None = None
    """Decay of the exponential moving average of the weights; the average is then what is validated and saved."""
    ema_warmup: float | None = field(default=None, metadata=LATER)
    """Share of the training during which the average is a copy; n steps after it the decay is min(ema, (1+n)/(10+n)).
    Gowal et al.: .025. Null: ``ema`` from the first step."""
    first_statistics: bool = field(default=False, metadata=LATER)
    """Let the first step's batch statistics replace BatchNorm's initial running ones (Haiku's way; Gowal et al.)."""
    select: Literal["robust", "clean"] = "robust"
    """Validation accuracy that picks the best epoch: under ``select_attack`` at the training threat, or clean."""
    select_attack: SelectAttack = field(default_factory=SelectAttack, metadata=LATER)
    validate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Autocast of the network; auto is bf16 on a GPU that has it, else float32. Losses are always float32."""
    channels_last: bool = True
    compile: bool = False
    """Compile the network's passes, once for each kind of pass of a step; needs a C++ compiler, on a GPU Triton."""
    checkpoint_seconds: float = 60.0
    """Longest time between two resumable checkpoints."""
    log_every: int = 1
    """Steps between two lines of the log; a step with non-finite values is always logged."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("lr", "weight_decay", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"train.{name} must be finite and not negative, not {getattr(self, name)}.")
        if not all(0 <= factor < math.inf for factor in self.decays):
            raise InputError(f"train.decay must be finite and not negative, not {self.decay}.")
        if len(self.decays) != len(self.milestones):
            raise InputError(
                f"train.decay has {len(self.decays)} factors, but there are {len(self.milestones)} milestones."
            )
        not_negative("train.checkpoint_seconds", self.checkpoint_seconds)
        if not 0 <= self.momentum < 1:
            raise InputError(f"train.momentum must be in [0, 1), not {self.momentum}.")
        if self.nesterov and self.momentum == 0:
            raise InputError("train.nesterov needs a positive train.momentum.")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise InputError(f"train.gradient_clip must be positive or null, not {self.gradient_clip}.")
        if any(not 0 < at < 1 for at in self.milestones):
            raise InputError(f"train.milestones are shares of the training in (0, 1), not {list(self.milestones)}.")
        if self.schedule == "step" and not self.milestones:
            raise InputError('train.schedule "step" needs train.milestones, such as [0.5, 0.75].')
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"train.ema must be in [0, 1), not {self.ema}.")
        if self.ema_warmup is not None and not 0 <= self.ema_warmup < 1:
            raise InputError(f"train.ema_warmup is a share of the training in [0, 1), not {self.ema_warmup}.")
        if self.ema_warmup is not None and self.ema is None:
            raise InputError("train.ema_warmup needs train.ema, the decay of the average.")
        if self.momentum_cycle is not None:
            low, high = self.momentum_cycle
            if not 0 <= low <= high < 1:
                raise InputError(f"train.momentum_cycle is two momenta in [0, 1), ascending, not {[low, high]}.")
            if self.schedule != "one-cycle":
                raise InputError(f'train.momentum_cycle belongs to train.schedule "one-cycle", not "{self.schedule}".')

    @property
    def decays(self) -> tuple[float, ...]:
        """Factor of each milestone."""
        return self.decay if isinstance(self.decay, tuple) else (self.decay,) * len(self.milestones)


@dataclass(frozen=True)
class Generated:
    """Generated images to train on beside the real ones (:class:`methods.data.streams.MixedStream`)."""

    file: str | None = None
    """An .npz file with the arrays image and label; null: real images only."""
    share: float = 0.7
    """Share of generated images in each batch; Gowal et al. and Wang et al.: .7."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise InputError(f"data.generated.share must be in [0, 1), not {self.share}.")

    @property
    def path(self) -> Path | None:
        """The file, if there is one; one that is not where the command runs is looked for in the project."""
        if self.file is None:
            return None
        path = Path(self.file).expanduser()
        own = Path(__file__).resolve().parents[2] / path
        return own if not path.exists() and own.is_file() else path


@dataclass(frozen=True)
class DataConfig:
    """How the images reach the method."""

    validation: int | None = None
    """Images taken from the training split for model selection; the data set's own default if null."""
    size: int | None = None
    """Side in pixels to which an image folder is resized."""
    augment: Augment = field(default_factory=Augment)
    """Augmentation of the labelled images."""
    density: Augment = field(default_factory=Augment)
    """Augmentation of the images for p(x)."""
    density_batch: int | None = None
    """Images a step on the p(x) path; as many as labelled ones if null."""
    generated: Generated = field(default_factory=Generated, metadata=LATER)

    def __post_init__(self) -> None:
        if self.density_batch is not None and self.density_batch < 1:
            raise InputError(f"data.density_batch must be at least 1, not {self.density_batch}.")


@dataclass(frozen=True)
class Experiment:
    """One training, fully resolved."""

    recipe: str
    method: str
    dataset: str
    threat: str
    seed: int
    options: Any
    backbone: BackboneConfig
    train: TrainConfig
    data: DataConfig
    guard: Guard = field(default_factory=Guard, metadata=LATER)
    budget: str = ""
    """How this training is scaled down from its paper, in words; empty for the paper's own budget."""

    @property
    def threat_model(self) -> ThreatModel:
        """The threat model of the training."""
        return ThreatModel.parse(self.threat)

    def resolved(self) -> dict[str, Any]:
        """Return everything that decides the weights, as plain JSON data."""
        settings = asdict(self)
        for operational in ("checkpoint_seconds", "log_every"):
            del settings["train"][operational]
        return json.loads(json.dumps(settings))

    def digest(self, data_digests: Mapping[str, str]) -> str:
        """Return the SHA-256 of the experiment without its seed, on the data with these digests."""
        settings: dict[str, Any] = self.resolved() | {"data_digests": dict(data_digests)}
        for label in ("seed", "budget"):
            del settings[label]
        # What the file holds is among the digests of the data; where it lies decides nothing.
        mixed = settings["data"].pop("generated")
        if mixed["file"] is not None:
            settings["data"]["generated"] = {"share": mixed["share"]}
        _drop_later(settings, self)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _drop_later(settings: dict[str, Any], config: Any) -> None:
    """Remove what :data:`LATER` marks where it is at its default and so changes no weight."""
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.metadata.get("later") and value == default:
            settings.pop(item.name, None)
        elif is_dataclass(value) and item.name in settings:
            _drop_later(settings[item.name], value)


def experiment(mapping: Mapping[str, Any]) -> Experiment:
    """Return the experiment a merged mapping describes.

    Raises:
        InputError: an unknown key, a wrong type, or a value out of range.
    """
    known = {item.name for item in fields(Experiment)}
    for key in mapping:
        if key not in known:
            raise InputError(f'Unknown key "{key}".{nearest(str(key), known)}')
    for key in ("recipe", "method", "dataset", "threat"):
        if not isinstance(mapping.get(key), str):
            raise InputError(f'The key "{key}" is missing or not a text.')
    method = get(mapping["method"])
    result = Experiment(
        recipe=mapping["recipe"],
        method=mapping["method"],
        dataset=mapping["dataset"],
        threat=str(ThreatModel.parse(mapping["threat"])),
        seed=_value(int, mapping.get("seed", 0), "seed"),
        options=overlay(method.Config(), mapping.get("options", {}), "options"),
        backbone=overlay(BackboneConfig(), mapping.get("backbone", {}), "backbone"),
        train=overlay(TrainConfig(), mapping.get("train", {}), "train"),
        data=overlay(DataConfig(), mapping.get("data", {}), "data"),
        guard=overlay(Guard(), mapping.get("guard", {}), "guard"),
        budget=_value(str, mapping.get("budget", ""), "budget"),
    )
    if result.seed < 0:
        raise InputError(f"seed must not be negative, not {result.seed}.")
    return result


def overlay(base: Any, mapping: object, where: str) -> Any:
    """Return the dataclass instance ``base`` with the mapping's values in place of its own, nested ones included."""
    return replace(base, **_values(base, mapping, where))


def _values(base: Any, mapping: object, where: str) -> dict[str, Any]:
    if not isinstance(mapping, Mapping):
        raise InputError(f'"{where}" must be a mapping of settings, not {mapping!r}.')
    hints = _hints(type(base))
    names = {item.name for item in fields(base)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in names:
            raise InputError(f'Unknown key "{where}.{key}".{nearest(str(key), names)}')
        current = getattr(base, key)
        path = f"{where}.{key}"
        if is_dataclass(current) and not isinstance(current, type):
            values[key] = overlay(current, value, path)
        else:
            values[key] = _value(hints[key], value, path)
    return values


def _value(expected: Any, value: object, where: str) -> Any:
    try:
        plain = value if expected is str else _fractions(value)
        return _adapter(expected).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise InputError(f'"{where}" is {value!r}: {error.errors()[0]["msg"]}.') from error
    except TypeError as error:
        raise InputError(f'"{where}" is {value!r}, which is no plain value.') from error


_hints = cache(get_type_hints)


@cache
def _adapter(expected: Any) -> TypeAdapter[Any]:
    """Return what checks values of a type; making it costs a hundred times what a check does."""
    return TypeAdapter(expected)


def _fractions(value: object) -> object:
    """Turn texts such as "7/31" (and exponents YAML reads as text, "5e-4") into numbers; leave the rest."""
    if isinstance(value, list | tuple):
        return [_fractions(item) for item in value]
    if isinstance(value, str) and any(character.isdigit() for character in value):
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError, OverflowError):
            return value
    return value
