"""Who measures a shard, when, and how often it was killed before, changes no outcome of any image."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.cli import main
from benchmark.evaluation.parts import Part
from benchmark.evaluation.runner import measure, measure_part, pending, prepare
from benchmark.results.entry import Measurement
from benchmark.results.store import Store
from benchmark.specs.protocol import Protocol
from methods.errors import InputError

TESTS = Path(__file__).resolve().parents[1]
"""Where the conftest.py of these tests is."""
SWEEP = {"eps": [0, 0.5, 1], "steps": [1, 20]}
METRICS = {"clean": {}, "pgd20": {}, "autoattack": {}, "energy": {}, "sweep": SWEEP}
RADIUS = "Linf:0.2"
"""Where the first attacks of AutoAttack break most images, and the slow ones have little to do."""


def outcomes(results: dict[str, Measurement], store: Store) -> dict[str, dict[str, list[Any]]]:
    """Return every outcome of every image."""
    found = {}
    for name, result in results.items():
        assert result.status == "done", result.error
        samples = store.samples(result)
        assert samples is not None
        found[name] = {key: array.tolist() for key, array in samples.items()}
    return found


def test_parts_cover_every_shard_once() -> None:
    parts = [Part.parse(f"{number}/3") for number in (1, 2, 3)]
    assert [sum(shard in part for part in parts) for shard in range(7)] == [1] * 7
    assert [shard for shard in range(7) if shard in parts[0]] == [0, 3, 6]


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--shard takes i/n"):
        Part.parse(text)


def test_shuffled_parts_give_the_outcomes_of_one_process(
    toy: Any, protocol: Callable[..., Protocol], tmp_path: Path
) -> None:
    made, chosen = toy(images=12), protocol(metrics=METRICS, shard=3, threat=RADIUS)

    def todo(name: str) -> tuple[list[Any], Store]:
        store = Store(tmp_path / name)
        return prepare(made.subject(), made.dataset, chosen, store=store), store

    (whole, one), (shared, several) = todo("one"), todo("several")
    straight = outcomes(measure(whole, progress=False), one)
    parts = [Part(number, 4) for number in range(1, 5)]
    random.Random(3).shuffle(parts)
    done = []
    for part in parts:
        measure_part(shared, part, lambda: done.append(None))
    assert len(done) == pending(shared) == len(METRICS) * 4
    assert not list(several.root.rglob("measurement-*.json"))
    model = made.model()
    again = measure(prepare(made.subject(model), made.dataset, chosen, store=several), progress=False)
    assert outcomes(again, several) == straight
    assert model.forwards == 0
    assert pending(whole) == 0


@pytest.mark.parametrize("crew", ["in_process", pytest.param("processes", marks=pytest.mark.slow)])
def test_three_workers_give_the_outcomes_of_one(crew: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The real command on the digits, with every outcome read back from the store."""
    if crew == "in_process":
        request.getfixturevalue(crew)
    (tmp_path / "model.py").write_text(
        "import torch\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), "
        "torch.nn.Linear(288, 10))\n"
    )
    (tmp_path / "protocol.yaml").write_text(
        "id: parts-v1\ndataset: digits\nthreat: Linf:0.15\nshard: 7\nmetrics:\n  clean: {}\n  pgd20: {}\n  energy: {}\n"
    )
    stores = []
    for workers in (1, 3):
        runs = tmp_path / f"runs-{workers}"
        chosen = ["--model", f"{tmp_path / 'model.py'}:make", "--protocol", str(tmp_path / "protocol.yaml")]
        few = ["--dataset", "digits", "--limit", "40", "--device", "cpu", "--runs", str(runs)]
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *chosen, *few, "--workers", str(workers)])
        assert not stop.value.code
        found = {}
        for file in sorted(runs.rglob("samples-*.npz")):
            with np.load(file) as samples:
                found[file.relative_to(runs)] = {name: samples[name].tolist() for name in samples.files}
        stores.append(found)
    assert len(stores[0]) == 3
    assert stores[0] == stores[1]


class Killed(BaseException):
    """What no code of the evaluation may take for a failure of the model."""


def test_ten_interruptions_change_no_outcome(
    toy: Any, protocol: Callable[..., Protocol], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at ten drawn forward passes, each time after the same evaluation was started again."""
    made, chosen = toy(images=12), protocol(metrics=METRICS, shard=3, threat=RADIUS)
    model, fresh = made.model(), Store(tmp_path / "fresh")
    straight = outcomes(measure(prepare(made.subject(model), made.dataset, chosen, store=fresh), False), fresh)
    store, draw = Store(tmp_path / "store"), random.Random(0)
    killed = 0
    for _ in range(10):
        last, again = draw.randrange(model.forwards // 8), made.model()

        def fatal(_: Any, __: Any, last: int = last, again: Any = again) -> None:
            if again.forwards == last:
                raise Killed

        again.register_forward_pre_hook(fatal)
        try:
            measure(prepare(made.subject(again), made.dataset, chosen, store=store), progress=False)
        except Killed:
            killed += 1
    assert killed >= 3
    assert list(store.root.rglob("shard-*.npz"))
    resumed = measure(prepare(made.subject(), made.dataset, chosen, store=store), progress=False)
    assert outcomes(resumed, store) == straight


KILLED = """
import os, random, signal, sys
from pathlib import Path
import conftest
from benchmark.specs.protocol import Protocol
from benchmark.evaluation.runner import evaluate
from benchmark.results.store import Store

made = conftest.toy.__wrapped__()(images=12)
protocol = Protocol.model_validate_json(Path("protocol.json").read_text())
draw = random.Random(int(sys.argv[1]))

class Fatal(conftest.Linear):
    def forward(self, x):
        if self.forwards == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

for _ in range(10):
    last = draw.randrange(int(sys.argv[2]))
    child = os.fork()
    if child == 0:
        model = Fatal(made.weight).eval()
        model.last = last
        evaluate(made.subject(model), made.dataset, protocol, store=Store(Path("store")), progress=False)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else "finished", last)
"""


@pytest.mark.slow
def test_ten_kills_change_no_outcome(toy: Any, protocol: Callable[..., Protocol], tmp_path: Path) -> None:
    """kill -9 at ten drawn forward passes, each time after the same command was started again."""
    made, chosen = toy(images=12), protocol(metrics=METRICS, shard=3, threat=RADIUS)
    model, fresh = made.model(), Store(tmp_path / "fresh")
    straight = outcomes(measure(prepare(made.subject(model), made.dataset, chosen, store=fresh), False), fresh)

    (tmp_path / "protocol.json").write_text(chosen.model_dump_json())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "0", str(model.forwards // 8)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{TESTS.parents[1]}:{TESTS}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        text=True,
    )
    lines = killed.stdout.split("\n")[:-1]
    print(f"{model.forwards} forward passes uninterrupted: {', '.join(lines)}")
    assert killed.returncode == 0, killed.stderr
    assert len(lines) == 10
    assert sum(line.startswith("killed") for line in lines) >= 3
    store = Store(tmp_path / "store")
    assert list(store.root.rglob("shard-*.npz"))
    resumed = measure(prepare(made.subject(), made.dataset, chosen, store=store), progress=False)
    assert outcomes(resumed, store) == straight
