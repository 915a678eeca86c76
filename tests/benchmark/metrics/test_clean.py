"""Clean accuracy."""

from __future__ import annotations

from typing import Any

import pytest

from benchmark.evaluation.runner import evaluate
from benchmark.results.store import Store


@pytest.mark.parametrize("wrong", [0, 5, 24])
def test_accuracy_counts_correct_images(toy: Any, protocol: Any, store: Store, wrong: int) -> None:
    made = toy(wrong=wrong)
    results = evaluate(made.subject(), made.dataset, protocol(), metrics=["clean"], store=store, progress=False)
    assert results["clean"].values["accuracy"] == pytest.approx(100 * (24 - wrong) / 24)
    samples = store.samples(results["clean"])
    assert samples is not None
    assert samples["correct"].tolist() == [False] * wrong + [True] * (24 - wrong)
    logits = made.model()(made.dataset.test.unit())
    assert samples["predicted"].tolist() == logits.argmax(1).tolist()
