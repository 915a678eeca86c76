"""Subjects: the models that are evaluated, from this project's checkpoints or from a stranger's code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from benchmark.models import timm_model, zoo
from benchmark.models.probes import probe, training_mode
from benchmark.models.robustbench_import import release
from benchmark.models.weights import fill
from methods.backbones.resnet import PAPER_WIDEN, Shape
from methods.data import Dataset
from methods.errors import InputError, nearest, reason
from methods.primitives.threat import ThreatModel
from methods.training.checkpoint import BUFFERS, FILES, load_checkpoint

_PROBE = 100
"""Test images that an external model is tried on."""
_REFUSED = ("forward pass", "output shape", "finite outputs")
"""Findings that leave nothing to evaluate."""


@dataclass(frozen=True)
class Subject:
    """A model to evaluate, images [B,C,H,W] in [0,1] to logits [B,K]: eval mode, float32, on its device."""

    name: str
    model: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    device: torch.device
    digest: str
    """SHA-256 of the weights."""
    code: str
    """SHA-256 of what makes the weights a function: the backbone's settings, or a stranger's source files."""
    kind: Literal["checkpoint", "external"]
    metadata: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    """Reasons to doubt what is measured on it."""
    buffer: Path | None = None
    """The file of its replay buffer, where the training had one."""

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def architecture(self) -> str:
        """The network's name, such as ``wrn-28-10`` or, 64 channels wide, ``resnet-18``; an external model's class."""
        backbone = self.metadata.get("backbone")
        if backbone is None:
            return type(self.model).__name__
        name = backbone["architecture"]
        if name.startswith("timm:"):
            return name
        usual = name in get_args(Shape) and backbone["widen"] == PAPER_WIDEN
        return f"{name}-{backbone['depth']}" + ("" if usual else f"-{backbone['widen']}")

    def logits(self, x: Tensor, batch_size: int | None = None) -> Tensor:
        """Return the logits [B,K] in float32, ``batch_size`` images at a time.

        Raises:
            FloatingPointError: a logit is NaN or infinite, so that no prediction means anything.
        """
        batches = (x,) if batch_size is None else x.split(batch_size)
        logits = torch.cat([self.model(batch) for batch in batches]).float()
        if not bool(logits.isfinite().all()):
            raise FloatingPointError("the model's outputs are not finite (NaN or infinite)")
        return logits


def from_checkpoint(path: Path, device: torch.device, which: Literal["best", "last"] = "best") -> Subject:
    """Load a model this project trained, from its weights file or from its run folder.

    Raises:
        InputError: no checkpoint of this project there.
    """
    checkpoint = load_checkpoint(path, which)
    model, metadata = checkpoint.model, checkpoint.metadata
    model.autocast = None
    backbone = json.dumps(metadata["backbone"], sort_keys=True)
    buffers = {FILES[kind]: checkpoint.path.with_name(name) for kind, name in BUFFERS.items()}
    buffer = buffers.get(checkpoint.path.name)
    return Subject(
        name=metadata.get("recipe", checkpoint.path.parent.name),
        # Faster convolutions on CPUs, and the layout that Tensor Cores want.
        model=model.to(device).to(memory_format=torch.channels_last).float().eval(),
        num_classes=model.num_classes,
        image_shape=model.image_shape,
        device=device,
        digest=weights_digest(model),
        code=hashlib.sha256(backbone.encode()).hexdigest(),
        kind="checkpoint",
        metadata=metadata,
        buffer=buffer if buffer is not None and buffer.is_file() else None,
    )


def from_factory(spec: str, weights: Path | None, dataset: Dataset, device: torch.device) -> Subject:
    """Make a stranger's model and try it on a few test images.

    Args:
        spec: ``FILE.py:FACTORY`` or ``package.module:FACTORY``; the factory takes nothing, or ``num_classes=`` and
            ``image_shape=``, and returns an ``nn.Module`` from images in [0,1] to logits. Or ``timm:NAME``, whose
            weights must be given.
        weights: safetensors, or a torch file that holds tensors in plain containers and no code.
        dataset: gives the number of classes and the images.
        device: where the model is evaluated.

    Raises:
        InputError: what is named does not exist, does not load, or is no classifier of this data set.
    """
    factory, model = _made(spec, weights, dataset, device)
    return _external(
        spec.rsplit("/", 1)[-1].replace(".py:", ":"),
        model,
        dataset,
        device,
        code=_code_digest(spec, factory, model),
        metadata={"factory": spec, "weights": None if weights is None else str(weights)},
    )


def from_zoo(model_id: str, threat: ThreatModel, model_dir: Path, dataset: Dataset, device: torch.device) -> Subject:
    """Load a model of RobustBench's zoo and try it on a few test images.

    Args:
        model_id: its id there.
        threat: the threat model, whose norm is part of its place in the zoo.
        model_dir: where its weights lie, see :func:`benchmark.models.zoo.load`.
        dataset: one that the zoo's models classify, see :func:`benchmark.models.zoo.zoo_dataset`.
        device: where the model is evaluated.

    Raises:
        InputError: the zoo has no such model, it does not load, or the data are none of the zoo's.
    """
    of = zoo.zoo_dataset(dataset)
    made_by = {"robustbench": release(), "model": f"{of}/{threat.norm}/{model_id}"}
    return _external(
        model_id,
        zoo.load(model_id, of, threat, model_dir).to(device).float(),
        dataset,
        device,
        code=hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest(),
        metadata=made_by,
    )


def _external(
    name: str, model: nn.Module, dataset: Dataset, device: torch.device, *, code: str, metadata: dict[str, Any]
) -> Subject:
    """Try a stranger's model on a few test images, and make it a subject with what was found as its flags."""
    found = training_mode(model)
    flags = [] if found.fine else [found.sentence]
    flags += [flag for flag in _examine(model.eval(), dataset, device) if flag not in flags]
    return Subject(
        name=name,
        model=model,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        device=device,
        digest=weights_digest(model),
        code=code,
        kind="external",
        metadata=metadata,
        flags=flags,
    )


def make_model(spec: str, weights: Path | None, dataset: Dataset, device: torch.device) -> nn.Module:
    """Make a stranger's model and return it in float32 in the mode its factory left it, whatever it is good for.

    Args:
        spec: as for :func:`from_factory`.
        weights: as for :func:`from_factory`.
        dataset: gives the number of classes and the shape of an image, to a factory that asks.
        device: where the model is put.

    Raises:
        InputError: what is named does not exist, does not load, or is no ``nn.Module``.
    """
    return _made(spec, weights, dataset, device)[1]


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of names, shapes, types and bytes of all weights and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _factory(spec: str) -> Callable[..., Any]:
    if spec.startswith(timm_model.PREFIX):
        return timm_model.factory(spec.removeprefix(timm_model.PREFIX))
    source, colon, attribute = spec.rpartition(":")
    if not colon or not source or not attribute:
        raise InputError(f'A model is named "FILE.py:FACTORY", "package.module:FACTORY" or "timm:NAME", not "{spec}".')
    module = _file_module(Path(source)) if source.endswith(".py") else _named_module(source)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise InputError(f'{source} has no "{attribute}".{nearest(attribute, public)}')
    factory = getattr(module, attribute)
    if not callable(factory):
        raise InputError(f"{spec} is no function that makes a model, but of type {type(factory).__name__}.")
    return factory


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    name = f"subject_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and the file's own neighbours are looked up while it runs, as when Python runs a script.
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{path} does not load: {reason(error)}.") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _named_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InputError(f'The module "{name}" does not import: {reason(error)}.') from error


def _made(
    spec: str, weights: Path | None, dataset: Dataset, device: torch.device
) -> tuple[Callable[..., Any], nn.Module]:
    if spec.startswith(timm_model.PREFIX) and weights is None:
        raise InputError(f"{spec} has random weights: give it its own with --weights FILE; none are downloaded.")
    # Factories seed and draw.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        factory = _factory(spec)
        try:
            parameters = inspect.signature(factory).parameters
        except (TypeError, ValueError):
            parameters = {}
        known = {"num_classes": dataset.num_classes, "image_shape": dataset.image_shape}
        arguments = {name: value for name, value in known.items() if name in parameters}
        try:
            model = factory(**arguments)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"{spec} failed to make a model: {reason(error)}.") from error
        if not isinstance(model, nn.Module):
            raise InputError(f"{spec} returned no torch.nn.Module, but an object of type {type(model).__name__}.")
        if weights is not None:
            fill(model, weights)
    return factory, model.to(device).float()


def _examine(model: nn.Module, dataset: Dataset, device: torch.device) -> list[str]:
    """Return reasons to doubt the model, from what the probes find on the first test images."""
    if len(dataset.test) == 0:
        raise InputError(f"{dataset.name} has no test images.")
    x, y = dataset.test.unit(slice(0, _PROBE)).to(device), dataset.test.labels[:_PROBE].to(device)
    findings = [found for found in probe(model, x, y, dataset.num_classes, wanted_by=dataset.name) if not found.fine]
    for found in findings:
        if found.name in _REFUSED:
            raise InputError(f"{found.sentence[0].upper()}{found.sentence[1:]}.")
    return [found.sentence for found in findings]


def _code_digest(spec: str, factory: Callable[..., Any], model: nn.Module) -> str:
    """Return the SHA-256 of the files that define the factory and the model's classes, PyTorch's left out."""
    classes = {type(module) for module in model.modules()}
    files: set[Path] = set()
    for item in (factory, *classes):
        if (inspect.getmodule(item) or torch).__name__.split(".")[0] == "torch":
            continue
        try:
            files.add(Path(inspect.getsourcefile(item) or ""))
        except TypeError:
            continue
    contents = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file())
    return hashlib.sha256(json.dumps([spec.rpartition(":")[2], contents]).encode()).hexdigest()
