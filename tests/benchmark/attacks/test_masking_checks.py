"""Masking checks on made numbers: each passes where it should and fails where it should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scipy.special import bdtrc

from benchmark.attacks import masking_checks
from benchmark.attacks.masking_checks import Count
from benchmark.results.entry import Check, Measurement

Make = Callable[[], Check]


def count(images: int, n: int = 100) -> Count:
    return Count(images, n)


@pytest.mark.parametrize(
    ("honest", "masked"),
    [
        (lambda: masking_checks.unbounded(count(2)), lambda: masking_checks.unbounded(count(25))),
        (lambda: masking_checks.large_radius(count(1), 0.25), lambda: masking_checks.large_radius(count(40), 1.2)),
        (
            lambda: masking_checks.monotone([count(98), count(60), count(62), count(3), count(0)]),
            lambda: masking_checks.monotone([count(98), count(30), count(20), count(45), count(50)]),
        ),
        (lambda: masking_checks.one_step(count(45), count(60)), lambda: masking_checks.one_step(count(70), count(60))),
        (
            lambda: masking_checks.iterations(count(46), count(45)),
            lambda: masking_checks.iterations(count(60), count(45)),
        ),
        (lambda: masking_checks.eot(count(40), count(55)), lambda: masking_checks.eot(count(55), count(40))),
        (lambda: masking_checks.eot_gain(count(8)), lambda: masking_checks.eot_gain(count(30))),
        (lambda: masking_checks.restarts(count(9)), lambda: masking_checks.restarts(count(30))),
        (lambda: masking_checks.logit_scale(count(2)), lambda: masking_checks.logit_scale(count(20))),
        (lambda: masking_checks.random_noise(count(2)), lambda: masking_checks.random_noise(count(10))),
        (lambda: masking_checks.square(count(3)), lambda: masking_checks.square(count(20))),
        (lambda: masking_checks.transfer(count(2)), lambda: masking_checks.transfer(count(20))),
        (lambda: masking_checks.budget(0.1499999, 0.15), lambda: masking_checks.budget(0.075, 0.15)),
        (lambda: masking_checks.budget(0.15, 0.15), lambda: masking_checks.budget(0.3, 0.15)),
        (lambda: masking_checks.gradient(True), lambda: masking_checks.gradient(False)),
        (lambda: masking_checks.zero_gradients(count(0)), lambda: masking_checks.zero_gradients(count(100))),
        (lambda: masking_checks.finite_differences(count(6)), lambda: masking_checks.finite_differences(count(80))),
        (lambda: masking_checks.determinism(0.0, 1e-5), lambda: masking_checks.determinism(0.2, 1e-5)),
        (lambda: masking_checks.batch_dependence(1e-7, 1e-3), lambda: masking_checks.batch_dependence(0.4, 1e-3)),
        (lambda: masking_checks.batch_norm_mode(count(2)), lambda: masking_checks.batch_norm_mode(count(30))),
        (lambda: masking_checks.state(0), lambda: masking_checks.state(15)),
        (lambda: masking_checks.probabilities(False), lambda: masking_checks.probabilities(True)),
        (
            lambda: masking_checks.input_domain(98.0, 99.0, "[-1,1]", beaten=False),
            lambda: masking_checks.input_domain(30.0, 99.0, "[-1,1]", beaten=True),
        ),
        (
            lambda: masking_checks.against_autoattack(43.0, 34.0, 300)[0],
            lambda: masking_checks.against_autoattack(90.0, 13.4, 300)[0],
        ),
        (
            lambda: masking_checks.against_autoattack(43.0, 43.5, 300)[1],
            lambda: masking_checks.against_autoattack(43.0, 60.0, 300)[1],
        ),
        (
            lambda: masking_checks.against_autoattack(43.0, 40.0, 300, 0.33)[2],
            lambda: masking_checks.against_autoattack(43.0, 30.0, 300, 5.0)[2],
        ),
    ],
)
def test_check_tells_honest_from_masked_numbers(honest: Make, masked: Make) -> None:
    passed, failed = honest(), masked()
    assert passed.name == failed.name
    assert (passed.passed, failed.passed) == (True, False)
    for check in (passed, failed):
        assert check.measured is not None
        assert check.bound is not None
        assert check.meaning.endswith(".")
        assert ", " not in check.name


@pytest.mark.parametrize("n", [1, 2, 10, 24, 100, 300, 10_000])
@pytest.mark.parametrize("tolerated", [0.005, 0.02, 0.05, 0.10, 1 / 3])
def test_tolerance_is_the_binomial_quantile(n: int, tolerated: float) -> None:
    bound = masking_checks.most(n, tolerated)
    assert bdtrc(bound, n, tolerated) < masking_checks.LEVEL
    assert bound == 0 or bdtrc(bound - 1, n, tolerated) >= masking_checks.LEVEL


def test_one_or_two_images_of_a_hundred_fail_no_check_that_attacks_the_model() -> None:
    one_off = [
        *(
            check(count(2))
            for check in (
                masking_checks.unbounded,
                masking_checks.restarts,
                masking_checks.square,
                masking_checks.transfer,
            )
        ),
        *(
            check(count(2))
            for check in (masking_checks.random_noise, masking_checks.logit_scale, masking_checks.eot_gain)
        ),
        masking_checks.one_step(count(42), count(40)),
        masking_checks.iterations(count(42), count(40)),
        masking_checks.eot(count(42), count(40)),
        masking_checks.monotone([count(40), count(42)]),
        *masking_checks.against_autoattack(40.0, 42.0, 100, 1.0),
        *masking_checks.against_autoattack(42.0, 40.0, 100, 2.0),
    ]
    assert [check.name for check in one_off if not check.passed] == []


def test_more_images_make_the_same_share_of_them_significant() -> None:
    few, many = masking_checks.square(count(8)), masking_checks.square(count(80, 1000))
    assert (few.measured, many.measured) == (8, 8)
    assert few.passed
    assert many.passed is False


def test_numbers_are_percent_and_bounds_are_what_they_are_held_against() -> None:
    assert (masking_checks.square(count(3, 50)).measured, masking_checks.square(count(3, 50)).bound) == (
        6,
        100 * masking_checks.most(50, 0.05) / 50,
    )
    luck = 100 * masking_checks.most(100, masking_checks.BEATEN) / 100
    assert (
        masking_checks.one_step(count(45), count(60)).measured,
        masking_checks.one_step(count(45), count(60)).bound,
    ) == (
        45,
        60 + luck,
    )
    rise = masking_checks.monotone([count(90), count(20), count(60), count(50), count(55)])
    assert (rise.measured, rise.bound) == (60, 20 + luck)


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (masking_checks.unbounded(None), masking_checks.NO_GRADIENT),
        (masking_checks.large_radius(None, 1.0), masking_checks.NO_GRADIENT),
        (masking_checks.large_radius(count(50), 0.1), "the sweep ends below 25 %"),
        (masking_checks.monotone([]), masking_checks.NO_GRADIENT),
        (masking_checks.one_step(None, None), masking_checks.NO_GRADIENT),
        (masking_checks.iterations(None, count(40)), "no attack of more iterations"),
        (masking_checks.eot(None, count(40)), masking_checks.NO_NOISE),
        (masking_checks.eot_gain(None), masking_checks.NO_NOISE),
        (masking_checks.restarts(None), masking_checks.NO_GRADIENT),
        (masking_checks.logit_scale(None), masking_checks.NO_GRADIENT),
        (masking_checks.transfer(None), "there is no other network"),
        (masking_checks.budget(None, 0.15), masking_checks.NO_GRADIENT),
        (masking_checks.budget(0.0, 0.0), "eps is 0"),
        (masking_checks.zero_gradients(None), masking_checks.NO_GRADIENT),
        (masking_checks.finite_differences(None), masking_checks.NO_GRADIENT),
        (masking_checks.batch_norm_mode(None), "no batch normalisation"),
    ],
)
def test_check_without_its_numbers_says_why_it_does_not_apply(check: Check, reason: str) -> None:
    assert (check.measured, check.bound, check.passed) == (None, None, None)
    assert check.meaning.startswith("does not apply: ")
    assert reason in check.meaning


def test_model_at_chance_is_not_judged_by_attacks() -> None:
    assert not masking_checks.above_chance(count(15), classes=10)
    assert masking_checks.above_chance(count(25), classes=10)
    assert not masking_checks.above_chance(count(55), classes=2)
    check = masking_checks.at_chance(masking_checks.unbounded(count(40)))
    assert (check.measured, check.passed, check.meaning) == (40, None, masking_checks.AT_CHANCE)
    absent = masking_checks.restarts(None)
    assert masking_checks.at_chance(absent) == absent


def test_verdict_names_the_failed_checks_and_flags_explain_them() -> None:
    checks = [
        masking_checks.unbounded(count(40)),
        masking_checks.square(count(1)),
        masking_checks.eot(None, None),
        masking_checks.random_noise(count(30)),
    ]
    assert masking_checks.verdict(checks) == "suspect: unbounded, random noise"
    assert masking_checks.verdict(checks[1:3]) == "clear"
    assert masking_checks.verdict([*checks[1:3], masking_checks.at_chance(checks[0])]) is None
    assert masking_checks.verdict([*checks, masking_checks.at_chance(checks[1])]) == "suspect: unbounded, random noise"
    assert [flag.partition(". ")[0] for flag in masking_checks.flags(checks)] == [
        "unbounded: 40 against 11",
        "random noise: 30 against 6",
    ]
    assert masking_checks.summary(checks) == {"verdict": "suspect: unbounded, random noise", "failed": 2, "applied": 3}


def measurement(*checks: Check) -> Measurement:
    return Measurement(
        metric="masking",
        version=1,
        status="done",
        n=100,
        values=masking_checks.summary(checks) | {"batch_size": 100},
        flags=masking_checks.flags(checks),
        checks=list(checks),
        seconds=1.0,
        key="0" * 64,
    )


def test_checks_of_other_metrics_join_the_verdict() -> None:
    found = measurement(masking_checks.square(count(1)))
    clear = masking_checks.with_checks(found, masking_checks.against_autoattack(43.0, 40.0, 300, 0.0))
    assert clear.values == {"verdict": "clear", "failed": 0, "applied": 4, "batch_size": 100}
    assert len(clear.checks) == 4
    masked = masking_checks.with_checks(found, masking_checks.against_autoattack(90.0, 13.4, 300))
    assert masked.values["verdict"] == "suspect: AutoAttack gain"
    assert len(masked.flags) == 1
    chance = masking_checks.with_checks(
        measurement(masking_checks.at_chance(masking_checks.square(count(1)))),
        masking_checks.against_autoattack(15, 0, 300),
    )
    assert chance.values["verdict"] is None
    assert chance.flags == []
