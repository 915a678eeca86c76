"""The page to look at: every table of leaderboards/, its figures and records, in one HTML file.

The file needs no network and no other file. Style, script, data and pictures are inside, and its content security
policy lets nothing else run or load; links to the entries are relative. It is a pure function of leaderboards/ and of
where it lies beside it.
"""

import base64
import hashlib
import os
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmark.leaderboard.page.board import read_boards
from benchmark.leaderboard.page.script_data import script_data
from benchmark.leaderboard.page.section_data import section_data
from methods.errors import InputError
from methods.files import write_text

_PAGE = "benchmark.leaderboard.page"
"""The package of the templates, style and scripts."""
_SCRIPTS = tuple(f"{name}.js" for name in ("elements", "plots", "tradeoff", "attacks", "curves", "details", "page"))
_TEMPLATES = Environment(
    loader=PackageLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
"""The templates: what they are given is escaped, and what they are not given is an error."""


def write_report(leaderboards: Path, output: Path) -> Path:
    """Write the page of all tables of leaderboards/ as one HTML file, and return its path.

    Raises:
        InputError: there are no entries, one is malformed, or the file cannot be written.
    """
    boards = read_boards(leaderboards)
    if not boards:
        raise InputError(f"There are no entries in {leaderboards}: evaluate something first.")
    root = os.path.relpath(leaderboards.resolve(), output.resolve().parent)

    def link(path: Path) -> str:
        return quote(os.path.normpath(os.path.join(root, path)).replace(os.sep, "/"))

    files = resources.files(_PAGE)
    style, *scripts = ((files / name).read_text(encoding="utf-8") for name in ("page.css", *_SCRIPTS))
    script = "\n".join(["(() => {", '"use strict";', *scripts, "})();"])
    text = _TEMPLATES.get_template("page.html").render(
        style=style,
        script=script,
        policy=_policy(style, script),
        boards=[(board, section_data(board, leaderboards)) for board in boards],
        data=script_data(boards, link),
        link=link,
    )
    write_text(output, text)
    return output


def _policy(style: str, script: str) -> str:
    """Return the content security policy: this script and this style, pictures that are inside, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
