"""The court's checks on made numbers: each passes where it should and fails where it should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scipy.stats import binom

from benchmark import court
from benchmark.court import Count
from benchmark.results import Check, Measurement

Make = Callable[[], Check]


def count(images: int, n: int = 100) -> Count:
    return Count(images, n)


@pytest.mark.parametrize(
    ("innocent", "guilty"),
    [
        (lambda: court.unbounded(count(2)), lambda: court.unbounded(count(25))),
        (lambda: court.large_radius(count(1), 0.25), lambda: court.large_radius(count(40), 1.2)),
        (
            lambda: court.monotone([count(98), count(60), count(62), count(3), count(0)]),
            lambda: court.monotone([count(98), count(30), count(20), count(45), count(50)]),
        ),
        (lambda: court.one_step(count(45), count(60)), lambda: court.one_step(count(70), count(60))),
        (lambda: court.iterations(count(46), count(45)), lambda: court.iterations(count(60), count(45))),
        (lambda: court.eot(count(40), count(55)), lambda: court.eot(count(55), count(40))),
        (lambda: court.eot_gain(count(8)), lambda: court.eot_gain(count(30))),
        (lambda: court.restarts(count(9)), lambda: court.restarts(count(30))),
        (lambda: court.logit_scale(count(2)), lambda: court.logit_scale(count(20))),
        (lambda: court.random_noise(count(2)), lambda: court.random_noise(count(10))),
        (lambda: court.square(count(3)), lambda: court.square(count(20))),
        (lambda: court.transfer(count(2)), lambda: court.transfer(count(20))),
        (lambda: court.budget(0.1499999, 0.15), lambda: court.budget(0.075, 0.15)),
        (lambda: court.budget(0.15, 0.15), lambda: court.budget(0.3, 0.15)),
        (lambda: court.gradient(True), lambda: court.gradient(False)),
        (lambda: court.zero_gradients(count(0)), lambda: court.zero_gradients(count(100))),
        (lambda: court.finite_differences(count(6)), lambda: court.finite_differences(count(80))),
        (lambda: court.determinism(0.0, 1e-5), lambda: court.determinism(0.2, 1e-5)),
        (lambda: court.batch_dependence(1e-7, 1e-3), lambda: court.batch_dependence(0.4, 1e-3)),
        (lambda: court.batch_norm_mode(count(2)), lambda: court.batch_norm_mode(count(30))),
        (lambda: court.state(0), lambda: court.state(15)),
        (lambda: court.probabilities(False), lambda: court.probabilities(True)),
        (
            lambda: court.input_domain(98.0, 99.0, "[-1,1]", beaten=False),
            lambda: court.input_domain(30.0, 99.0, "[-1,1]", beaten=True),
        ),
        (lambda: court.against_autoattack(43.0, 34.0, 300)[0], lambda: court.against_autoattack(90.0, 13.4, 300)[0]),
        (lambda: court.against_autoattack(43.0, 43.5, 300)[1], lambda: court.against_autoattack(43.0, 60.0, 300)[1]),
        (
            lambda: court.against_autoattack(43.0, 40.0, 300, 0.33)[2],
            lambda: court.against_autoattack(43.0, 30.0, 300, 5.0)[2],
        ),
    ],
)
def test_check_tells_innocent_from_guilty_numbers(innocent: Make, guilty: Make) -> None:
    passed, failed = innocent(), guilty()
    assert passed.name == failed.name
    assert (passed.passed, failed.passed) == (True, False)
    for check in (passed, failed):
        assert check.measured is not None
        assert check.bound is not None
        assert check.meaning.endswith(".")
        assert ", " not in check.name


@pytest.mark.parametrize("n", [10, 24, 100, 300, 10_000])
@pytest.mark.parametrize("tolerated", [0.005, 0.02, 0.05, 0.10])
def test_tolerance_is_the_binomial_quantile(n: int, tolerated: float) -> None:
    bound = court.most(n, tolerated)
    assert 1 - binom.cdf(bound, n, tolerated) < court.LEVEL
    assert bound == 0 or 1 - binom.cdf(bound - 1, n, tolerated) >= court.LEVEL


def test_one_or_two_images_of_a_hundred_fail_no_check_that_attacks_the_model() -> None:
    one_off = [
        *(check(count(2)) for check in (court.unbounded, court.restarts, court.square, court.transfer)),
        *(check(count(2)) for check in (court.random_noise, court.logit_scale, court.eot_gain)),
        court.one_step(count(42), count(40)),
        court.iterations(count(42), count(40)),
        court.eot(count(42), count(40)),
        court.monotone([count(40), count(42)]),
        *court.against_autoattack(40.0, 42.0, 100, 1.0),
        *court.against_autoattack(42.0, 40.0, 100, 2.0),
    ]
    assert [check.name for check in one_off if not check.passed] == []


def test_more_images_make_the_same_share_of_them_significant() -> None:
    few, many = court.square(count(8)), court.square(count(80, 1000))
    assert (few.measured, many.measured) == (8, 8)
    assert few.passed
    assert many.passed is False


def test_numbers_are_percent_and_bounds_are_what_they_are_held_against() -> None:
    assert (court.square(count(3, 50)).measured, court.square(count(3, 50)).bound) == (
        6,
        100 * court.most(50, 0.05) / 50,
    )
    luck = 100 * court.most(100, court.BEATEN) / 100
    assert (court.one_step(count(45), count(60)).measured, court.one_step(count(45), count(60)).bound) == (
        45,
        60 + luck,
    )
    rise = court.monotone([count(90), count(20), count(60), count(50), count(55)])
    assert (rise.measured, rise.bound) == (60, 20 + luck)


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (court.unbounded(None), court.NO_GRADIENT),
        (court.large_radius(None, 1.0), court.NO_GRADIENT),
        (court.large_radius(count(50), 0.1), "the sweep ends below 25 %"),
        (court.monotone(None), court.NO_GRADIENT),
        (court.monotone([]), court.NO_GRADIENT),
        (court.one_step(None, None), court.NO_GRADIENT),
        (court.iterations(None, count(40)), "no attack of more iterations"),
        (court.eot(None, count(40)), court.NO_NOISE),
        (court.eot_gain(None), court.NO_NOISE),
        (court.restarts(None), court.NO_GRADIENT),
        (court.logit_scale(None), court.NO_GRADIENT),
        (court.transfer(None), "there is no other network"),
        (court.budget(None, 0.15), court.NO_GRADIENT),
        (court.budget(0.0, 0.0), "eps is 0"),
        (court.zero_gradients(None), court.NO_GRADIENT),
        (court.finite_differences(None), court.NO_GRADIENT),
        (court.batch_norm_mode(None), "no batch normalisation"),
    ],
)
def test_check_without_its_numbers_says_why_it_does_not_apply(check: Check, reason: str) -> None:
    assert (check.measured, check.bound, check.passed) == (None, None, None)
    assert check.meaning.startswith("does not apply: ")
    assert reason in check.meaning


def test_model_at_chance_is_not_judged_by_attacks() -> None:
    assert not court.above_chance(count(15), classes=10)
    assert court.above_chance(count(25), classes=10)
    assert not court.above_chance(count(55), classes=2)
    check = court.at_chance(court.unbounded(count(40)))
    assert (check.measured, check.passed, check.meaning) == (40, None, court.AT_CHANCE)
    absent = court.restarts(None)
    assert court.at_chance(absent) == absent


def test_verdict_names_the_failed_checks_and_flags_explain_them() -> None:
    checks = [court.unbounded(count(40)), court.square(count(1)), court.eot(None, None), court.random_noise(count(30))]
    assert court.verdict(checks) == "suspect: unbounded, random noise"
    assert court.verdict(checks[1:3]) == "clear"
    assert court.verdict([*checks[1:3], court.at_chance(checks[0])]) is None
    assert court.verdict([*checks, court.at_chance(checks[1])]) == "suspect: unbounded, random noise"
    assert [flag.partition(". ")[0] for flag in court.flags(checks)] == [
        "unbounded: 40 against 11",
        "random noise: 30 against 6",
    ]
    assert court.summary(checks) == {"verdict": "suspect: unbounded, random noise", "failed": 2, "applied": 3}


def measurement(*checks: Check) -> Measurement:
    return Measurement(
        metric="masking",
        version=1,
        status="done",
        n=100,
        values=court.summary(checks) | {"batch_size": 100},
        flags=court.flags(checks),
        checks=list(checks),
        seconds=1.0,
        key="0" * 64,
    )


def test_checks_of_other_metrics_join_the_verdict() -> None:
    found = measurement(court.square(count(1)))
    clear = court.judged(found, court.against_autoattack(43.0, 40.0, 300, 0.0))
    assert clear.values == {"verdict": "clear", "failed": 0, "applied": 4, "batch_size": 100}
    assert len(clear.checks) == 4
    guilty = court.judged(found, court.against_autoattack(90.0, 13.4, 300))
    assert guilty.values["verdict"] == "suspect: AutoAttack gain"
    assert len(guilty.flags) == 1
    chance = court.judged(measurement(court.at_chance(court.square(count(1)))), court.against_autoattack(15, 0, 300))
    assert chance.values["verdict"] is None
    assert chance.flags == []
