"""Results in which nothing is missing, the page made of them, and what reads it back."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from benchmark.leaderboard import tables
from benchmark.leaderboard.page.board import Board, board_rows
from benchmark.leaderboard.report import write_report
from benchmark.results.entry import Entry, pack
from benchmark.results.layout import entry_path, picture_path, write_entry

Make = Callable[..., Entry]
ROOT = Path(__file__).resolve().parents[3]
_NOTHING_INSIDE = {"meta", "link", "input", "img", "rect", "path", "circle", "br"}
_HOSTILE = "<script>window.hacked = true</script>\"'&amp;"
_ABLATED = {
    "ablation": {"name": "inner_objective", "row": "ce, pull"},
    "overrides": [
        *(
            "options.attack.objective=ce",
            "options.attack.perceptual=none",
            "options.attack.scale=eps-8",
            "options.h2=pull",
        )
    ],
}


class ParsedPage(HTMLParser):
    """A parsed page; every element is closed in order, or an assertion fails."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        """By the id of the nearest element that has one."""
        self._open: list[tuple[str, str]] = []
        self.feed(self.source)
        self.close()
        assert [name for name, _ in self._open] == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, attributes))
        if tag not in _NOTHING_INSIDE:
            nearest = self._open[-1][1] if self._open else ""
            self._open.append((tag, attributes.get("id", nearest)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1][1] if self._open else "", []).append(data)

    def all(self, name: str) -> list[dict[str, str]]:
        """Return the attributes of all elements of a name."""
        return [attributes for tag, attributes in self.elements if tag == name]

    def text(self, identifier: str) -> str:
        """Return what is written in an element and not in one inside it that has an id."""
        return " ".join(" ".join(self.texts.get(identifier, [])).split())

    @property
    def data(self) -> dict[str, Any]:
        """What the script gets."""
        return json.loads("".join(self.texts["data"]))

    def files(self) -> set[Path]:
        """Return the files that links lead to."""
        links = {attributes["href"] for attributes in self.all("a")}
        return {(self.path.parent / unquote(link)).resolve() for link in links if not link.startswith("#")}


@cache
def _parsed(path: Path) -> ParsedPage:
    return ParsedPage(path)


def _verdicts(share: float, seed: int, n: int = 100) -> str:
    """Return outcomes of which a share is right, more alike between seeds than chance."""
    rank = np.argsort(np.argsort(np.arange(n) + np.random.default_rng(seed).normal(0, 8, n)))
    return pack(rank < round(share * n))


def _measured(metric: str, values: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a measurement as an entry's file has it."""
    same = {"metric": metric, "version": 1, "status": "done", "n": 100, "seconds": 2.0, "key": "0" * 64}
    return {**same, "values": values, **fields}


def _full(entry: Make, recipe: str, seed: int, robust: float, **fields: Any) -> Entry:
    """Make an entry with everything the page can show, ``robust`` percent of whose images withstand AutoAttack."""
    cascade = {"clean_accuracy": 90.0, "after_apgd_ce": robust + 3, "after_apgd_t": robust + 1, "after_fab_t": robust}
    checks = [
        {"name": "radius", "measured": 0.0, "bound": 5.0, "passed": True, "meaning": "Falls to 0."},
        {"name": "noise", "measured": None, "bound": None, "passed": None, "meaning": "does not apply: no noise"},
        {"name": "zero gradient", "measured": 9.0, "bound": 5.0, "passed": recipe != "jem", "meaning": "Few are 0."},
    ]
    histogram = {"edges": [-3.0, -2.0, -1.0, 0.0], "clean": [60.0, 40.0, 0.0], "adversarial": [10.0, 40.0, 50.0]}
    histogram["generated"] = [50.0, 50.0, 0.0]
    attacks = ("apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square")
    measurements = {
        "clean": _measured("clean", {"accuracy": 90.0}, verdicts={"accuracy": _verdicts(0.9, seed)}),
        "pgd20": _measured(
            "pgd20", {"accuracy": robust + 4}, verdicts={"accuracy": _verdicts(robust / 100 + 0.04, seed)}
        ),
        "autoattack": _measured(
            "autoattack",
            {"accuracy": robust, **cascade, "after_square": robust},
            verdicts={"accuracy": _verdicts(robust / 100, seed)},
            flags=["Square was not needed"],
        ),
        "generation": _measured(
            "generation", {"class_gaussian_agreement": 97.0, "class_gaussian_agreement_start": 80.0}
        ),
        "fid_ref": _measured("fid_ref", {"fid_ref": 100 - robust}),
        "marginal": _measured(
            "marginal", {f"{name}_accuracy": robust + 5 for name in attacks} | {"worst_accuracy": robust + 1}
        ),
        "sweep": _measured(
            "sweep",
            {"half_radius": 0.1, "unbounded_accuracy": 0.0},
            series={"eps": [0.0, 0.15, 1.0], "eps_accuracy": [90.0, robust, 0.0], "steps": [1.0, 20.0, 100.0]}
            | {"steps_accuracy": [robust + 9, robust + 4, None]},
        ),
        "landscape": _measured("landscape", {"energy_overlap": 0.5}, series=histogram),
        "masking": _measured(
            "masking", {"verdict": "suspect: zero gradient" if recipe == "jem" else "clear"}, checks=checks
        ),
    }
    training = {
        **{"epochs": 2.0, "steps": 20, "seconds": 3.0, "precision": "float32", "restarts": 0, "interventions": []},
        "curves": {"epoch": [0.5, 1.0, 2.0], "loss": [2.0, None, 1.0], "accuracy_clean": [20.0, 50.0, 80.0]},
        "first_epoch": {"loss": 2.0},
        "last_epoch": {"loss": 1.0},
        "collapse": {"epoch": 1.5, "cause": "loss", "found": "9", "step": 15} if recipe == "jem" else None,
    }
    content = {"training": training, "provenance": {"commit": "f" * 40, "versions": {"torch": "2.6"}}} | fields
    made = entry(recipe, seed=seed, values={}, config_digest=hashlib.sha256(recipe.encode()).hexdigest(), **content)
    return made.model_copy(
        update={"measurements": Entry.model_validate(made.model_dump() | {"measurements": measurements}).measurements}
    )


def _robust(entry: Make, recipe: str, *percent: float, kept: bool = True, **fields: Any) -> list[Entry]:
    """Make a row: a seed for each accuracy under AutoAttack, with or without outcomes per image."""
    entries = [_full(entry, recipe, seed, value, **fields) for seed, value in enumerate(percent)]
    if kept:
        return entries
    return [
        made.model_copy(
            update={
                "measurements": {
                    name: found.model_copy(update={"verdicts": {}, "checks": []})
                    for name, found in made.measurements.items()
                    if name in ("clean", "pgd20", "autoattack")
                }
            }
        )
        for made in entries
    ]


def _build(folder: Path, entry: Make) -> None:
    for recipe, accuracy in (("trades", 60.0), ("pgd_at", 58.0), ("jem", 5.0)):
        for seed in (0, 1):
            path = write_entry(folder, _full(entry, recipe, seed, accuracy + seed))
            picture_path(path).parent.mkdir(exist_ok=True)
            Image.new("L", (40, 30), 99).save(picture_path(path))
    subject = entry().subject.model_dump() | {"flags": [_HOSTILE]}
    write_entry(folder, entry(_HOSTILE, subject=subject, overrides=[_HOSTILE], config_digest="9" * 64))
    write_entry(folder, entry("trades", protocol=("digits-linf-v1", "b" * 12, "standard"), values={"clean": 77.0}))
    write_entry(folder, entry("ebjdat", **_ABLATED))
    tables.rebuild(folder)


@pytest.fixture
def hostile() -> str:
    """A name that would run, were it markup."""
    return _HOSTILE


@pytest.fixture
def ablated() -> dict[str, Any]:
    """The fields of an entry that is a row of an ablation."""
    return _ABLATED


@pytest.fixture
def full_entry(entry: Make) -> Make:
    """Make an entry with everything the page can show: (recipe, seed, accuracy under AutoAttack)."""
    return partial(_full, entry)


@pytest.fixture
def robust(entry: Make) -> Callable[..., list[Entry]]:
    """Make a row's entries: (recipe, *accuracies under AutoAttack by seed, kept=whether outcomes per image are)."""
    return partial(_robust, entry)


@pytest.fixture
def board_of() -> Callable[..., Board]:
    """Make the board of some entries."""

    def make(*entries: Entry) -> Board:
        rows = board_rows({entry_path(Path(), entry): entry for entry in entries})
        first = entries[0]
        return Board(Path("digits/linf-0.15"), first.dataset, first.threat, first.protocol, rows, ())

    return make


@pytest.fixture
def full_results(tmp_path_factory: pytest.TempPathFactory, entry: Make) -> Path:
    """Results in which nothing is missing, to be read only: three rows of two seeds, a hostile one, and another
    protocol's table; beside them their page, ``report.html``. They are built once a process.
    """
    folder = tmp_path_factory.getbasetemp() / "full-results"
    leaderboards = folder / "leaderboards"
    if not (folder / "report.html").exists():
        _build(leaderboards, entry)
        write_report(leaderboards, folder / "report.html")
    return leaderboards


@pytest.fixture
def full_page(full_results: Path) -> ParsedPage:
    """The page of the full results, parsed."""
    return _parsed(full_results.parent / "report.html")


@pytest.fixture
def leaderboards(full_results: Path, tmp_path: Path) -> Path:
    """A copy of the full results, without their page, that a test may change."""
    return shutil.copytree(full_results, tmp_path / "leaderboards")


@pytest.fixture
def page() -> Callable[[Path], ParsedPage]:
    """Write the page of some results beside them, or where ``output`` says, and parse it."""

    def make(leaderboards: Path, output: Path | None = None) -> ParsedPage:
        return ParsedPage(write_report(leaderboards, output or leaderboards.parent / "report.html"))

    return make


@pytest.fixture(scope="session")
def shipped_page(tmp_path_factory: pytest.TempPathFactory) -> ParsedPage:
    """The page of the results under version control; it takes seconds, so who needs it is of the group "browser"."""
    return _parsed(write_report(ROOT / "leaderboards", tmp_path_factory.mktemp("shipped") / "report.html"))


@pytest.fixture
def beside_papers(tmp_path: Path, entry: Make) -> Path:
    """Results on CIFAR-10's JPEG edition, beside which numbers are quoted: TRADES, and a method without any."""
    folder = tmp_path / "leaderboards"
    for recipe in ("trades", "ebjdat_ce"):
        fields = {"dataset": "cifar10-jpeg", "threat": "Linf:8/255", "config_digest": f"{len(recipe):064}"}
        write_entry(folder, entry(recipe, n=50, **fields))
    tables.rebuild(folder)
    return folder
