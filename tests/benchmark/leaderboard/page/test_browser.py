"""The page in a browser: it draws its charts, sorts, filters, explains, and is used by keyboard and on a phone."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Pages = Callable[[Path], Any]
pytestmark = pytest.mark.xdist_group("browser")
CHARTS = ("tradeoff", "cascade", "marginal", "curves", "energies", "training")


class Browser:
    """Headless Chromium, driven over chromedriver's HTTP interface (W3C WebDriver)."""

    def __init__(self, driver: str, chromium: str, profile: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [driver, f"--port={self._port}"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # An empty profile, and none of the browser's own errands over the network.
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--force-prefers-reduced-motion"]
        arguments += ["--disable-quic", "--no-first-run", "--disable-background-networking"]
        arguments += ["--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"]
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
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests that need one."""
    driver, binary = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or binary is None:
        missing = [name for name, found in (("chromium", binary), ("chromedriver", driver)) if found is None]
        pytest.skip(
            f"{' and '.join(missing)} not on the PATH; get both by: sudo apt-get install chromium chromium-driver"
        )
    opened = Browser(driver, binary, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def opened(chromium: Browser, full_results: Path) -> Browser:
    """The browser, with the page of the full results before it."""
    chromium.screen(1280, "light")
    chromium.open(full_results.parent / "report.html")
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


def test_the_table_sorts_and_filters(opened: Browser, hostile: str) -> None:
    before = names(opened)
    assert before == ["trades", "pgd_at", hostile, "jem"]
    click = "document.querySelector('.leaders th[data-column=fid_ref] button').click();"
    order = "return document.querySelector('.leaders th[data-column=fid_ref]').getAttribute('aria-sort')"
    assert opened.run(click + order) == "ascending"
    assert names(opened) == ["trades", "pgd_at", "jem", hostile]
    assert opened.run(click + order) == "descending"
    assert names(opened) == ["jem", "pgd_at", "trades", hostile]
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


def test_a_number_says_how_it_was_made_and_by_keyboard(opened: Browser, hostile: str) -> None:
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
    assert hostile in opened.wait("const box = document.querySelector('dialog'); return box.open && box.textContent")
    assert opened.run("return document.querySelectorAll('dialog script').length + (window.hacked ? 1 : 0)") == 0


def test_a_difference_opens_every_source_of_the_number(chromium: Browser, beside_papers: Path, page: Pages) -> None:
    chromium.screen(1280, "light")
    chromium.open(page(beside_papers).path)
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
def test_a_phone_never_scrolls_sideways(chromium: Browser, shipped_page: Any, scheme: str) -> None:
    chromium.screen(360, scheme)
    chromium.open(shipped_page.path)
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
