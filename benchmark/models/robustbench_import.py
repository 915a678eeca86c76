"""RobustBench (Croce et al. 2021) as a module: the one file that may import it.

The release on PyPI, 1.1.1, does not import in an installation of today. Each function of BRIDGES makes what one import
lacks, and is called only where that is missing: a release or an installation that is whole is used as it is.
"""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pyautoattack
import pyautoattack.state
import torch
from torch import Tensor, nn

from benchmark.models.pyautoattack_state import contained
from methods.errors import InputError, reason


@contextmanager
def imported() -> Iterator[ModuleType]:
    """Import RobustBench with stand-ins for the modules that its release lacks; raise InputError where it fails still.

    The stand-ins are in ``sys.modules`` inside the ``with`` only: RobustBench binds the names it needs while it is
    imported, and imports nothing later. What stays are its own modules and the networks it registers with timm, without
    which its loader fails. Nothing is downloaded inside.
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
    """Return the installed version of RobustBench."""
    return version("robustbench")


def pkg_resources() -> dict[str, ModuleType]:
    """Make a stand-in for ``pkg_resources``, which left setuptools with release 82; RobustBench finds a file by it."""

    def resource_filename(package: str, resource: str) -> str:
        return os.path.join(os.path.dirname(str(sys.modules[package].__file__)), resource)

    return _module("pkg_resources", resource_filename=resource_filename)


def autoattack() -> dict[str, ModuleType]:
    """Make a stand-in for ``autoattack``, which is not on PyPI, of ``pyautoattack``, which has other arguments."""

    class AutoAttack(pyautoattack.AutoAttack):
        """AutoAttack with the arguments and results of ``autoattack``; the device is required: the defaults differ."""

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
            own = {"attacks": list(attacks_to_run) or None, "device": torch.device(device)}
            super().__init__(model, norm=norm, eps=eps, seed=seed, version=version, **own)
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

    return _module("autoattack", AutoAttack=AutoAttack) | {"autoattack.state": pyautoattack.state}


def gdown() -> dict[str, ModuleType]:
    """Make a stand-in for ``gdown``, which is pinned to an old release and downloads weights, as nothing does here."""
    return _module("gdown", download=_refuse_download)


def _timm(name: str) -> dict[str, ModuleType]:
    """Make a stand-in for a module of timm that is deprecated, of the one that holds its names now."""
    return {name: importlib.import_module("timm.layers" if name == "timm.models.layers" else "timm.models")}


BRIDGES: dict[str, Callable[[], dict[str, ModuleType]]] = {
    "pkg_resources": pkg_resources,
    "autoattack": autoattack,
    "gdown": gdown,
    **{name: partial(_timm, name) for name in ("timm.models.layers", "timm.models.helpers", "timm.models.registry")},
}
"""Module that RobustBench imports -> function that makes a stand-in for it and its submodules, where it is missing."""


def _missing(name: str) -> bool:
    if sys.modules.get(name) is not None:
        return False
    try:
        return importlib.util.find_spec(name) is None
    except (ImportError, ValueError):
        return True


def _module(name: str, **attributes: Any) -> dict[str, ModuleType]:
    module = ModuleType(name)
    vars(module).update(attributes)
    return {name: module}


def _refuse_download(*_: Any, **__: Any) -> None:
    raise InputError("Weights of RobustBench's zoo are not downloaded here; place them where its loader looks.")
