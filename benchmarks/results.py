"""What was measured, as files: results.json, and made of it results.md and results.png; one folder for each hardware.

Each benchmark carries the commit, versions and date of its own last run, because a run replaces only its own rows.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.picture import draw
from benchmarks.timing import AT_LEAST, Row, Settings
from methods.errors import InputError
from methods.files import write_json, write_text
from methods.training.provenance import commit

RESULTS = Path(__file__).resolve().parent / "results"
ORDER = ("training", "accuracy", "evaluation", "first-look", "overhead", "start-up", "memory", "scaling", "workers")
"""Benchmarks as the table shows them; others follow by name."""
_PACKAGES = ("torch", "numpy", "pyautoattack")


@dataclass(frozen=True)
class Measured:
    """The last run of one benchmark: its rows, and under what they were measured."""

    rows: tuple[Row, ...]
    circumstances: dict[str, Any]
    """commit, dirty, date, python, versions, threads, repeats, quick, seconds."""


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what the times depend on most: processor, cores in use, memory in GiB, and the GPU where one is used."""
    found: dict[str, Any] = {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_memory() / 2**30),
        "gpu": None,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def slug(machine: Mapping[str, Any]) -> str:
    """Return the folder name of a machine, such as ``intel-xeon-gold-6330-2-cores`` or that of its GPU."""
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    name = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*?ghz", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-")


def circumstances(settings: Settings, seconds: float) -> dict[str, Any]:
    """Return under what a benchmark ran that took ``seconds``, as plain data."""
    known = commit()
    return {
        "commit": known["commit"],
        "dirty": known["dirty"] or _benchmarks_changed(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "threads": torch.get_num_threads(),
        "repeats": settings.repeats,
        "quick": settings.quick,
        "seconds": round(seconds, 1),
    }


def read(folder: Path) -> dict[str, Measured]:
    """Return what results.json of a folder holds by benchmark; nothing where there is no such file.

    Raises:
        InputError: the file is truncated or foreign.
    """
    path = folder / "results.json"
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        return {name: Measured(tuple(Row(**row) for row in item.pop("rows")), item) for name, item in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is truncated or foreign; delete it to measure again.") from error


def write(folder: Path, machine: Mapping[str, Any], measured: Mapping[str, Measured]) -> None:
    """Write results.json, results.md and results.png.

    Raises:
        InputError: a file cannot be written.
    """
    ordered = {name: measured[name] for name in sorted(measured, key=place)}
    plain = {name: item.circumstances | {"rows": [asdict(row) for row in item.rows]} for name, item in ordered.items()}
    write_json(folder / "results.json", {"hardware": dict(machine), "benchmarks": plain})
    write_text(folder / "results.md", table(machine, ordered))
    rows = [row for item in ordered.values() for row in item.rows]
    if rows:
        quick = any(item.circumstances["quick"] for item in ordered.values())
        draw(folder / "results.png", ("QUICK, measures nothing: " if quick else "") + described(machine), rows)


def described(machine: Mapping[str, Any]) -> str:
    """Return the machine in words."""
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"


def table(machine: Mapping[str, Any], measured: Mapping[str, Measured]) -> str:
    """Return the page: the machine, then for each benchmark its circumstances and its rows."""
    parts = [
        "# Benchmarks\n",
        f"{described(machine)}. Made by `python -m benchmarks`; every number is the median over repeats, with the",
        "smallest and the largest in brackets (accuracy: of means, with single seeds in brackets). A speed-up is",
        "baseline / ours, both timed in turn.\n",
        "![the same as a picture](results.png)",
    ]
    for name, item in measured.items():
        parts += ["", f"## {name}\n", _sentence(item.circumstances), ""]
        parts += ["| case | measure | median [low, high] | target | met | facts |", "|---|---|---:|---:|---|---|"]
        parts += [_line(row) for row in item.rows]
    return "\n".join(parts) + "\n"


def _line(row: Row) -> str:
    bound = "≥" if row.measure in AT_LEAST else "≤"
    target = "" if row.target is None else f"{bound} {number(row.target)}"
    met = {None: "", True: "yes", False: "**no**"}[row.met]
    facts = ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else number(value)}"
        for name, value in sorted(row.facts.items())
    )
    cells = (row.case, row.measure, spread(row), target, met, facts)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def spread(row: Row) -> str:
    """Return the median with the smallest and the largest value."""
    return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"


def number(value: float) -> str:
    """Return a number with three digits that count, whole ones and large ones in full."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def _sentence(found: Mapping[str, Any]) -> str:
    tree = {None: "", True: ", with changes that are not committed", False: ""}[found["dirty"]]
    versions = ", ".join(f"{name} {text}" for name, text in sorted(found["versions"].items()))
    label = "**quick: shows that it runs, measures nothing**. " if found["quick"] else ""
    return (
        f"{label}{found['date']}, commit {(found['commit'] or 'unknown')[:10]}{tree}; Python {found['python']}, "
        f"{versions}; {found['threads']} threads; {found['repeats']} repeats; {found['seconds']:.0f} s."
    )


def place(name: str) -> tuple[int, str]:
    """Return what the benchmarks are sorted by: :data:`ORDER`, then the name."""
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _benchmarks_changed() -> bool:
    """Tell whether this package differs from its commit, its results aside."""
    command = ["git", "status", "--porcelain", "--", ".", ":!results"]
    try:
        done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout != ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
