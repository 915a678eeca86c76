"""Colours of the page stand out from their ground."""

import re
from importlib import resources


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_from_their_ground() -> None:
    style = (resources.files("benchmark.leaderboard.page") / "page.css").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", style))
    least = {"ink": 7.0, "soft": 4.5, "link": 4.5, "good": 4.5, "bad": 4.5, "open": 4.5, "focus": 3.0}
    least |= {f"c{number}": 3.0 for number in range(1, 8)}
    for scheme in (0, 1):
        for name, ratio in least.items():
            for ground in ("ground", "card", "sunk"):
                one, other = sorted(luminance(pairs[key].split(", ")[scheme]) for key in (name, ground))
                assert (other + 0.05) / (one + 0.05) >= ratio, (name, ground, ("light", "dark")[scheme])
