"""RobustBench (Croce et al. 2021), the one file that may import it: its zoo, its loader and its leaderboards.

The release on PyPI, 1.1.1, does not import in an installation of today. Each function of BRIDGES makes what one import
lacks, and is asked only where that is missing: a release or an installation that is whole is used as it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmark.models.probes import reason
from benchmark.models.weights import HARMLESS, contents, misfit, read, refuse_page
from methods.data import Dataset
from methods.errors import InputError, nearest
from methods.primitives.threat import ThreatModel

DATASETS = {10: "cifar10", 100: "cifar100"}
"""Classes -> the zoo's name of the data set with so many."""
_IMAGE = (3, 32, 32)
MODEL_DIR = Path("models")
"""RobustBench's own: ``<dataset>/<norm>/<model id>.pt`` below it, relative to the working folder."""
_TEMPLATE = """\
<table id="{{ dataset }}_leaderboard_{{ threat_model }}">
<tr><th>Rank</th><th>Method</th><th>Standard accuracy</th><th>AutoAttack robust accuracy</th>\
<th>Best known robust accuracy</th><th>Potentially unreliable</th><th>Extra data</th><th>Architecture</th>\
<th>Venue</th></tr>
{%- for model in models %}
<tr><td>{{ loop.index }}</td><td><a href="{{ model.link }}">{{ model.name }}</a>\
{% if model.footnote is defined and model.footnote is not none %}<br>{{ model.footnote }}{% endif %}</td>\
<td>{{ model.clean_acc }}%</td><td>{{ model[acc_field] }}%</td><td>{{ model.external or model[acc_field] }}%</td>\
<td>{{ "unknown" if model.unreliable is not defined else "yes" if model.unreliable else "no" }}</td>\
<td>{{ "yes" if model.additional_data else "no" }}</td><td>{{ model.architecture }}</td><td>{{ model.venue }}</td></tr>
{%- endfor %}
</table>
"""


@contextmanager
def imported() -> Iterator[ModuleType]:
    """Import RobustBench, with what its release lacks bridged.

    The stand-ins are in ``sys.modules`` inside the ``with`` only: RobustBench binds the names it needs while it is
    imported, and imports nothing later. What stays are its own modules and the networks it registers with timm, without
    which its loader fails. Nothing is downloaded inside.

    Raises:
        InputError: it does not import for a reason that is not bridged.
    """
    stand_ins: dict[str, ModuleType] = {}
    try:
        # What it imports warns of its own deprecations.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, make in BRIDGES.items():
                if _missing(name):
                    stand_ins |= make()
            sys.modules.update(stand_ins)
            try:
                import robustbench
                import robustbench.leaderboard.template
            except Exception as error:
                raise InputError(f"robustbench {release()} does not import: {reason(error)}.") from error
        with patch.object(robustbench.utils, "download_gdrive_new", _refuse_download):
            yield robustbench
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def release() -> str:
    """Return the version of the RobustBench that is installed."""
    return version("robustbench")


def zoo_dataset(dataset: Dataset) -> str:
    """Return the zoo's name of the data set whose models classify this one.

    The zoo's models are of CIFAR-10 or CIFAR-100, and take what looks like it, colour images of 32 x 32 pixels in 10
    or 100 classes: CIFAR itself, its JPEG edition, and files of later test sets such as CIFAR-10.1, whose classes come
    in CIFAR's order.

    Raises:
        InputError: any other data.
    """
    if dataset.num_classes not in DATASETS or dataset.image_shape != _IMAGE:
        raise InputError(
            f"The zoo's models classify CIFAR-10 and CIFAR-100, images {list(_IMAGE)} in 10 or 100 classes; "
            f"{dataset.name} has images {list(dataset.image_shape)} in {dataset.num_classes}."
        )
    return DATASETS[dataset.num_classes]


def model_ids(dataset: str, threat: ThreatModel) -> list[str]:
    """Return the ids of the zoo's models of a data set that were trained against a norm.

    Args:
        dataset: one of RobustBench's names in DATASETS.
        threat: the threat model, of which the zoo knows the norm.
    """
    with imported() as robustbench:
        return list(_entries(robustbench, dataset, threat))


def check(model_id: str, dataset: str, threat: ThreatModel, model_dir: Path = MODEL_DIR) -> list[Path]:
    """Return the weights files of a model of the zoo, which must be there.

    Args and Raises: as :func:`load`, short of loading.
    """
    with imported() as robustbench:
        known = _entries(robustbench, dataset, threat)
        if model_id not in known:
            raise InputError(_unknown(robustbench, model_id, dataset, threat))
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
        dataset: one of RobustBench's names in DATASETS.
        threat: the threat model, of which the zoo knows the norm.
        model_dir: as MODEL_DIR; timm's models have their weights in torch's hub folder, as RobustBench wants it.

    Returns:
        Images [B,C,H,W] in [0,1] to logits [B,K]; on the CPU and in eval mode.

    Raises:
        InputError: the zoo has no such model, its weights are not there, or they are none, or not of this model.
    """
    with imported() as robustbench:
        files = check(model_id, dataset, threat, model_dir)
        return _loaded(robustbench, model_id, dataset, threat, model_dir, files)


def load_exported(
    model_id: str, factory: Callable[[], nn.Module], weights: Path, dataset: str, threat: ThreatModel
) -> nn.Module:
    """Load a model that is not in the zoo yet by RobustBench's own loader, as if it were.

    Args:
        model_id: what it is to be called there.
        factory: makes the network.
        weights: a torch file, as the submission has it.
        dataset: one of RobustBench's names in DATASETS.
        threat: the threat model, of which the zoo knows the norm.

    Raises:
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


def consume(model_info: Path, dataset: str, threat: ThreatModel) -> dict[str, str]:
    """Run RobustBench's own generators on a folder of model_info files.

    Args:
        model_info: holds ``<dataset>/<norm>/<model id>.json``, under whatever name.
        dataset: one of RobustBench's names in DATASETS.
        threat: the threat model, of which RobustBench knows the norm.

    Returns:
        What each makes: ``list_available_models`` (Markdown), ``bibtex``, ``latex``, and ``leaderboard`` (HTML, by a
        template of ours where the release lacks its own, whose table has the same fields).

    Raises:
        InputError: one fails; the sentence names it.
    """
    folder = Path(dataset) / threat.norm
    ids = [path.stem for path in sorted((model_info / folder).glob("*.json"))]
    if not ids:
        raise InputError(f"There is no model_info file in {model_info / folder}.")
    with imported() as robustbench, tempfile.TemporaryDirectory() as place:
        shutil.copytree(model_info / folder, Path(place) / "model_info" / folder)
        utils, template = robustbench.utils, robustbench.leaderboard.template
        consumers: dict[str, Callable[[], Any]] = {
            "list_available_models": lambda: utils.list_available_models(dataset, threat.norm),
            "bibtex": lambda: "".join(sorted(utils.get_leaderboard_bibtex(dataset, threat.norm)[0])),
            "latex": lambda: utils.get_leaderboard_latex(dataset, threat.norm),
            "leaderboard": lambda: template.generate_leaderboard(dataset, threat.norm, "model_info"),
        }
        made = {}
        # They look for ./model_info, list what is in the zoo, and print.
        with (
            contextlib.chdir(place),
            registered(robustbench, dict.fromkeys(ids, nn.Identity), dataset, threat),
            patch.object(template, "PackageLoader", _with_template(template.PackageLoader)),
        ):
            for name, consumer in consumers.items():
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    try:
                        made[name] = consumer() or printed.getvalue()
                    except Exception as error:
                        raise InputError(
                            f"RobustBench's {name} fails on {model_info / folder}: {reason(error)}."
                        ) from error
        return made


def clean_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return RobustBench's own clean accuracy, in [0,1], of images x [N,C,H,W] in [0,1] with labels y [N]."""
    with imported() as robustbench:
        return robustbench.utils.clean_accuracy(model, x, y)


def pkg_resources() -> dict[str, ModuleType]:
    """``pkg_resources`` left setuptools with release 82; RobustBench asks it for the path of one of its own files."""

    def resource_filename(package: str, resource: str) -> str:
        return os.path.join(os.path.dirname(str(sys.modules[package].__file__)), resource)

    return {"pkg_resources": _module("pkg_resources", resource_filename=resource_filename)}


def autoattack() -> dict[str, ModuleType]:
    """``autoattack`` is not on PyPI; ``pyautoattack``, which is, has the same attacks under other arguments."""
    import pyautoattack
    import pyautoattack.state

    from benchmark.attacks.autoattack import contained

    class AutoAttack(pyautoattack.AutoAttack):
        """The arguments and the answer of ``autoattack``; the device must be named, because the defaults differ."""

        def __init__(
            self,
            model: nn.Module,
            norm: Any = "Linf",
            eps: float = 0.3,
            seed: int | None = None,
            verbose: bool = True,
            attacks_to_run: Any = (),
            version: Any = "standard",
            *,
            device: torch.device | str,
            log_path: str | None = None,
        ) -> None:
            attacks = list(attacks_to_run) or None
            super().__init__(
                model, norm=norm, eps=eps, seed=seed, attacks=attacks, version=version, device=torch.device(device)
            )
            self.handlers = [logging.StreamHandler(sys.stdout)] if verbose else []
            self.handlers += [logging.FileHandler(log_path, delay=True)] if log_path else []

        def run_standard_evaluation(
            self,
            x_orig: Tensor,
            y_orig: Tensor,
            bs: int = 250,
            return_labels: bool = False,
            state_path: Path | None = None,
        ) -> Any:
            logger = logging.getLogger("auto-attack")
            with contained() as messages:
                logger.handlers += self.handlers
                logger.setLevel(logging.DEBUG)
                found = super().run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=state_path)
            for handler in self.handlers:
                handler.close()
            for message in messages:
                warnings.warn(message, stacklevel=2)
            return found if return_labels else found[0]

    return {"autoattack": _module("autoattack", AutoAttack=AutoAttack), "autoattack.state": pyautoattack.state}


def gdown() -> dict[str, ModuleType]:
    """``gdown`` is pinned to an old release; it downloads weights, which is never done here."""
    return {"gdown": _module("gdown", download=_refuse_download)}


def timm_layers() -> dict[str, ModuleType]:
    """``timm.models.layers`` is deprecated and to go; its layers are in ``timm.layers``."""
    import timm.layers

    return {"timm.models.layers": timm.layers}


def timm_helpers() -> dict[str, ModuleType]:
    """``timm.models.helpers`` is deprecated and to go; its builders are in ``timm.models``."""
    import timm.models

    return {"timm.models.helpers": timm.models}


def timm_registry() -> dict[str, ModuleType]:
    """``timm.models.registry`` is deprecated and to go; its decorator is in ``timm.models``."""
    import timm.models

    return {"timm.models.registry": timm.models}


BRIDGES: dict[str, Callable[[], dict[str, ModuleType]]] = {
    "pkg_resources": pkg_resources,
    "autoattack": autoattack,
    "gdown": gdown,
    "timm.models.layers": timm_layers,
    "timm.models.helpers": timm_helpers,
    "timm.models.registry": timm_registry,
}
"""Module that RobustBench imports -> what makes a stand-in for it, and for its own submodules, where it is missing."""


def _missing(name: str) -> bool:
    if sys.modules.get(name) is not None:
        return False
    try:
        return importlib.util.find_spec(name) is None
    except (ImportError, ValueError):
        return True


def _module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


def _refuse_download(*_: Any, **__: Any) -> None:
    raise InputError("Weights of RobustBench's zoo are not downloaded here; place them where its loader looks.")


def _with_template(loader: type[Any]) -> type[Any]:
    """Return a loader of RobustBench's template of its HTML leaderboards, which its wheel lacks, or else of ours."""

    class Loader(loader):
        def get_source(self, environment: Any, template: str) -> Any:
            try:
                return super().get_source(environment, template)
            except LookupError:
                return _TEMPLATE, None, None

    return Loader


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


def _unknown(robustbench: ModuleType, model_id: str, dataset: str, threat: ThreatModel) -> str:
    known = _entries(robustbench, dataset, threat)
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
