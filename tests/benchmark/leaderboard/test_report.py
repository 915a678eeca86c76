"""The page: what it says, that it stands alone, that nothing breaks out of it, and that it works in a browser."""

import base64
import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from benchmark.leaderboard import tables
from benchmark.leaderboard.page.facts import Table, answers, headline, rows_of, warnings
from benchmark.leaderboard.page.markup import join, tag
from benchmark.leaderboard.report import write_report
from benchmark.results.entry import Entry, pack
from benchmark.results.layout import entry_path, picture_path, write_entry
from methods.errors import InputError

Make = Callable[..., Entry]
ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "benchmark" / "leaderboard" / "page"
SECTIONS = (
    *("leaderboard", "tradeoff", "samples", "significance", "masking", "attacks", "curves", "energies"),
    *("training", "ablations", "protocol", "columns", "checking"),
)
CHARTS = ("tradeoff", "cascade", "marginal", "curves", "energies", "training")
NOTHING_INSIDE = {"meta", "link", "input", "img", "rect", "path", "circle", "br"}
HOSTILE = "<script>window.hacked = true</script>\"'&amp;"
"""A name that would run, were it markup."""


ABLATED = {
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


class Page(HTMLParser):
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
        if tag not in NOTHING_INSIDE:
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


def verdicts(share: float, seed: int, n: int = 100) -> str:
    """Return outcomes of which a share is right, more alike between seeds than chance."""
    rank = np.argsort(np.argsort(np.arange(n) + np.random.default_rng(seed).normal(0, 8, n)))
    return pack(rank < round(share * n))


def measured(metric: str, values: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a measurement as an entry's file has it."""
    same = {"metric": metric, "version": 1, "status": "done", "n": 100, "seconds": 2.0, "key": "0" * 64}
    return {**same, "values": values, **fields}


def full(entry: Make, recipe: str, seed: int, robust: float, **fields: Any) -> Entry:
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
        "clean": measured("clean", {"accuracy": 90.0}, verdicts={"accuracy": verdicts(0.9, seed)}),
        "pgd20": measured(
            "pgd20", {"accuracy": robust + 4}, verdicts={"accuracy": verdicts(robust / 100 + 0.04, seed)}
        ),
        "autoattack": measured(
            "autoattack",
            {"accuracy": robust, **cascade, "after_square": robust},
            verdicts={"accuracy": verdicts(robust / 100, seed)},
            flags=["Square was not needed"],
        ),
        "generation": measured(
            "generation", {"class_gaussian_agreement": 97.0, "class_gaussian_agreement_start": 80.0}
        ),
        "fid_ref": measured("fid_ref", {"fid_ref": 100 - robust}),
        "marginal": measured(
            "marginal", {f"{name}_accuracy": robust + 5 for name in attacks} | {"worst_accuracy": robust + 1}
        ),
        "sweep": measured(
            "sweep",
            {"half_radius": 0.1, "unbounded_accuracy": 0.0},
            series={"eps": [0.0, 0.15, 1.0], "eps_accuracy": [90.0, robust, 0.0], "steps": [1.0, 20.0, 100.0]}
            | {"steps_accuracy": [robust + 9, robust + 4, None]},
        ),
        "landscape": measured("landscape", {"energy_overlap": 0.5}, series=histogram),
        "masking": measured(
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


@pytest.fixture
def leaderboards(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, entry: Make) -> Path:
    """Results in which nothing is missing: three rows of two seeds, a hostile one, and another protocol's table."""
    built = tmp_path_factory.getbasetemp() / "full-leaderboards"
    if not built.exists():
        _build(built, entry)
    return shutil.copytree(built, tmp_path / "leaderboards")


def _build(folder: Path, entry: Make) -> None:
    for recipe, accuracy in (("trades", 60.0), ("pgd_at", 58.0), ("jem", 5.0)):
        for seed in (0, 1):
            path = write_entry(folder, full(entry, recipe, seed, accuracy + seed))
            picture_path(path).parent.mkdir(exist_ok=True)
            Image.new("L", (40, 30), 99).save(picture_path(path))
    subject = entry().subject.model_dump() | {"flags": [HOSTILE]}
    write_entry(folder, entry(HOSTILE, subject=subject, overrides=[HOSTILE], config_digest="9" * 64))
    write_entry(folder, entry("trades", protocol=("digits-linf-v1", "b" * 12, "standard"), values={"clean": 77.0}))
    write_entry(folder, entry("ebjdat", **ABLATED))
    tables.rebuild(folder)


def page(leaderboards: Path) -> Page:
    """Write the page beside the results, and parse it."""
    return Page(write_report(leaderboards, leaderboards.parent / "report.html"))


def table_of(*entries: Entry) -> Table:
    """Make the table of some entries."""
    rows = rows_of({entry_path(Path(), entry): entry for entry in entries})
    first = entries[0]
    return Table(Path("digits/linf-0.15"), first.dataset, first.threat, first.protocol, rows, ())


@pytest.fixture
def beside_papers(tmp_path: Path, entry: Make) -> Path:
    """Results on CIFAR-10's JPEG edition, beside which numbers are quoted: TRADES, and a method without any."""
    folder = tmp_path / "leaderboards"
    for recipe in ("trades", "ebjdat_ce"):
        fields = {"dataset": "cifar10-jpeg", "threat": "Linf:8/255", "config_digest": f"{len(recipe):064}"}
        write_entry(folder, entry(recipe, n=50, **fields))
    tables.rebuild(folder)
    return folder


# --- What it says ----------------------------------------------------------------------------------------------------


def test_every_row_and_entry_is_there(leaderboards: Path) -> None:
    parsed = page(leaderboards)
    entries = {path.resolve() for path in leaderboards.glob("*/*/entries/*.json")}
    linked = {(leaderboards / name).resolve() for name in parsed.data["entries"]}
    assert len(entries) == 8
    assert entries == linked
    firsts = {(leaderboards / row["entries"][0]).resolve() for table in parsed.data["tables"] for row in table["rows"]}
    assert firsts <= parsed.files()
    assert {path.resolve() for path in leaderboards.glob("*/*/ablations/*/entries/*.json")} <= parsed.files()
    assert all(path.exists() for path in parsed.files())
    assert len([attributes for attributes in parsed.all("tr") if "data-words" in attributes]) == 5


def test_tables_of_other_protocols_do_not_mix(leaderboards: Path) -> None:
    tables = page(leaderboards).data["tables"]
    assert [len(table["rows"]) for table in tables] == [4, 1]
    assert [table["decisive"] for table in tables] == ["autoattack", "clean"]
    assert len({table["id"] for table in tables}) == 2


def test_every_part_is_there(leaderboards: Path) -> None:
    parsed = page(leaderboards)
    first = parsed.data["tables"][0]["id"]
    identifiers = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    assert {f"{first}-{section}" for section in SECTIONS} <= identifiers
    targets = {attributes["href"][1:] for attributes in parsed.all("a") if attributes["href"].startswith("#")}
    assert targets <= identifiers
    assert {attributes.get("data-chart") for attributes in parsed.all("div")} >= set(CHARTS)
    assert "1. trades : 97.0 ± 0.0 % recognised as the wanted class, 80.0 ± 0.0 % before any step" in parsed.text(
        f"{first}-samples"
    )
    court = parsed.text(f"{first}-masking")
    assert "trades clear ✓ 0 vs 5 n/a ✓ 9 vs 5" in court
    assert "jem suspect (2 of 2 seeds): zero gradient ✓ 0 vs 5 n/a ✗ 9 vs 5" in court
    assert "ce, pull" in parsed.text(f"{first}-ablations")
    assert "Measured under digits-linf-v1, not under this table's protocol" not in parsed.text(f"{first}-ablations")
    assert "python -m benchmark compare trades pgd_at" in parsed.text(f"{first}-checking")
    assert len([image for image in parsed.all("img") if image["width"] == "40" and image["height"] == "30"]) == 4


def test_no_difference_is_without_what_sets_it_apart(beside_papers: Path) -> None:
    parsed = page(beside_papers)
    (table,) = parsed.data["tables"]
    rows = {row["name"]: row["reported"] for row in table["rows"]}
    assert rows["ebjdat_ce"] == {}
    first, *further = rows["trades"]["autoattack"]
    assert first == {
        **{"value": "53.40", "difference": "-3.40 (data, architecture, part)"},
        **{"origin": "EB-JDAT v1 (arXiv 2505.19459), Table 2"},
        **{"terms": "cifar10; WRN-34-10; Linf:8/255; protocol standard"},
        **{"caveat": "Whether the paper measured this row or quotes it is not stated."},
    }
    found = {number["origin"]: number["difference"] for number in further}
    assert found["RobustBench"] == "-3.08 (data, architecture, part, eps)"
    board = parsed.text(f"{table['id']}-leaderboard")
    assert "53.40 -3.40 data, architecture, part" in board
    assert "data: measured on another data set" in parsed.text(f"{table['id']}-columns")


def test_what_is_missing_is_said(tmp_path: Path, entry: Make) -> None:
    write_entry(tmp_path / "leaderboards", entry(values={"clean": 90.0, "autoattack": None}))
    parsed = page(tmp_path / "leaderboards")
    name = parsed.data["tables"][0]["id"]
    for section in ("samples", "significance", "masking", "curves", "energies", "training", "ablations"):
        assert "Not measured." in parsed.text(f"{name}-{section}"), section
    assert parsed.text(f"{name}-attacks").count("Not measured.") == 2
    opening = [cell["data-column"] for cell in parsed.all("a") if "data-column" in cell]
    assert opening[:2] == ["clean", "autoattack"]
    assert "failed" in parsed.text(f"{name}-leaderboard")
    assert "A metric failed: trades." in parsed.text(name)
    assert not {"curves", "energies", "cascade"} & {attributes.get("data-chart") for attributes in parsed.all("div")}


def test_what_some_rows_lack_is_said_of_them(leaderboards: Path, entry: Make) -> None:
    write_entry(leaderboards, entry("standard", config_digest="5" * 64))
    parsed = page(leaderboards)
    name = parsed.data["tables"][0]["id"]
    for section in ("curves", "energies", "training"):
        assert re.search(r"Not measured for: .*standard", parsed.text(f"{name}-{section}")), section
    assert "standard not measured" in parsed.text(f"{name}-masking")
    assert re.search(r"Not tested: .*standard", parsed.text(f"{name}-significance"))


def test_ablations_alone_have_a_page(tmp_path: Path, entry: Make) -> None:
    folder = tmp_path / "leaderboards"
    write_entry(folder, entry("ebjdat", **ABLATED))
    tables.rebuild(folder)
    parsed = page(folder)
    name = parsed.data["tables"][0]["id"]
    assert "Nothing is measured yet." in parsed.text(name)
    assert "ce, pull" in parsed.text(f"{name}-ablations")


def test_an_ablation_under_another_protocol_says_so(leaderboards: Path, entry: Make) -> None:
    write_entry(leaderboards, entry("ebjdat", protocol=("digits-linf-v0", "c" * 12, "standard"), **ABLATED))
    tables.rebuild(leaderboards)
    parsed = page(leaderboards)
    first, second = (parsed.text(f"{table['id']}-ablations") for table in parsed.data["tables"])
    assert first.count("Measured under digits-linf-v0, not under this table's protocol") == 1
    assert first.count("ce, pull") == 2
    assert "ce, pull" not in second


def robust(entry: Make, recipe: str, *percent: float, kept: bool = True, **fields: Any) -> list[Entry]:
    """Make a row: a seed for each accuracy under AutoAttack, with or without outcomes per image."""
    entries = [full(entry, recipe, seed, value, **fields) for seed, value in enumerate(percent)]
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


def test_the_headline_answers_a_newcomer(entry: Make) -> None:
    rows = [*robust(entry, "trades", 60.0, 62.0), *robust(entry, "pgd_at", 20.0, 21.0), *robust(entry, "jem", 5.0, 6.0)]
    table = table_of(*rows)
    text = headline(table)
    assert text.startswith("trades leads with 61.00 ± 1.41 % under AutoAttack (95 % interval 5")
    assert "40.5 points ahead of pgd_at (significant)" in text
    assert text.endswith("Gradient masking: trades is clear, 1 suspect.")
    assert [answer.short for answer in answers(table)] == [
        *("trades, 61.0 %", "40.5 points", "significant", "trades is clear, 1 suspect", "97.0 % recognised")
    ]
    assert [answer.tone for answer in answers(table)] == ["good", "plain", "good", "good", "plain"]


def test_a_lead_by_luck_is_not_called_significant(entry: Make) -> None:
    table = table_of(*robust(entry, "trades", 60.0, 62.0), *robust(entry, "pgd_at", 59.0, 61.0))
    answer = answers(table)[2]
    assert answer.short == "not significant"
    assert "Not distinguishable from trades, corrected for the number of pairs: pgd_at." in answer.long


def test_without_outcomes_nothing_is_called_significant(entry: Make) -> None:
    kept, lost = robust(entry, "trades", 60.0), robust(entry, "pgd_at", 10.0, kept=False)
    for entries in ([*kept, *lost], [*robust(entry, "trades", 60.0, kept=False), *lost]):
        answer = answers(table_of(*entries))[2]
        assert answer.short == "not tested"
        assert "do not overlap" in answer.long


def test_a_suspected_winner_is_said_first(entry: Make) -> None:
    answer = answers(table_of(*robust(entry, "jem", 80.0), *robust(entry, "trades", 60.0)))[3]
    assert (answer.short, answer.tone) == ("suspected of the leader", "bad")
    assert answer.long == "jem: suspect: zero gradient."


def test_no_attack_no_claim(entry: Make) -> None:
    table = table_of(entry("standard", values={"clean": 95.0}))
    assert headline(table).startswith("standard leads with 95.00 % on clean images; no attack was measured")
    assert "upper bound" in answers(table)[0].long
    pgd = table_of(entry("standard", values={"clean": 95.0, "pgd20": 40.0}))
    assert "under PGD-20" in headline(pgd)
    assert "No row has AutoAttack, so this is an upper bound only." in answers(pgd)[0].long


def test_warnings_name_what_to_be_careful_about(entry: Make) -> None:
    budget = {"training": {"budget": "scaled down: 1 epoch"}}
    rows = [
        entry("trades", values={"clean": 90.0, "autoattack": 50.0}, **budget),
        entry("trades", seed=1, values={"clean": 90.0}, **budget),
        entry("pgd_at", n=40, values={"clean": 80.0}, provenance={"dirty": True}),
        *robust(entry, "jem", 5.0),
    ]
    text = " ".join(warnings(table_of(*rows)))
    assert "Training budget of 1 of 3 rows: scaled down: 1 epoch." in text
    assert "Partial, measured on the first 40 of 100 test images only: pgd_at." in text
    assert "from 100, an accuracy near 50 % is known to ± 9.6 points" in text
    assert "A single seed, so that nothing is known of other trainings: jem, pgd_at." in text
    assert "AutoAttack for some of the seeds only: trades." in text
    assert "Without AutoAttack, and ranked behind those that have it: pgd_at." in text
    assert "A training collapsed and was stopped; measured on older weights: jem." in text
    assert "Measured with uncommitted changes in the code: pgd_at." in text


def test_a_part_of_the_images_does_not_win(entry: Make) -> None:
    table = table_of(entry("trades", n=20, values={"autoattack": 99.0}), entry("pgd_at", values={"autoattack": 50.0}))
    assert headline(table).startswith("pgd_at leads")
    assert answers(table)[1].short == "no rival"


def test_rows_of_one_recipe_are_told_apart(entry: Make) -> None:
    rows = [entry("trades"), entry("trades", config_digest="7" * 64), entry("trades", n=20)]
    table = table_of(*rows)
    assert sorted(row.name for row in table.rows) == [
        *("trades (100 images, 77777777)", "trades (100 images, cccccccc)", "trades (20 images, cccccccc)")
    ]
    assert table.comparison(table.rows[0]) == (
        "python -m benchmark compare trades-77777777 trades-cccccccc --dataset digits --threat Linf:0.15 "
        "--protocol digits-linf-v1"
    )


def test_commands_repeat_the_row(entry: Make) -> None:
    rows = rows_of({Path("a.json"): entry(overrides=["train.epochs=5", "data.x=a b"], n=20, which="last")})
    assert rows[0].repeat == (
        "python -m benchmark run --methods trades --seeds 0 --set train.epochs=5 --set 'data.x=a b' --which last "
        "--dataset digits --protocol digits-linf-v1 --limit 20"
    )
    subject = {"kind": "external", "weights_digest": "1" * 64, "architecture": "net", "parameters": 1}
    outside = entry("net.py:make", subject=subject, seed=None, config_digest=None)
    assert rows_of({Path("a.json"): outside})[0].repeat.startswith("python -m benchmark evaluate --model net.py:make")


# --- The file --------------------------------------------------------------------------------------------------------


def test_the_page_is_a_pure_function(leaderboards: Path) -> None:
    output = leaderboards.parent / "report.html"
    first = write_report(leaderboards, output).read_bytes()
    assert write_report(leaderboards, output).read_bytes() == first
    moved = shutil.copytree(leaderboards, leaderboards.parent / "elsewhere" / "leaderboards")
    assert write_report(moved, moved.parent / "report.html").read_bytes() == first


def test_links_lead_from_where_the_page_lies(leaderboards: Path) -> None:
    for output in (leaderboards / "index.html", leaderboards.parent / "a" / "b" / "page.html"):
        parsed = Page(write_report(leaderboards, output))
        assert len(parsed.files()) > 5
        assert all(path.exists() for path in parsed.files())


def test_the_page_stands_alone(leaderboards: Path) -> None:
    parsed = page(leaderboards)
    for _, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "poster"):
            assert not re.match(r"(?!data:)[a-z]+:|//", attributes.get(name, "")), attributes
    assert {image["src"].partition(",")[0] for image in parsed.all("img")} == {"data:image/webp;base64"}
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    policy = parsed.all("meta")[1]["content"]
    for kind in ("style", "script"):
        inside = re.findall(rf"<{kind}>(.*?)</{kind}>", parsed.source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert len(inside) == 1
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_text_from_entries_stays_text(leaderboards: Path) -> None:
    parsed = page(leaderboards)
    assert len(parsed.all("script")) == 2
    assert (
        parsed.data["entries"][next(name for name in parsed.data["entries"] if "script" in name)]["recipe"] == HOSTILE
    )
    assert HOSTILE in parsed.text(f"{parsed.data['tables'][0]['id']}-leaderboard")
    assert parsed.source.count(HOSTILE) == 0
    assert not set("<>&") & set("".join(parsed.texts["data"]))


def test_markup_escapes_what_is_not_markup() -> None:
    assert tag("p", "<b>", tag("b", "&"), None, class_='"', data_x=True, id=None) == (
        '<p class="&quot;" data-x>&lt;b&gt;<b>&amp;</b></p>'
    )
    assert join("<", tag("img", alt="'")) == '&lt;<img alt="&#x27;"/>'


def test_bad_input_is_told_in_a_sentence(tmp_path: Path, entry: Make) -> None:
    folder, output = tmp_path / "leaderboards", tmp_path / "report.html"
    with pytest.raises(InputError, match=r"There are no entries in .*leaderboards"):
        write_report(folder, output)
    path = write_entry(folder, entry())
    for content, reason in (("{", "cannot be read"), ('{"recipe": "x"}', "The entry"), ("[1]", "The entry")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=reason):
            write_report(folder, output)
    damaged = full(entry, "trades", 0, 50.0)
    damaged.measurements["autoattack"].verdicts["accuracy"] = "AAAA"
    path.unlink()
    write_entry(folder, damaged)
    with pytest.raises(InputError, match="autoattack of trades, seed 0"):
        write_report(folder, output)
    assert not output.exists()


def test_an_ablation_without_its_table_is_told(leaderboards: Path) -> None:
    (leaderboards / "digits" / "linf-0.15" / "ablations" / "inner_objective" / "table.csv").unlink()
    with pytest.raises(InputError, match=r"table\.csv cannot be read.* build it by python -m benchmark leaderboard"):
        page(leaderboards)


def test_the_committed_results_have_a_page(tmp_path: Path) -> None:
    parsed = Page(write_report(ROOT / "leaderboards", tmp_path / "report.html"))
    entries = list((ROOT / "leaderboards").glob("*/*/entries/*.json"))
    print(f"{len(entries)} entries, {len(parsed.data['tables'])} tables, {len(parsed.source) / 1e6:.2f} MB")
    assert len(parsed.data["entries"]) == len(entries)
    assert len(parsed.source) < 6e6
    assert parsed.text(parsed.data["tables"][0]["id"])


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_from_their_ground() -> None:
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", style))
    least = {"ink": 7.0, "soft": 4.5, "link": 4.5, "good": 4.5, "bad": 4.5, "open": 4.5, "focus": 3.0}
    least |= {f"c{number}": 3.0 for number in range(1, 8)}
    for scheme in (0, 1):
        for name, ratio in least.items():
            for ground in ("ground", "card", "sunk"):
                one, other = sorted(luminance(pairs[key].split(", ")[scheme]) for key in (name, ground))
                assert (other + 0.05) / (one + 0.05) >= ratio, (name, ground, ("light", "dark")[scheme])


# --- In a browser ----------------------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium, driven over chromedriver's HTTP interface (W3C WebDriver)."""

    def __init__(self, driver: str, chromium: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [driver, f"--port={self._port}"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--force-prefers-reduced-motion"]
        options = {"binary": chromium, "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        for attempt in range(100):
            try:
                self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
                break
            except urllib.error.URLError:
                if attempt == 99:
                    raise
                time.sleep(0.1)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def _ask(self, path: str, body: object = None, method: str = "POST") -> Any:
        return self._call(method, f"/session/{self._session}{path}", body)

    def open(self, path: Path) -> None:
        """Open a file."""
        self._ask("/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        """Run the body of a function, and return what it returns."""
        return self._ask("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str) -> Any:
        """Return what a function returns as soon as that is true."""
        for _ in range(100):
            if found := self.run(script):
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def press(self, *keys: str) -> None:
        """Press and release keys one after another."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def screen(self, width: int, scheme: str) -> None:
        """Set the width of the window in CSS pixels, and the colour scheme that the system prefers."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        for command, parameters in (
            ("Emulation.setDeviceMetricsOverride", size),
            ("Emulation.setEmulatedMedia", {"features": features}),
        ):
            self._ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def complaints(self) -> list[str]:
        """Return what the console has, and forget it."""
        return [line["message"] for line in self._ask("/se/log", {"type": "browser"})]

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            self._ask("", method="DELETE")
        finally:
            self._process.terminate()
            self._process.wait(10)


ENTER, TAB, ESCAPE = "\ue007", "\ue004", "\ue00c"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for all tests that need one."""
    driver, binary = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or binary is None:
        pytest.skip("needs Chromium and chromedriver (Debian: chromium, chromium-driver)")
    opened = Browser(driver, binary)
    yield opened
    opened.close()


@pytest.fixture
def opened(chromium: Browser, leaderboards: Path) -> Browser:
    """The browser, with the page of the full results before it."""
    chromium.screen(1280, "light")
    chromium.open(write_report(leaderboards, leaderboards.parent / "report.html"))
    return chromium


def names(browser: Browser) -> list[str]:
    """Return the rows that are seen of the table that is seen, in order."""
    return browser.run(
        "return [...document.querySelectorAll('.board:not([hidden]) .leaders tbody tr:not([hidden])')]"
        ".map((row) => row.querySelector('th a').textContent)"
    )


def test_the_page_opens_quietly_and_asks_for_nothing(opened: Browser) -> None:
    drawn = opened.run(
        "return [...document.querySelectorAll('.board:not([hidden]) [data-chart]')].map((host) => host.dataset.chart)"
    )
    assert drawn == list(CHARTS)
    for kind in CHARTS:
        opened.run("document.querySelector(`[data-chart=${arguments[0]}]`).scrollIntoView()", kind)
        opened.wait(f"return document.querySelector('[data-chart={kind}] .plot svg title') !== null")
    assert opened.run("return window.hacked === undefined")
    assert (
        opened.run("return performance.getEntriesByType('resource').filter((one) => !one.name.startsWith('data:'))")
        == []
    )
    assert opened.complaints() == []
    drawn = opened.run("return [...document.querySelectorAll('[data-chart]')].map((one) => one.innerHTML).join('')")
    assert "not measured" in drawn
    for word in ("NaN", "undefined", "null"):
        assert word not in drawn
    unread = opened.run(
        "return [...document.querySelectorAll('.plot [role=img], .plot [role=button]')]"
        ".filter((one) => one.tabIndex !== 0 || !one.getAttribute('aria-label')).length"
    )
    assert unread == 0


def test_the_table_sorts_and_filters(opened: Browser) -> None:
    before = names(opened)
    assert before == ["trades", "pgd_at", HOSTILE, "jem"]
    click = "document.querySelector('.leaders th[data-column=fid_ref] button').click();"
    order = "return document.querySelector('.leaders th[data-column=fid_ref]').getAttribute('aria-sort')"
    assert opened.run(click + order) == "ascending"
    assert names(opened) == ["trades", "pgd_at", "jem", HOSTILE]
    assert opened.run(click + order) == "descending"
    assert names(opened) == ["jem", "pgd_at", "trades", HOSTILE]
    set_search = "const box = document.querySelector('[name=text]'); box.value = arguments[0];"
    opened.run(set_search + "box.dispatchEvent(new Event('input', {bubbles: true}))", "PGD")
    assert names(opened) == ["pgd_at"]
    assert opened.run("return document.querySelector('.count').textContent") == "1 of 4 rows"
    opened.run(set_search + "box.dispatchEvent(new Event('input', {bubbles: true}))", "")
    opened.run("document.querySelector('[name=flagged]').click()")
    assert names(opened) == []
    opened.run("document.querySelector('[name=flagged]').click(); document.querySelector('[name=every]').click()")
    assert opened.run("return document.querySelector('.leaders th.rare').offsetWidth > 0")


def test_the_other_table_is_one_click_away(opened: Browser) -> None:
    opened.run("document.querySelectorAll('.cards a')[1].click()")
    opened.wait("return document.querySelectorAll('.board')[0].hidden")
    assert names(opened) == ["trades"]
    assert opened.run("return document.querySelectorAll('.cards a')[1].getAttribute('aria-current')") == "true"


def test_a_number_says_how_it_was_made_and_by_keyboard(opened: Browser) -> None:
    opened.run("document.querySelector('a[data-row][data-column=autoattack]').focus()")
    opened.press(ENTER)
    text = opened.wait("const box = document.querySelector('dialog'); return box.open && box.textContent")
    for words in (
        *("60.50 ± 0.71", "digits/linf-0.15/entries/trades", "f" * 40, "torch 2.6", "digits-linf-v1", "a" * 12),
        *(
            "autoattack, version 1",
            "Square was not needed",
            "100 of 100",
            "seed",
            "after_apgd_ce 63",
            "python -m benchmark",
        ),
    ):
        assert words in text, words
    opened.press(ESCAPE)
    opened.wait("return !document.querySelector('dialog').open")
    assert opened.run("return document.activeElement.dataset.column") == "autoattack"
    opened.run(
        "[...document.querySelectorAll('.leaders th a')].find((one) => one.textContent.includes('script')).click()"
    )
    assert HOSTILE in opened.wait("const box = document.querySelector('dialog'); return box.open && box.textContent")
    assert opened.run("return document.querySelectorAll('dialog script').length + (window.hacked ? 1 : 0)") == 0


def test_a_difference_opens_every_source_of_the_number(chromium: Browser, beside_papers: Path) -> None:
    chromium.screen(1280, "light")
    chromium.open(write_report(beside_papers, beside_papers.parent / "report.html"))
    chromium.run("document.querySelector('.leaders .apart').parentElement.querySelector('a').click()")
    text = chromium.wait("const box = document.querySelector('dialog'); return box.open && box.textContent")
    for words in ("clean 85.72", "+4.28 (data, architecture, part)", "TRADES repository", "Trained at eps .031."):
        assert words in text, words
    assert "autoattack 53.40" not in text
    chromium.press(ESCAPE)
    chromium.run("[...document.querySelectorAll('.leaders th a')].find((one) => one.textContent === 'trades').click()")
    text = chromium.wait("const box = document.querySelector('dialog'); return box.open && box.textContent")
    for words in ("clean 85.72", "autoattack 53.40", "energy_gap_mean 1.01"):
        assert words in text, words
    assert chromium.complaints() == []


def test_everything_is_reached_by_keyboard(opened: Browser) -> None:
    opened.press(TAB)
    assert opened.run("return document.activeElement.className") == "skip"
    for kind in CHARTS:
        opened.run("document.querySelector(`[data-chart=${arguments[0]}]`).scrollIntoView()", kind)
        opened.wait(f"return document.querySelector('[data-chart={kind}] .plot') !== null")
    silent = opened.run(
        "const named = (one) => one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length;"
        "return [...document.querySelectorAll('a, button, select, input, [tabindex=\"0\"]')]"
        ".filter((one) => one.tabIndex < 0 || !named(one)).map((one) => one.outerHTML)"
    )
    assert silent == []
    boxes = opened.run(
        "const scrolls = (one) => one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX === 'auto';"
        "return [...document.querySelectorAll('main div')]"
        ".filter((one) => scrolls(one) && one.tabIndex !== 0).map((one) => one.className)"
    )
    assert boxes == []


def test_colours_follow_the_system_and_the_button(opened: Browser) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(ground)
    opened.screen(1280, "dark")
    dark = opened.run(ground)
    assert light != dark
    press = "document.querySelector('.theme').click();"
    assert opened.run(press + ground) == light
    assert opened.run(press + ground) == dark
    opened.run(press)
    opened.screen(1280, "light")
    assert opened.run(ground) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(chromium: Browser, tmp_path: Path, scheme: str) -> None:
    chromium.screen(360, scheme)
    chromium.open(write_report(ROOT / "leaderboards", tmp_path / "report.html"))
    chromium.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for _ in range(2):
        kinds = chromium.run(
            "return [...document.querySelectorAll('.board:not([hidden]) [data-chart]')].map((one) => one.dataset.chart)"
        )
        for kind in kinds:
            find = f"document.querySelector('.board:not([hidden]) [data-chart={kind}]')"
            chromium.run(f"{find}.scrollIntoView()")
            chromium.wait(f"return {find}.querySelector('.plot') !== null")
        assert chromium.run("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
        chromium.run("[...document.querySelectorAll('.cards a')].at(-1).click()")
        chromium.wait("return document.querySelectorAll('.board')[0].hidden")
    assert chromium.complaints() == []
