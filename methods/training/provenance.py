"""What a result must say of the code, the libraries and the device that made it."""

import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "pyautoattack",
    "robustbench",
    "torch-fidelity",
    "lpips",
    "trilemma",
)


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def commit() -> dict[str, Any]:
    """Return the commit of the code and whether the code (methods, benchmark, configs) differs from it.

    Both are None where the project does not lie in its own git checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if _git("rev-parse", "--show-toplevel") != str(root):
        return {"commit": None, "dirty": None}
    changed = _git("status", "--porcelain", "--", *(str(root / part) for part in ("methods", "benchmark", "configs")))
    return {"commit": _git("rev-parse", "HEAD"), "dirty": changed != ""}


def provenance(device: torch.device) -> dict[str, Any]:
    """Return commit, versions, device, threads and platform as plain JSON data."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return commit() | {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "platform": sys.platform,
    }
