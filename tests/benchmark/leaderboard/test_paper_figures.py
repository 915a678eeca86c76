"""The figures of a paper: what they take from the entries, and what they leave out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.evaluation.runner import evaluate
from benchmark.leaderboard import paper_figures
from benchmark.leaderboard.figures.attacks import Cascade, Curve
from benchmark.leaderboard.figures.trade_off import Point
from benchmark.leaderboard.paper_figures import write_figures
from benchmark.results.entry import Entry, Measurement
from benchmark.results.layout import write_entry
from benchmark.results.store import Store
from methods.errors import InputError

Entries = Callable[..., Entry]
LEFT = {"accuracy": 50.0, "after_fab_t": 52.0, "after_apgd_t": 53.0, "after_apgd_ce": 60.0, "clean_accuracy": 90.0}


@pytest.fixture
def having(entry: Entries) -> Entries:
    """Make an entry whose metrics have values and series: name -> values, and name -> series."""

    def make(
        values: dict[str, dict[str, Any]], series: dict[str, dict[str, list[Any]]] | None = None, **fields: Any
    ) -> Entry:
        made = entry(values=dict.fromkeys(values, 0.0), **fields)
        found = {
            name: measurement.model_copy(update={"values": values[name], "series": (series or {}).get(name, {})})
            for name, measurement in made.measurements.items()
        }
        return made.model_copy(update={"measurements": found})

    return make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """Note what each figure would be drawn from, by the end of its file's name."""
    calls: dict[str, tuple[Any, ...]] = {}

    def note(stem: Path, *arguments: Any, **_: Any) -> list[Path]:
        calls[stem.name.rpartition("-")[2]] = arguments
        return []

    for name in ("trade_off", "curves", "histograms", "cascade"):
        monkeypatch.setattr(paper_figures, name, note)
    return calls


def sweep(shift: float = 0.0) -> dict[str, list[Any]]:
    return {
        "eps": [0.0, 0.15, 0.3],
        "eps_accuracy": [90 + shift, 50 + shift, 0.0],
        "steps": [1.0, 20.0],
        "steps_accuracy": [60 + shift, 50 + shift],
    }


def landscape(first: float = -4.0) -> dict[str, list[Any]]:
    """Two bins of width 2 from ``first`` on."""
    edges = [first, first + 2, first + 4]
    return {"edges": edges, "clean": [100.0, 0.0], "adversarial": [0.0, 100.0], "generated": [50.0, 50.0]}


ALL = {"clean": {"accuracy": 90.0}, "pgd20": {"accuracy": 55.0}, "autoattack": LEFT}


def test_every_figure_is_written_where_entries_have_its_numbers(tmp_path: Path, having: Entries) -> None:
    boards, folder = tmp_path / "leaderboards", tmp_path / "figures"
    for seed in (0, 1):
        write_entry(
            boards,
            having(
                {**ALL, "landscape": {}, "sweep": {}}, {"sweep": sweep(seed), "landscape": landscape(seed)}, seed=seed
            ),
        )
    folder.mkdir()
    (folder / "mine.png").touch()
    written = write_figures(boards, folder)
    stem = "digits/linf-0.15/digits-linf-v1-aaaaaaaa"
    names = ("cascade", "energies", "eps", "steps", "tradeoff")
    assert written == [folder / f"{stem}-{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert {path for path in folder.rglob("*") if path.is_file()} == {*written, folder / "mine.png"}


def test_nothing_is_written_without_numbers(tmp_path: Path, entry: Entries) -> None:
    boards, folder = tmp_path / "leaderboards", tmp_path / "figures"
    assert write_figures(boards, folder) == []
    write_entry(boards, entry(values={"clean": 90.0, "autoattack": None, "landscape": None, "sweep": None}))
    assert write_figures(boards, folder) == []
    assert not folder.exists()


def test_each_data_set_and_protocol_has_figures_of_its_own(
    tmp_path: Path, entry: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_figures, "trade_off", lambda stem, *_: [stem])
    write_entry(tmp_path, entry())
    write_entry(tmp_path, entry(protocol=("authors-v1", "b" * 12, "authors")))
    write_entry(tmp_path, entry(dataset="imagefolder:/data/a", threat="Linf:8/255"))
    assert [str(path.relative_to(tmp_path)) for path in write_figures(tmp_path, tmp_path)] == [
        "digits/linf-0.15/authors-v1-bbbbbbbb-tradeoff",
        "digits/linf-0.15/digits-linf-v1-aaaaaaaa-tradeoff",
        "imagefolder-a/linf-8_255/digits-linf-v1-aaaaaaaa-tradeoff",
    ]


def test_seeds_are_one_point_and_what_is_no_classifier_is_named_instead(
    tmp_path: Path, having: Entries, drawn: dict[str, tuple[Any, ...]]
) -> None:
    for seed in (0, 1):
        generated = {"generation": {"class_gaussian_agreement": 80.0 + seed}, "fid_ref": {"fid_ref": 3.0 + seed}}
        write_entry(
            tmp_path,
            having({"clean": {"accuracy": 90.0 + seed}, "autoattack": {"accuracy": 50.0}, **generated}, seed=seed),
        )
    write_entry(tmp_path, having({"clean": {"accuracy": 10.0}, "autoattack": {"accuracy": 1.0}}, recipe="mebm"))
    write_figures(tmp_path, tmp_path / "figures")
    title, points, generation, low_is_good = drawn["tradeoff"]
    assert points == [Point("trades", [90.0, 91.0], [50.0, 50.0], [3.0, 4.0])]
    assert ("reference network" in generation, low_is_good) == (True, True)
    assert "standard deviation over seeds" in title
    assert title.endswith("mebm (10 %)")


def test_methods_measured_on_the_most_images_are_shown_the_better_ones_first(
    tmp_path: Path, entry: Entries, drawn: dict[str, tuple[Any, ...]]
) -> None:
    for recipe, robust in (("weak", 10.0), ("strong", 60.0)):
        write_entry(tmp_path, entry(recipe, values={"clean": 90.0, "autoattack": robust}))
    write_entry(tmp_path, entry("strong", n=10))
    for digest in "fg":
        write_entry(tmp_path, entry("twice", config_digest=digest * 64, values={"clean": 90.0, "autoattack": 5.0}))
    write_figures(tmp_path, tmp_path / "figures")
    title, points, *_ = drawn["tradeoff"]
    assert [point.label for point in points] == ["strong", "weak", "twice (ffff, best)", "twice (gggg, best)"]
    assert "100 images" in title


def test_histograms_of_seeds_are_laid_on_common_edges(
    tmp_path: Path, having: Entries, drawn: dict[str, tuple[Any, ...]]
) -> None:
    for seed, first in enumerate((-4.0, -2.0)):
        values = {"landscape": {"energy_overlap": 0.25 + seed / 2}}
        write_entry(tmp_path, having(values, {"landscape": landscape(first)}, seed=seed))
    empty = landscape() | {"generated": [None, None]}
    write_entry(tmp_path, having({"landscape": {}}, {"landscape": empty}, recipe="broken"))
    write_figures(tmp_path, tmp_path / "figures")
    (panel,) = drawn["energies"][1]
    assert panel.label == "trades\noverlap 0.50 ± 0.35"
    assert panel.edges == [-4, -1, 2]
    # Within a bin, images are spread evenly.
    assert panel.shares["clean"] == [[100, 0], [50, 50]]
    assert panel.shares["adversarial"] == [pytest.approx([50, 50]), [0, 100]]
    assert [sum(seed) for seed in panel.shares["generated"]] == [pytest.approx(100)] * 2


def test_histograms_are_those_that_the_metric_measures(
    tmp_path: Path, toy: Any, protocol: Callable[..., Any], entry: Entries, drawn: dict[str, tuple[Any, ...]]
) -> None:
    settings = {"pgd20": {}, "generation": {"starts": ["uniform"], "steps": 2}, "landscape": {"source": "uniform"}}
    found: dict[str, Measurement] = evaluate(
        toy().subject(), toy().dataset, protocol(metrics=settings), store=Store(tmp_path / "store"), progress=False
    )
    write_entry(tmp_path, entry().model_copy(update={"measurements": {"landscape": found["landscape"]}}))
    write_figures(tmp_path, tmp_path / "figures")
    (panel,) = drawn["energies"][1]
    assert len(panel.edges) == 41
    assert panel.shares["clean"] == [pytest.approx(found["landscape"].series["clean"], abs=0.01)]


def test_curves_have_a_line_a_method_and_the_protocols_radius(
    tmp_path: Path, having: Entries, drawn: dict[str, tuple[Any, ...]]
) -> None:
    for seed in (0, 1):
        write_entry(tmp_path, having({"sweep": {}}, {"sweep": sweep(seed)}, seed=seed))
    write_figures(tmp_path, tmp_path / "figures")
    _, lines, _, mark = drawn["eps"]
    assert lines == [Curve("trades", [0.0, 0.15, 0.3], [[90, 50, 0], [91, 51, 0]])]
    assert mark == pytest.approx(0.15)
    assert drawn["steps"][1] == [Curve("trades", [1.0, 20.0], [[60, 50], [61, 51]])]


def test_parts_of_the_cascade_make_up_all_images(
    tmp_path: Path, having: Entries, drawn: dict[str, tuple[Any, ...]]
) -> None:
    write_entry(tmp_path, having({"autoattack": LEFT, "pgd20": {"accuracy": 61.0}}))
    write_entry(tmp_path, having({"autoattack": {"accuracy": 1.0}}, recipe="old"))
    write_figures(tmp_path, tmp_path / "figures")
    assert drawn["cascade"][1] == [Cascade("trades", [[50, 2, 1, 7, 30, 10]], [61])]


def test_malformed_entry_is_named(tmp_path: Path, entry: Entries) -> None:
    path = write_entry(tmp_path, entry())
    path.write_text("{}")
    with pytest.raises(InputError, match=path.name):
        write_figures(tmp_path, tmp_path / "figures")
