"""Peak memory: of one training step of each recipe, and of chains' starts on many classes and large images.

On the CPU it is the peak resident size beyond what was resident after set-up (network, optimiser, chains, data), each
measured in a fresh process; on CUDA the most that was allocated, set-up included.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from benchmark.specs import recipes
from benchmarks import synthetic
from benchmarks.stepping import Enough, train
from benchmarks.timing import Row, Settings
from methods.data.images import ImageSet
from methods.errors import InputError
from methods.primitives import starts
from methods.training.config import Experiment
from methods.training.devices import uses_bf16

NAME = "memory"
_ROOT = Path(__file__).resolve().parents[1]
_MIB = 2**20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FEW_CHAINS = {"negatives": {"buffer_size": 1000}}
_AUXILIARY = {"epochs": 1, "backbone": {"architecture": "wrn", **synthetic.QUICK_BACKBONE}}
_STARTS = (
    ("class_gaussian", 100, 32, 50_000),
    ("class_gaussian", 10, 64, 20_000),
    ("gaussian", 10, 64, 20_000),
    ("pca", 10, 64, 20_000),
)
"""Start, classes, side in pixels, and training images."""
_DRAWN = 64


def run(settings: Settings) -> Iterator[Row]:
    names = [name for name, path in recipes.recipes().items() if path.parent == recipes.CONFIGS and name != "reference"]
    size = "WRN-10-1" if settings.quick else "WRN-16-4"
    for recipe in ["standard", "ebjdat"] if settings.quick else names:
        found = _fresh("step", recipe, settings)
        facts = {"MiB after set-up": found["before"], "precision": found["precision"]}
        yield Row.of(NAME, f"{recipe}, {size}, batch 64", "MiB", [found["peak"]], **facts)
    for start, classes, side, images in _STARTS:
        count = images // 100 if settings.quick else images
        found = _fresh("start", f"{start}:{classes}:{side}:{count}", settings)
        matrix = (3 * side * side) ** 2 * 4 / _MIB
        case = f"start {start}, {classes} classes, {side}x{side}"
        matrices = classes if start != "gaussian" else 1
        facts = {"images": count, "drawn": _DRAWN, "MiB of a covariance matrix": matrix}
        yield Row.of(NAME, case, "MiB beyond the data", [found["peak"]], matrix * matrices, **facts)


def _fresh(what: str, name: str, settings: Settings) -> dict[str, Any]:
    """Measure in a process of its own, and return what it prints."""
    call = f"from benchmarks.memory import {what}; {what}({name!r}, {str(settings.device)!r}, {settings.quick})"
    command = [sys.executable, "-c", call]
    finished = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or ["it says nothing"]
        raise InputError(f"Measuring the memory of {name} ended with status {finished.returncode}: {lines[-1]}")
    return json.loads(finished.stdout.splitlines()[-1])


def experiment_of(recipe: str, quick: bool) -> Experiment:
    """Return a recipe with few chains and a small auxiliary network, which decide nothing of a step's peak."""
    plain = synthetic.training(recipe, quick=quick)
    options: dict[str, Any] = {}
    for holder, change in (("negatives", _FEW_CHAINS), ("host_options", {"host_options": _FEW_CHAINS})):
        if hasattr(plain.options, holder):
            options |= change
    if hasattr(plain.options, "auxiliary"):
        options["auxiliary"] = _AUXILIARY
    return synthetic.training(recipe, {"options": options}, quick=quick)


def step(recipe: str, device_name: str, quick: bool) -> None:
    """Print the peak of one training step as JSON."""
    experiment, device = experiment_of(recipe, quick), torch.device(device_name)
    mixed = experiment.data.generated.file is not None
    data = synthetic.dataset(512, side=8 if quick else 32, generated=512 if mixed else 0)
    before = 0.0

    def begin() -> None:
        nonlocal before
        before = _settled(device)

    def behind() -> None:
        precision = "bf16" if uses_bf16(experiment.train.precision, device) else "float32"
        print(json.dumps({"before": round(before), "peak": _peak(device, before), "precision": precision}))
        raise Enough

    train(experiment, data, device, behind, begin)


def start(description: str, device_name: str, quick: bool) -> None:
    """Print the peak of fitting a start and drawing from it as JSON."""
    name, classes, side, count = description.split(":")
    assert name in get_args(starts.StartName)
    device, random = torch.device(device_name), torch.Generator().manual_seed(0)
    shape = (int(count), 3, int(side), int(side))
    images = torch.randint(256, shape, dtype=torch.uint8, generator=random).to(device)
    labels = torch.arange(int(count)) % int(classes)
    data = ImageSet(images, labels.to(device))
    before = _settled(device)
    fitted = starts.start(name, data.images, data.labels, int(classes))
    fitted.sample_any(_DRAWN, torch.Generator(device).manual_seed(0))
    print(json.dumps({"before": before, "peak": _peak(device, before) - (before if device.type == "cuda" else 0)}))


def _settled(device: torch.device) -> float:
    """Forget the peak so far; return what is in use now, in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / _MIB
    try:
        # What the allocator kept for itself would hide the first use of it.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _RESET.write_text("5")
    except OSError as error:
        raise InputError("The peak memory of a process is read from /proc, which this system does not have.") from error
    return _resident("VmRSS")


def _peak(device: torch.device, before: float) -> float:
    """Return the peak since :func:`_settled` in MiB: on CUDA all of it, else what is beyond ``before``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    return _resident("VmHWM") - before


def _resident(entry: str) -> float:
    found = re.search(rf"^{entry}:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
