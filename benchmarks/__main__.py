"""``python -m benchmarks [NAMES...]``: run benchmarks, and rewrite the results of this machine."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

import benchmarks
from benchmarks import results
from benchmarks.timing import Row, Settings
from methods.errors import InputError, nearest
from methods.training.devices import select_device

REPEATS = 5


def discovered() -> dict[str, ModuleType]:
    """Return the benchmarks by NAME, in the order of the table: every module of the package that has NAME and run."""
    modules = [
        import_module(f"benchmarks.{found.name}")
        for found in iter_modules(benchmarks.__path__)
        if found.name != "__main__"
    ]
    known = {module.NAME: module for module in modules if hasattr(module, "NAME") and hasattr(module, "run")}
    return {name: known[name] for name in sorted(known, key=results.place)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments name; return the exit status."""
    try:
        return _run(_parse(arguments))
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this project on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; all by default")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: shows that it runs, measures nothing")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help=f"repeats of each measurement (default: {REPEATS})"
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--output", type=Path, help="folder of the results (default: one for each hardware)")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    if options.repeats < 1:
        raise InputError(f"--repeats is at least 1, not {options.repeats}.")
    settings = Settings(
        select_device(options.device), options.quick, 1 if options.quick else options.repeats, options.data
    )
    known = discovered()
    chosen = [_resolved(name, known) for name in options.names] or list(known)
    chosen = [name for name in known if name in chosen]
    machine = results.hardware(settings.device)
    # Quick numbers get a folder of their own, so that they never stand among measured ones.
    folder = options.output or results.RESULTS / (results.slug(machine) + ("-quick" if options.quick else ""))
    measured = results.read(folder)
    # Now, and not after hours of measuring, is the time to hear that nothing can be written there.
    results.write(folder, machine, measured)
    failures = []
    for position, name in enumerate(chosen):
        _say(f"{name} ({position + 1} of {len(chosen)}){_eta(chosen[position:], measured)}")
        started = time.monotonic()
        try:
            rows = _rows(name, known[name], settings, measured)
        except InputError:
            raise
        except KeyboardInterrupt:
            _say(f"Interrupted; this continues: python -m benchmarks {' '.join(chosen[position:])}")
            return 130
        except Exception as error:
            # The other benchmarks are worth their time all the same, and the rows of the last good run stay.
            traceback.print_exc()
            failures.append(f"{name}: {error}")
            continue
        found = results.circumstances(settings, time.monotonic() - started)
        measured[name] = results.Measured(tuple(rows), found)
        results.write(folder, machine, measured)
    for failure in failures:
        _say(f"failed: {failure}")
    _say(f"{folder / 'results.md'}")
    return 1 if failures else 0


def _rows(name: str, module: ModuleType, settings: Settings, measured: Mapping[str, results.Measured]) -> list[Row]:
    before = measured.get(name)
    rows: list[Row] = []
    started = time.monotonic()
    for row in module.run(settings):
        rows.append(row)
        left = ""
        if before is not None and len(rows) < len(before.rows):
            elapsed = time.monotonic() - started
            left = f"; {len(rows)}/{len(before.rows)}, ETA {elapsed / len(rows) * (len(before.rows) - len(rows)):.0f} s"
        _say(f"  {row.case}: {results.spread(row)} {row.measure}{left}")
    return rows


def _eta(names: Sequence[str], measured: Mapping[str, results.Measured]) -> str:
    """Return how long the benchmarks took when they last ran."""
    known = [measured[name].circumstances["seconds"] for name in names if name in measured]
    if not known:
        return ""
    unknown = len(names) - len(known)
    more = f" and {unknown} never run here" if unknown else ""
    return f", ETA of all that is left: {sum(known):.0f} s{more}"


def _resolved(name: str, known: Mapping[str, ModuleType]) -> str:
    by_module = {module.__name__.rpartition(".")[2]: title for title, module in known.items()}
    spelled = name.lower().replace("_", "-")
    found = spelled if spelled in known else by_module.get(spelled)
    if found is None:
        listed = ", ".join(known)
        raise InputError(f'There is no benchmark "{name}" (known: {listed}).{nearest(name, known)}')
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
