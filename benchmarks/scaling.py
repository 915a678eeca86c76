"""How the cost of an image grows with the data set, the batch and the shard; of several workers, see ``workers``.

Ideal is a flat line for the data set, and a falling one for batch and shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmark.evaluation import runner
from benchmark.models import subject
from benchmark.models.subject import Subject
from benchmark.results.store import Store
from benchmark.specs import protocol
from benchmarks import synthetic
from benchmarks.stepping import Enough, train
from benchmarks.timing import Row, Settings, synchronise, timed
from methods.data.images import Dataset
from methods.training.checkpoint import FILES, save_weights
from methods.training.config import Experiment
from methods.training.run_folder import describe
from methods.training.setup import build_method, build_model

NAME = "scaling"
MEASURE = "ms an image"
_IMAGES = (1_000, 10_000, 50_000)
_BATCHES = (16, 32, 64, 128)
_SHARDS = (10, 25, 50, 100)
_STEPS = 4
_CHAINS = {"host_options": {"negatives": {"buffer_size": 500}}}


def run(settings: Settings) -> Iterator[Row]:
    repeats = min(settings.repeats, 3)
    size = "WRN-10-1" if settings.quick else "WRN-16-1"
    small = {"backbone": {"depth": 10 if settings.quick else 16, "widen": 1}}
    for count in (200, 400) if settings.quick else _IMAGES:
        data = synthetic.dataset(count)
        for title, recipe, options in (("standard", "standard", {}), ("EB-JDAT", "ebjdat", _CHAINS)):
            experiment = synthetic.training(recipe, small, {"options": options})
            milliseconds = _steps(experiment, data, repeats, settings)
            yield Row.of(NAME, f"training: {title}, {size}, {count:,} images", MEASURE, milliseconds)
    data = synthetic.dataset(1000)
    for batch in _BATCHES[:2] if settings.quick else _BATCHES:
        experiment = synthetic.training("trades", small, batch_size=batch)
        milliseconds = _steps(experiment, data, repeats, settings)
        yield Row.of(NAME, f"training: TRADES, {size}, batch {batch}", MEASURE, milliseconds)
    yield from _evaluation(size, small, repeats, settings)


def _steps(experiment: Experiment, data: Dataset, repeats: int, settings: Settings) -> list[float]:
    """Return the milliseconds an image of ``repeats`` times a few steps of the trainer, after the first step."""
    seconds: list[float] = []
    done, started = 0, 0.0

    def behind() -> None:
        nonlocal done, started
        done += 1
        if (done - 1) % _STEPS == 0:
            synchronise()
            now = time.perf_counter()
            if done > 1:
                seconds.append(now - started)
            if len(seconds) == repeats:
                raise Enough
            started = now

    train(experiment, data, settings.device, behind)
    return [1000 * taken / (_STEPS * experiment.train.batch_size) for taken in seconds]


def _evaluation(size: str, small: dict[str, Any], repeats: int, settings: Settings) -> Iterator[Row]:
    data = synthetic.dataset(100, 20 if settings.quick else 100)
    experiment = synthetic.training("standard", small)
    with TemporaryDirectory() as folder:
        place = Path(folder) / FILES["best"]
        method = build_method(experiment, data)
        save_weights(place, build_model(experiment, data).state_dict(), describe(experiment, data, method))
        given = subject.from_checkpoint(place, settings.device)
        for shard in (10, 20) if settings.quick else _SHARDS:
            seconds = timed(lambda size=shard: _evaluated(given, data, size, Path(folder)), repeats)
            milliseconds = [1000 * taken / len(data.test) for taken in seconds]
            case = f"evaluation: clean and PGD-20, {size}, shards of {shard}"
            yield Row.of(NAME, case, MEASURE, milliseconds, shards=-(-len(data.test) // shard))


def _evaluated(given: Subject, data: Dataset, shard: int, folder: Path) -> None:
    chosen = protocol.load("attacks-v1", "Linf:8/255").model_copy(update={"shard": shard})
    with TemporaryDirectory(dir=folder) as fresh:
        runner.evaluate(given, data, chosen, metrics=["clean", "pgd20"], store=Store(Path(fresh)), progress=False)
