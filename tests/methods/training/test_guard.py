"""The detector on lines of a log written by hand: what it lets pass, and what it calls a collapse, and when."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from methods.errors import InputError
from methods.training.guard import Alarm, Detector, Guard, read_log, replay

LIMITS = Guard(
    energy_gap=10, energy_size=100, loss_size=50, buffer_std=0.1, saturated=0.5, accuracy_drop=20, patience=3
)


def step(number: int, **values: Any) -> dict[str, Any]:
    """Return the line of a healthy step, with some values instead of its own."""
    healthy = {
        "loss": 2.0,
        "energy_data": -5.0,
        "energy_samples": -6.0,
        "energy_adv": -4.0,
        "inner_nonfinite": 0.0,
        "buffer_std": 0.3,
        "buffer_saturated": 0.1,
        "gradient_norm": 1.0,
        "nonfinite": 0,
    }
    return {"step": number, "epoch": number / 10, "lr": 0.1} | healthy | values


def validation(number: int, clean: float | None, nonfinite: int = 0) -> dict[str, Any]:
    """Return the line of a validation of a training of 100 steps."""
    found = {} if clean is None else {"clean": clean, "robust": 0.0}
    place = {"step": number, "epoch": number // 10, "progress": number / 100}
    return place | {"validation": found, "nonfinite": nonfinite}


def rollback(number: int, to: int) -> dict[str, Any]:
    return {"step": number, "epoch": number / 10, "event": "rollback", "to": to}


def test_healthy_lines_raise_no_alarm() -> None:
    lines = [step(number) for number in range(1, 30)] + [validation(30, 50.0), validation(40, 31.0)]
    assert replay(lines, LIMITS) == []


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"loss": None, "nonfinite": 1}, "loss"),
        ({"loss": None, "energy_adv": None, "nonfinite": 2}, "loss and energy_adv"),
        ({"loss": None, "energy_adv": None, "buffer_std": None, "nonfinite": 3}, "loss, energy_adv and buffer_std"),
        ({"gradient_norm": None, "nonfinite": 1}, "gradient_norm"),
        ({"inner_nonfinite": 7.0, "nonfinite": 7}, "inner problem"),
    ],
)
def test_non_finite_values_alarm_at_once_and_by_default(values: dict[str, Any], found: str) -> None:
    alarms = replay([step(1), step(2, **values), step(3)], Guard())
    assert alarms == [Alarm(2, 0.2, "nonfinite", found)]
    assert alarms[0].sentence("jem") == f"The {found} of jem became non-finite at step 2."


def test_validation_of_non_finite_weights_alarms() -> None:
    assert replay([validation(10, None, nonfinite=3)], Guard()) == [Alarm(10, 1, "nonfinite", "weights")]


@pytest.mark.parametrize(
    ("cause", "broken", "within", "found"),
    [
        ("energy_gap", {"energy_data": 7.0}, {"energy_data": 4.0}, "energy_gap 13, limit 10, for 3 logged steps"),
        ("energy_gap", {"energy_samples": 9.0}, {"energy_samples": 5.0}, "energy_gap 14, limit 10"),
        ("energy_size", {"energy_adv": -101.0}, {"energy_adv": 100.0}, "energy_size 101, limit 100"),
        ("energy_size", {"energy_data": 150.0, "energy_samples": 150.0}, {}, "energy_size 150, limit 100"),
        ("buffer_std", {"buffer_std": 0.01}, {"buffer_std": 0.1}, "buffer_std 0.01, limit 0.1"),
        ("saturated", {"buffer_saturated": 0.75}, {"buffer_saturated": 0.5}, "saturated 0.75, limit 0.5"),
    ],
)
def test_each_limit_alarms_after_its_patience(
    cause: str, broken: dict[str, float], within: dict[str, float], found: str
) -> None:
    assert replay([step(number, **within) for number in range(9)], LIMITS) == []
    # Two in a row, a good one, and three in a row: the third of these alarms.
    lines = [step(number, **(within if number == 2 else broken)) for number in range(6)]
    (alarm,) = replay(lines, LIMITS)
    assert (alarm.step, alarm.epoch, alarm.cause) == (5, 0.5, cause)
    assert alarm.found.startswith(found)
    sentence = alarm.sentence("jem")
    assert " of jem " in sentence
    assert " at step 5: " in sentence
    assert sentence.endswith("for 3 logged steps.")
    # The same lines are nothing to a guard that does not watch this limit.
    assert replay(lines, replace(LIMITS, **{cause: None})) == []


@pytest.mark.parametrize("loss", [50.5, -1e9])
def test_loss_that_explodes_alarms_at_once(loss: float) -> None:
    (alarm,) = replay([step(1), step(2, loss=-50.0), step(3, loss=loss), step(4)], LIMITS)
    assert alarm == Alarm(3, 0.3, "loss_size", f"loss_size {abs(loss):g}, limit 50")
    assert alarm.sentence("jem") == f"The loss of jem exploded at step 3: {alarm.found}."


def test_accuracy_that_falls_alarms_at_once() -> None:
    detector = Detector(LIMITS)
    for epoch, clean in enumerate((70.0, 90.0, 71.0, 70.0)):
        assert detector.observe(validation(10 * epoch, clean)) is None
    alarm = detector.observe(validation(40, 69.5))
    assert alarm is not None
    assert alarm.sentence("jem") == (
        "The validation accuracy of jem fell at step 40: 69.5 %, 20.5 points below its best, limit 20."
    )


def test_accuracy_that_never_rises_alarms_in_the_second_half() -> None:
    guard = Guard(accuracy_drop=20, accuracy_floor=15)
    (alarm,) = replay([validation(step, 14.0) for step in (10, 30, 49, 50)], guard)
    assert alarm == Alarm(50, 5, "accuracy_floor", "14.0 %, limit 15 %")
    assert alarm.hopeless
    assert alarm.sentence("jem") == (
        "The validation accuracy of jem never rose, as seen at step 50: 14.0 %, limit 15 %."
    )
    assert replay([validation(step, 15.0) for step in (50, 100)], guard) == []
    (fall,) = replay([validation(40, 60.0), validation(50, 10.0)], guard)
    assert (fall.cause, fall.hopeless) == ("accuracy_drop", False)


def test_rollback_forgets_what_it_undid() -> None:
    detector = Detector(LIMITS)
    for line in (validation(10, 40.0), validation(20, 60.0), validation(30, 90.0), step(31, energy_data=50.0)):
        assert detector.observe(line) is None
    assert detector.observe(step(32, energy_data=50.0)) is None
    assert detector.observe(rollback(33, to=20)) is None
    # Neither the two steps nor the 90 % count any more; the 60 % do.
    assert [detector.observe(step(number, energy_data=50.0)) for number in (21, 22)] == [None, None]
    assert detector.observe(validation(30, 41.0)) is None
    assert detector.observe(validation(40, 39.0)) is not None


def test_quiet_means_that_no_limit_is_broken_just_now() -> None:
    detector = Detector(LIMITS)
    assert detector.quiet
    detector.observe(step(1, buffer_std=0.01))
    assert not detector.quiet
    detector.observe(validation(1, 50.0))
    assert not detector.quiet
    detector.observe(step(2))
    assert detector.quiet


@pytest.mark.parametrize(
    ("guard", "missing"),
    [
        (Guard(energy_gap=1), "energy_samples"),
        (Guard(energy_size=1), "energy_data"),
        (Guard(buffer_std=0.1), "buffer_std"),
        (Guard(saturated=0.5), "buffer_saturated"),
    ],
)
def test_watching_what_is_not_logged_is_refused(guard: Guard, missing: str) -> None:
    line = step(1)
    del line[missing]
    with pytest.raises(InputError, match=rf'^guard\.\w+ watches "{missing}", which this method does not log') as caught:
        Detector(guard).observe(line)
    assert "\n" not in str(caught.value)


def test_replay_reads_a_file(tmp_path: Path) -> None:
    lines = [step(1), step(2, loss=None, nonfinite=1)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_log(path) == lines
    assert replay(path, Guard()) == replay(lines, Guard()) == [Alarm(2, 0.2, "nonfinite", "loss")]
    path.write_text('{"step": 1')
    with pytest.raises(InputError, match=r"log\.jsonl is missing, truncated or no log"):
        replay(path, Guard())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_restarts", 0),
        ("patience", 0),
        ("lr_factor", 0.0),
        ("lr_factor", 1.5),
        ("lr_factor", math.nan),
        ("energy_gap", 0.0),
        ("energy_size", -1.0),
        ("loss_size", math.inf),
        ("buffer_std", math.nan),
        ("saturated", 1.0),
        ("accuracy_drop", 100.0),
        ("accuracy_floor", 0.0),
    ],
)
def test_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^guard\.{name} must be .*, not {value}\.$"):
        replace(Guard(), **{name: value})
