"""The runner: order, failures, caches, crashes, and a model that ends as it began."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.evaluation.runner import evaluate
from benchmark.metrics import autoattack, clean
from benchmark.models.reference import reference
from benchmark.results.entry import Measurement, unpack
from benchmark.results.store import SaveError, Store
from benchmark.specs import registry
from benchmark.specs.protocol import Protocol
from methods.data import load
from methods.errors import InputError
from methods.primitives.threat import ThreatModel

Protocols = Callable[..., Protocol]
SHORT_SWEEP = {"eps": [0, 0.5, 1, 2], "steps": [1, 20]}


def numbers(results: dict[str, Measurement]) -> dict[str, Any]:
    """Return everything of the results that time does not change."""
    return {
        name: (result.status, result.error, result.flags, result.key, values(result))
        for name, result in results.items()
    }


def values(result: Measurement) -> dict[str, Any]:
    """Return the values that time does not change."""
    return {name: value for name, value in result.values.items() if not name.startswith("seconds")}


def test_all_metrics_of_the_protocol_run_in_the_registry_s_order(toy: Any, protocol: Protocols, store: Store) -> None:
    shuffled = protocol(metrics={"energy": {}, "pgd20": {}, "clean": {}})
    results = evaluate(toy().subject(), toy().dataset, shuffled, store=store, progress=False)
    assert list(results) == ["clean", "pgd20", "energy"]
    assert {result.status for result in results.values()} == {"done"}
    assert {result.n for result in results.values()} == {24}
    chosen = evaluate(toy().subject(), toy().dataset, shuffled, metrics=["pgd20"], store=store, progress=False)
    assert list(chosen) == ["pgd20"]


@pytest.mark.parametrize(("limit", "n"), [(1, 1), (13, 13), (24, 24), (1000, 24)])
def test_limit_takes_the_first_images(toy: Any, protocol: Protocols, store: Store, limit: int, n: int) -> None:
    results = evaluate(
        toy().subject(), toy().dataset, protocol(), limit=limit, metrics=["clean"], store=store, progress=False
    )
    samples = store.samples(results["clean"])
    assert samples is not None
    assert results["clean"].n == n == len(samples["correct"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"limit": 0}, "limit"),
        ({"batch_size": 0}, "batch size"),
        ({"metrics": ["claen"]}, 'Did you mean "clean"'),
        ({"metrics": ["autoattack"]}, 'no metric "autoattack"'),
    ],
)
def test_bad_arguments_are_told_before_anything_runs(
    toy: Any, protocol: Protocols, store: Store, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        evaluate(toy().subject(), toy().dataset, protocol(), store=store, **arguments)
    assert not store.root.exists()


def test_what_does_not_fit_together_is_refused(toy: Any, protocol: Protocols, store: Store) -> None:
    with pytest.raises(InputError, match="classes"):
        evaluate(toy(classes=5).subject(), toy().dataset, protocol(), store=store)
    with pytest.raises(InputError, match="for digits, not for toy"):
        evaluate(toy().subject(), toy().dataset, protocol(dataset="digits"), store=store)


def test_failed_metric_keeps_its_error_and_the_rest_is_measured(toy: Any, protocol: Protocols, store: Store) -> None:
    class Cut(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).detach()

    cut = toy().subject(Cut(toy().model()))
    results = evaluate(cut, toy().dataset, protocol(), store=store, progress=False)
    assert [result.status for result in results.values()] == ["done", "failed", "failed"]
    error = results["pgd20"].error
    assert error is not None
    assert error.startswith("RuntimeError: ")
    assert "\n" not in error
    assert results["pgd20"].values == {}
    # A failure is tried again.
    mended = evaluate(toy().subject(), toy().dataset, protocol(), store=store, progress=False)
    assert {result.status for result in mended.values()} == {"done"}


def test_diverged_model_fails_and_gets_no_accuracy(toy: Any, protocol: Protocols, store: Store) -> None:
    model = toy().model()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    results = evaluate(toy().subject(model), toy().dataset, protocol(), store=store, progress=False)
    assert {result.status for result in results.values()} == {"failed"}
    assert "not finite" in str(results["clean"].error)


def test_save_errors_are_fatal(toy: Any, protocol: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise SaveError("Cannot write: no space left on device.")

    monkeypatch.setattr(Store, "save_shard", full)
    with pytest.raises(SaveError):
        evaluate(toy().subject(), toy().dataset, protocol(), store=store, progress=False)


def test_second_evaluation_asks_the_model_nothing(toy: Any, protocol: Protocols, store: Store) -> None:
    first_model, second_model = toy().model(), toy().model()
    first = evaluate(toy().subject(first_model), toy().dataset, protocol(), store=store, progress=False)
    second = evaluate(toy().subject(second_model), toy().dataset, protocol(), store=store, progress=False)
    assert first_model.forwards > 0
    assert second_model.forwards == 0
    assert second == first


def test_model_ends_exactly_as_it_began(toy: Any, protocol: Protocols, store: Store) -> None:
    linear = toy().model()
    model = nn.Sequential(linear, nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    vars(model)["autocast"] = torch.bfloat16
    linear.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    results = evaluate(toy().subject(model), toy().dataset, protocol(), store=store, progress=False)
    assert {result.status for result in results.values()} == {"done"}
    assert [module.training for module in model.modules()] == flags
    assert vars(model)["autocast"] == torch.bfloat16
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_metrics_see_eval_mode_full_precision_and_frozen_weights(
    toy: Any, protocol: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    own = clean.measure

    def spying(data: Any) -> Measurement:
        subject = data.subject
        seen["training"] = subject.model.training
        seen["autocast"] = vars(subject.model)["autocast"]
        seen["requires_grad"] = subject.model.weight.requires_grad
        seen["matmul"] = torch.get_float32_matmul_precision()
        seen["cudnn"] = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
        return own(data)

    monkeypatch.setattr(clean, "measure", spying)
    model = toy().model().train()
    vars(model)["autocast"] = torch.bfloat16
    torch.set_float32_matmul_precision("high")
    try:
        evaluate(toy().subject(model), toy().dataset, protocol(), metrics=["clean"], store=store, progress=False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == {
        "training": False,
        "autocast": None,
        "requires_grad": False,
        "matmul": "highest",
        "cudnn": (True, False),
    }


def test_batch_size_is_recorded_and_changes_no_verdict_here(toy: Any, protocol: Protocols, tmp_path: Path) -> None:
    whole, split = (
        evaluate(
            toy().subject(), toy().dataset, protocol(), batch_size=size, store=Store(tmp_path / name), progress=False
        )
        for name, size in (("whole", None), ("split", 3))
    )
    assert [result.values["batch_size"] for result in (*whole.values(), *split.values())] == [10] * 3 + [3] * 3
    for name in ("clean", "pgd20"):
        assert whole[name].values["accuracy"] == split[name].values["accuracy"]


def test_batch_size_moves_next_to_no_verdict_of_a_real_network(tmp_path: Path) -> None:
    """A larger one than the shard changes nothing at all: a shard is what a forward pass has at most."""
    digits, network = load("digits"), reference("digits", torch.device("cpu"))
    chosen = Protocol(id="batches-v1", threat="Linf:0.05", metrics={"pgd20": {}, "sweep": SHORT_SWEEP})

    def measured(batch_size: int) -> dict[str, Measurement]:
        place, few = Store(tmp_path / str(batch_size)), {"limit": 100, "progress": False}
        return evaluate(network, digits, chosen, batch_size=batch_size, store=place, **few)

    whole = measured(100)
    for batch_size in (34, 200):
        other = measured(batch_size)
        pairs = [
            (unpack(whole[metric].verdicts[name], 100), unpack(packed, 100))
            for metric in whole
            for name, packed in other[metric].verdicts.items()
        ]
        agreement = float(np.mean([first == second for first, second in pairs]))
        print(f"batch size {batch_size} against 100: {100 * agreement:.2f} % of {100 * len(pairs)} verdicts agree")
        assert agreement >= (0.995 if batch_size < 100 else 1)
        assert {measurement.values["batch_size"] for measurement in other.values()} == {min(batch_size, 100)}


@pytest.mark.parametrize("broken", ["shard-0001", "measurement-", "samples-"])
def test_broken_files_are_computed_again_to_the_same_numbers(
    toy: Any, protocol: Protocols, store: Store, broken: str
) -> None:
    first = evaluate(toy().subject(), toy().dataset, protocol(), store=store, progress=False)
    for path in store.root.rglob("*"):
        if path.name.startswith((broken, "measurement-")):
            path.write_bytes(path.read_bytes()[:50])
    again = evaluate(toy().subject(), toy().dataset, protocol(), store=store, progress=False)
    assert numbers(again) == numbers(first)


# Each kill is that of a fork, which has imported everything.
KILLED = """
import os, signal, sys
from pathlib import Path
import conftest
from benchmark.specs.protocol import Protocol
from benchmark.evaluation.runner import evaluate
from benchmark.results.store import Store

toy = conftest.toy.__wrapped__()()
protocol = Protocol.model_validate_json(Path("protocol.json").read_text())

class Fatal(conftest.Linear):
    def forward(self, x):
        if self.forwards == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

for last in map(int, sys.argv[1:]):
    child = os.fork()
    if child == 0:
        model = Fatal(toy.weight).eval()
        model.last = last
        evaluate(toy.subject(model), toy.dataset, protocol, store=Store(Path(f"store-{last}")))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""


def test_kill_9_and_a_second_run_give_the_numbers_of_an_uninterrupted_one(
    toy: Any, protocol: Protocols, tmp_path: Path
) -> None:
    tests = Path(__file__).resolve().parents[1]
    (tmp_path / "protocol.json").write_text(protocol().model_dump_json())
    places = ("2", "30")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *places],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tests.parents[1]}:{tests}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == 0, killed.stderr
    whole_model, fresh = toy().model(), Store(tmp_path / "fresh")
    whole = evaluate(toy().subject(whole_model), toy().dataset, protocol(), store=fresh, progress=False)
    for place in places:
        store, resumed_model = Store(tmp_path / f"store-{place}"), toy().model()
        assert list(store.root.rglob("shard-*.npz"))
        resumed = evaluate(toy().subject(resumed_model), toy().dataset, protocol(), store=store, progress=False)
        assert numbers(resumed) == numbers(whole)
        assert 0 < resumed_model.forwards < whole_model.forwards


def test_verdicts_are_compared_image_by_image(
    toy: Any, protocol: Protocols, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoAttack's module is exchanged for one that calls every image robust."""
    fake = type("Fake", (), {"VERSION": 1, "NEEDS": (), "COLUMNS": clean.COLUMNS, "Config": clean.Config})
    monkeypatch.setattr(fake, "cross_check", autoattack.cross_check, raising=False)

    def measure(data: Any) -> Measurement:
        arrays = data.map(lambda shard: {"broken_by": np.zeros(len(shard.y), dtype=np.int64)})
        return data.finish(arrays, {"accuracy": 100.0})

    monkeypatch.setattr(fake, "measure", measure, raising=False)
    get = registry.get
    monkeypatch.setattr(registry, "get", lambda name: fake if name == "autoattack" else get(name))
    results = evaluate(
        toy(wrong=2).subject(),
        toy(wrong=2).dataset,
        protocol(metrics={"clean": {}, "pgd20": {}, "autoattack": {}}),
        store=store,
        progress=False,
    )
    samples = store.samples(results["pgd20"])
    assert samples is not None
    broken = int((~samples["correct"]).sum())
    assert broken > 2
    values = results["autoattack"].values
    assert values["pgd20_breaks_autoattack_does_not"] == broken
    assert values["clean_verdicts_that_differ"] == 2
    assert len(results["autoattack"].flags) == 2


def test_each_finished_metric_is_one_line_on_stderr(
    toy: Any, protocol: Protocols, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(toy().subject(), toy().dataset, protocol(), store=store)
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["clean", "pgd20", "energy"]
    assert "91.67 (n=24" in captured.err
    unjudged = protocol(metrics={"generation": {"starts": ["uniform"], "steps": 1}})
    evaluate(toy().subject(), toy().dataset, unjudged, store=store)
    assert capsys.readouterr().err.startswith("generation: - (n=24")
    assert captured.out == ""


def test_terminal_gets_a_bar_and_the_same_numbers(
    toy: Any, protocol: Protocols, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    silent = evaluate(toy().subject(), toy().dataset, protocol(), store=Store(tmp_path / "a"), progress=False)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    shown = evaluate(toy().subject(), toy().dataset, protocol(), store=Store(tmp_path / "b"))
    assert numbers(shown) == numbers(silent)
    assert "3/3" in terminal.getvalue()


def test_threat_of_the_protocol_reaches_the_attack(toy: Any, protocol: Protocols, store: Store) -> None:
    for threat in ("Linf:0.03", "L2:0.25"):
        results = evaluate(
            toy().subject(), toy().dataset, protocol(threat=threat), metrics=["pgd20"], store=store, progress=False
        )
        largest = results["pgd20"].values["max_perturbation"]
        assert largest == pytest.approx(ThreatModel.parse(threat).radius, rel=1e-3)
