"""RobustBench's model zoo (Croce et al. 2021): its models, from weights that are there already, by its own loader."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmark.models.robustbench_import import imported, release
from benchmark.models.subject import Subject, external
from benchmark.models.weights import HARMLESS, contents, misfit, read, refuse_page
from methods.data import Dataset
from methods.errors import InputError, nearest, reason
from methods.primitives.threat import ThreatModel

DATASETS = {10: "cifar10", 100: "cifar100"}
"""Number of classes -> the zoo's name of the data set with that many."""
_IMAGE = (3, 32, 32)
MODEL_DIR = Path("models")
"""Folder of the zoo's weights, RobustBench's default: ``<dataset>/<norm>/<model id>.pt`` below the working folder's."""


def zoo_dataset(dataset: Dataset) -> str:
    """Return the zoo's name of the data set whose models classify this one, or raise InputError.

    The zoo's models are of CIFAR-10 or CIFAR-100, and take what looks like it, colour images of 32 x 32 pixels in 10
    or 100 classes: CIFAR itself, its JPEG edition, and files of later test sets such as CIFAR-10.1, whose classes come
    in CIFAR's order.
    """
    if dataset.num_classes not in DATASETS or dataset.image_shape != _IMAGE:
        raise InputError(
            f"The zoo's models classify CIFAR-10 and CIFAR-100, images {list(_IMAGE)} in 10 or 100 classes; "
            f"{dataset.name} has images {list(dataset.image_shape)} in {dataset.num_classes}."
        )
    return DATASETS[dataset.num_classes]


def model_ids(dataset: str, threat: ThreatModel) -> list[str]:
    """Return the ids of the zoo's models of a data set, one of DATASETS, that were trained against a threat's norm."""
    with imported() as robustbench:
        return list(_entries(robustbench, dataset, threat))


def check(model_id: str, dataset: str, threat: ThreatModel, model_dir: Path = MODEL_DIR) -> list[Path]:
    """Return the weights files of a model of the zoo; arguments as for :func:`load`.

    InputError tells that there is no such model, or that its weights are not there or an HTML page.
    """
    with imported() as robustbench:
        known = _entries(robustbench, dataset, threat)
        if model_id not in known:
            raise InputError(_unknown(robustbench, known, model_id, dataset, threat))
        sources = _sources(known[model_id]["gdrive_id"], model_id, dataset, threat, model_dir)
        missing = [f"{source} at {path}" for path, source in sources.items() if not path.is_file()]
        if missing:
            raise InputError(
                f"The weights of {model_id} are missing, and nothing is downloaded here: place {' and '.join(missing)}."
            )
        for path in sources:
            refuse_page(path)
        return list(sources)


def load(model_id: str, dataset: str, threat: ThreatModel, model_dir: Path = MODEL_DIR) -> nn.Module:
    """Load a model of the zoo by RobustBench's own loader, from weights that are there already.

    Args:
        model_id: such as ``Wang2023Better_WRN-28-10``.
        dataset, threat: one of RobustBench's names in DATASETS; a threat model, of which the zoo knows the norm.
        model_dir: laid out like MODEL_DIR; timm's models lie in torch's hub folder, as RobustBench wants it.

    Returns:
        Images [B,C,H,W] in [0,1] to logits [B,K]; on the CPU and in eval mode.

    Raises:
        InputError: the zoo has no such model, its weights are not there, or they are none, or not of this model.
    """
    with imported() as robustbench:
        files = check(model_id, dataset, threat, model_dir)
        return _loaded(robustbench, model_id, dataset, threat, model_dir, files)


def from_zoo(model_id: str, threat: ThreatModel, model_dir: Path, dataset: Dataset, device: torch.device) -> Subject:
    """Load a model of the zoo as :func:`load` does, for data such as the zoo's, and try it on a few test images."""
    of = zoo_dataset(dataset)
    made_by = {"robustbench": release(), "model": f"{of}/{threat.norm}/{model_id}"}
    return external(
        model_id,
        load(model_id, of, threat, model_dir).to(device).float(),
        dataset,
        device,
        code=hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest(),
        metadata=made_by,
    )


def load_exported(
    model_id: str, factory: Callable[[], nn.Module], weights: Path, dataset: str, threat: ThreatModel
) -> nn.Module:
    """Load a model, the ``factory``'s with the ``weights`` of a torch file, by RobustBench's loader as if in the zoo.

    InputError: the loader refuses the weights, or garbles their names.
    """
    with (
        imported() as robustbench,
        registered(robustbench, {model_id: factory}, dataset, threat),
        tempfile.TemporaryDirectory() as folder,
    ):
        placed = Path(folder) / dataset / threat.norm / f"{model_id}.pt"
        placed.parent.mkdir(parents=True)
        shutil.copyfile(weights, placed)
        return _loaded(robustbench, model_id, dataset, threat, Path(folder), [weights])


def clean_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return RobustBench's own clean accuracy, in [0,1], of images x [N,C,H,W] in [0,1] with labels y [N]."""
    with imported() as robustbench:
        return robustbench.utils.clean_accuracy(model, x, y)


def _entries(robustbench: ModuleType, dataset: str, threat: ThreatModel) -> dict[str, Any]:
    """Return the zoo's dictionary of a data set and norm: model id to its factory and its Google Drive id."""
    if dataset not in DATASETS.values():
        raise InputError(f'The zoo is read for {" and ".join(DATASETS.values())}, not for "{dataset}".')
    enums = robustbench.model_zoo.enums
    of_dataset = robustbench.model_zoo.model_dicts[enums.BenchmarkDataset(dataset)]
    return of_dataset.get(enums.ThreatModel(threat.norm), {})


@contextmanager
def registered(
    robustbench: ModuleType, factories: Mapping[str, Callable[[], nn.Module]], dataset: str, threat: ThreatModel
) -> Iterator[None]:
    """Put models into the zoo of the RobustBench that is :func:`imported`, over those of the same id, for a while."""
    enums = robustbench.model_zoo.enums
    of_dataset = robustbench.model_zoo.model_dicts[enums.BenchmarkDataset(dataset)]
    known = _entries(robustbench, dataset, threat)
    added = {model_id: {"model": factory, "gdrive_id": "in place"} for model_id, factory in factories.items()}
    with patch.dict(of_dataset, {enums.ThreatModel(threat.norm): {**known, **added}}):
        yield


def _unknown(robustbench: ModuleType, known: dict[str, Any], model_id: str, dataset: str, threat: ThreatModel) -> str:
    elsewhere = [
        f"{of.value} {norm.value}"
        for of, norms in robustbench.model_zoo.model_dicts.items()
        for norm, models in norms.items()
        if model_id in models
    ]
    hint = f" It is one of {', '.join(elsewhere)}." if elsewhere else nearest(model_id, known)
    return f'RobustBench\'s zoo has no {dataset} model "{model_id}" for {threat.norm}.{hint}'


def _sources(
    drive: str | list[str] | None, model_id: str, dataset: str, threat: ThreatModel, model_dir: Path
) -> dict[Path, str]:
    """Return the files that RobustBench's loader opens for a model, each with where it is to be had."""
    import timm

    place = model_dir / dataset / threat.norm / f"{model_id}.pt"
    url = "https://drive.google.com/uc?id={}".format
    if isinstance(drive, list):
        return {place.with_name(f"{place.name}_m{i}.pt"): url(part) for i, part in enumerate(drive)}
    if drive is not None:
        return {place: url(drive)}
    released = timm.get_pretrained_cfg(f"{model_id}_{dataset}_{threat.norm}".lower().replace("-", "_"))
    address = str(released.url) if released is not None else ""
    return {Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]: address}


def _loaded(
    robustbench: ModuleType, model_id: str, dataset: str, threat: ThreatModel, model_dir: Path, files: list[Path]
) -> nn.Module:
    """Call RobustBench's loader, and say what is wrong with ``files``, which hold what it opens, where it fails.

    Since torch 2.6 its ``torch.load`` refuses the arguments and NumPy numbers that old checkpoints hold beside the
    weights; they are let through, and code is not.
    """
    for path in files:
        refuse_page(path)
    try:
        with torch.random.fork_rng(devices=[]), torch.serialization.safe_globals(HARMLESS):
            return robustbench.load_model(model_id, model_dir=model_dir, dataset=dataset, threat_model=threat.norm)
    except Exception as error:
        held = " and ".join(f"{path} holds {contents(read(path))}" for path in files)
        found = misfit(error) if isinstance(error, RuntimeError) else reason(error)
        raise InputError(f"RobustBench does not load {model_id}: {found}; {held}.") from error
