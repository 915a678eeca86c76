"""Your own model: a factory in a file or a module, or a network of timm, filled with weights."""

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmark.models import timm_model
from benchmark.models.subject import Subject, external
from benchmark.models.weights import fill
from methods.data import Dataset
from methods.errors import InputError, nearest, reason


def from_factory(spec: str, weights: Path | None, dataset: Dataset, device: torch.device) -> Subject:
    """Make your own model and try it on a few test images.

    Args:
        spec: ``FILE.py:FACTORY`` or ``package.module:FACTORY``; the factory takes nothing, or ``num_classes=`` and
            ``image_shape=``, and returns an ``nn.Module`` from images in [0,1] to logits. Or ``timm:NAME``, which needs
            ``weights``.
        weights: safetensors, or a torch file that holds tensors in plain containers and no code.
        dataset, device: what the model classifies, and where.

    Raises:
        InputError: what is named does not exist, does not load, or is no classifier of this data set.
    """
    factory, model = _made(spec, weights, dataset, device)
    return external(
        spec.rsplit("/", 1)[-1].replace(".py:", ":"),
        model,
        dataset,
        device,
        code=_code_digest(spec, factory, model),
        metadata={"factory": spec, "weights": None if weights is None else str(weights)},
    )


def make_model(spec: str, weights: Path | None, dataset: Dataset, device: torch.device) -> nn.Module:
    """Make your own model as :func:`from_factory` does, but do not try it; float32, in the mode its factory left."""
    return _made(spec, weights, dataset, device)[1]


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
