"""The page: what it says, that it stands alone, and that nothing breaks out of it."""

import base64
import hashlib
import re
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from benchmark.leaderboard import report, tables
from benchmark.leaderboard.report import write_report
from benchmark.results.entry import Entry
from benchmark.results.layout import write_entry
from methods.errors import InputError

Make = Callable[..., Entry]
Pages = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]
SECTIONS = (
    *("leaderboard", "tradeoff", "samples", "significance", "masking", "attacks", "curves", "energies"),
    *("training", "ablations", "protocol", "columns", "checking"),
)
CHARTS = ("tradeoff", "cascade", "marginal", "curves", "energies", "training")


# --- What it says ----------------------------------------------------------------------------------------------------


def test_every_row_and_entry_is_there(full_results: Path, full_page: Any) -> None:
    entries = {path.resolve() for path in full_results.glob("*/*/entries/*.json")}
    linked = {(full_results / name).resolve() for name in full_page.data["entries"]}
    assert len(entries) == 8
    assert entries == linked
    firsts = {
        (full_results / row["entries"][0]).resolve() for table in full_page.data["tables"] for row in table["rows"]
    }
    assert firsts <= full_page.files()
    assert {path.resolve() for path in full_results.glob("*/*/ablations/*/entries/*.json")} <= full_page.files()
    assert all(path.exists() for path in full_page.files())
    assert len([attributes for attributes in full_page.all("tr") if "data-words" in attributes]) == 5


def test_tables_of_other_protocols_do_not_mix(full_page: Any) -> None:
    tables = full_page.data["tables"]
    assert [len(table["rows"]) for table in tables] == [4, 1]
    assert [table["decisive"] for table in tables] == ["autoattack", "clean"]
    assert len({table["id"] for table in tables}) == 2


def test_every_part_is_there(full_page: Any) -> None:
    first = full_page.data["tables"][0]["id"]
    identifiers = {attributes["id"] for _, attributes in full_page.elements if "id" in attributes}
    assert {f"{first}-{section}" for section in SECTIONS} <= identifiers
    targets = {attributes["href"][1:] for attributes in full_page.all("a") if attributes["href"].startswith("#")}
    assert targets <= identifiers
    assert {attributes.get("data-chart") for attributes in full_page.all("div")} >= set(CHARTS)
    assert "1. trades : 97.0 ± 0.0 % recognised as the wanted class, 80.0 ± 0.0 % before any step" in full_page.text(
        f"{first}-samples"
    )
    checks = full_page.text(f"{first}-masking")
    assert "trades clear ✓ 0 vs 5 n/a ✓ 9 vs 5" in checks
    assert "jem suspect (2 of 2 seeds): zero gradient ✓ 0 vs 5 n/a ✗ 9 vs 5" in checks
    assert "ce, pull" in full_page.text(f"{first}-ablations")
    assert "Measured under digits-linf-v1, not under this table's protocol" not in full_page.text(f"{first}-ablations")
    assert "python -m benchmark compare trades pgd_at" in full_page.text(f"{first}-checking")
    assert len([image for image in full_page.all("img") if image["width"] == "40" and image["height"] == "30"]) == 4


def test_no_difference_is_without_what_sets_it_apart(beside_papers: Path, page: Pages) -> None:
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


def test_what_is_missing_is_said(tmp_path: Path, entry: Make, page: Pages) -> None:
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


def test_what_some_rows_lack_is_said_of_them(leaderboards: Path, entry: Make, page: Pages) -> None:
    write_entry(leaderboards, entry("standard", config_digest="5" * 64))
    parsed = page(leaderboards)
    name = parsed.data["tables"][0]["id"]
    for section in ("curves", "energies", "training"):
        assert re.search(r"Not measured for: .*standard", parsed.text(f"{name}-{section}")), section
    assert "standard not measured" in parsed.text(f"{name}-masking")
    assert re.search(r"Not tested: .*standard", parsed.text(f"{name}-significance"))


def test_ablations_alone_have_a_page(tmp_path: Path, entry: Make, page: Pages, ablated: dict[str, Any]) -> None:
    folder = tmp_path / "leaderboards"
    write_entry(folder, entry("ebjdat", **ablated))
    tables.rebuild(folder)
    parsed = page(folder)
    name = parsed.data["tables"][0]["id"]
    assert "Nothing is measured yet." in parsed.text(name)
    assert "ce, pull" in parsed.text(f"{name}-ablations")


def test_an_ablation_under_another_protocol_says_so(
    leaderboards: Path, entry: Make, page: Pages, ablated: dict[str, Any]
) -> None:
    write_entry(leaderboards, entry("ebjdat", protocol=("digits-linf-v0", "c" * 12, "standard"), **ablated))
    tables.rebuild(leaderboards)
    parsed = page(leaderboards)
    first, second = (parsed.text(f"{table['id']}-ablations") for table in parsed.data["tables"])
    assert first.count("Measured under digits-linf-v0, not under this table's protocol") == 1
    assert first.count("ce, pull") == 2
    assert "ce, pull" not in second


# --- The file --------------------------------------------------------------------------------------------------------


def test_the_page_is_a_pure_function(leaderboards: Path) -> None:
    output = leaderboards.parent / "report.html"
    first = write_report(leaderboards, output).read_bytes()
    assert write_report(leaderboards, output).read_bytes() == first
    moved = shutil.copytree(leaderboards, leaderboards.parent / "elsewhere" / "leaderboards")
    assert write_report(moved, moved.parent / "report.html").read_bytes() == first


def test_links_lead_from_where_the_page_lies(leaderboards: Path, page: Pages) -> None:
    for output in (leaderboards / "index.html", leaderboards.parent / "a" / "b" / "page.html"):
        parsed = page(leaderboards, output)
        assert len(parsed.files()) > 5
        assert all(path.exists() for path in parsed.files())


def test_the_page_stands_alone(full_page: Any, page: Pages) -> None:
    for _, attributes in full_page.elements:
        for name in ("src", "href", "srcset", "action", "poster"):
            assert not re.match(r"(?!data:)[a-z]+:|//", attributes.get(name, "")), attributes
    assert {image["src"].partition(",")[0] for image in full_page.all("img")} == {"data:image/webp;base64"}
    style = (resources.files("benchmark.leaderboard.page") / "page.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style
    assert not [name for _, attributes in full_page.elements for name in attributes if name.startswith("on")]
    policy = full_page.all("meta")[1]["content"]
    for kind in ("style", "script"):
        inside = re.findall(rf"<{kind}>(.*?)</{kind}>", full_page.source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert len(inside) == 1
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_text_from_entries_stays_text(full_page: Any, hostile: str) -> None:
    assert len(full_page.all("script")) == 2
    assert (
        full_page.data["entries"][next(name for name in full_page.data["entries"] if "script" in name)]["recipe"]
        == hostile
    )
    assert hostile in full_page.text(f"{full_page.data['tables'][0]['id']}-leaderboard")
    assert full_page.source.count(hostile) == 0
    assert not set("<>&") & set("".join(full_page.texts["data"]))


def test_templates_escape_what_they_are_given_and_miss_nothing_silently() -> None:
    """What every template relies on: text and attributes are escaped, absent attributes left out, and gaps an error."""
    templates = report._TEMPLATES
    grid = '{% from "parts.html" import grid %}'
    grid += '{% call(line) grid(name, "x", [(name, "", none)], [(name,)]) %}{% endcall %}'
    made = "".join(templates.from_string(grid).render(name="<b>\"'&").split("\n"))
    assert made.count("&lt;b&gt;&#34;&#39;&amp;") == 4
    assert "<b>" not in made
    assert '<th scope="col">' in made
    for text in ("{{ absent }}", "{{ given.absent }}"):
        with pytest.raises(UndefinedError):
            templates.from_string(text).render(given={})


def test_bad_input_is_told_in_a_sentence(tmp_path: Path, entry: Make, full_entry: Make) -> None:
    folder, output = tmp_path / "leaderboards", tmp_path / "report.html"
    with pytest.raises(InputError, match=r"There are no entries in .*leaderboards"):
        write_report(folder, output)
    path = write_entry(folder, entry())
    for content, reason in (("{", "cannot be read"), ('{"recipe": "x"}', "The entry"), ("[1]", "The entry")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=reason):
            write_report(folder, output)
    damaged = full_entry("trades", 0, 50.0)
    damaged.measurements["autoattack"].verdicts["accuracy"] = "AAAA"
    path.unlink()
    write_entry(folder, damaged)
    with pytest.raises(InputError, match="autoattack of trades, seed 0"):
        write_report(folder, output)
    assert not output.exists()


@pytest.mark.xdist_group("browser")
def test_the_shipped_results_have_a_page(shipped_page: Any) -> None:
    entries = list((ROOT / "leaderboards").glob("*/*/entries/*.json"))
    print(f"{len(entries)} entries, {len(shipped_page.data['tables'])} tables, {len(shipped_page.source) / 1e6:.2f} MB")
    assert len(shipped_page.data["entries"]) == len(entries)
    assert len(shipped_page.source) < 6e6
    assert shipped_page.text(shipped_page.data["tables"][0]["id"])


def test_readers_meet_the_words_of_the_field() -> None:
    files = resources.files("benchmark.leaderboard.page")
    texts = [
        *(files / "templates").iterdir(),
        *(path for path in files.iterdir() if path.name.endswith((".py", ".js"))),
    ]
    assert len(texts) > 20
    for path in texts:
        found = re.search(r"(?i)\b(court|judge|stranger)s?\b", path.read_text(encoding="utf-8"))
        assert found is None, (path.name, found)
