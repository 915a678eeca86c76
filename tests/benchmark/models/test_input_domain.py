"""Input domains: which of several is taken for the model's own, and exact conversions."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.models.input_domain import ALPHA, BYTES, NORMALISED, PIXELS, SYMMETRIC, Domain, Trial, expected


def test_of_domains_as_good_as_equal_the_first_is_expected() -> None:
    def trial(domain: Domain, right: int) -> Trial:
        return Trial(domain, torch.arange(100) < right)

    trials = [trial(PIXELS, 30), trial(SYMMETRIC, 70), trial(NORMALISED[0], 90), trial(NORMALISED[1], 91)]
    assert expected(trials).domain == NORMALISED[0]
    assert expected([*trials, trial(NORMALISED[2], 95)]).domain == NORMALISED[2]
    assert expected([trial(PIXELS, 90), *trials[1:]]).domain == PIXELS


@pytest.mark.parametrize(("won", "lost", "beats"), [(9, 0, False), (10, 0, True), (20, 6, False), (20, 2, True)])
def test_a_domain_must_win_by_more_than_binomial_noise(won: int, lost: int, beats: bool) -> None:
    """Sums of binomial coefficients: 2^-10 < 1e-3 < 2^-9; P(20 of 26) = 4.7e-3; P(20 of 22) = 6.1e-5."""
    first = torch.tensor([True] * won + [False] * lost + [True, False])
    second = torch.tensor([False] * won + [True] * lost + [True, False])
    assert Trial(SYMMETRIC, first).beats(Trial(PIXELS, second)) is beats
    tail = sum(math.comb(won + lost, k) for k in range(lost + 1)) / 2 ** (won + lost)
    assert (tail < ALPHA) is beats


def test_conversion_of_bytes_is_exact() -> None:
    pixels = (torch.arange(256) / 255).view(1, 1, 16, 16)
    assert torch.equal(BYTES(pixels).flatten(), torch.arange(256.0))
    assert torch.equal(SYMMETRIC(pixels), 2 * pixels - 1)
