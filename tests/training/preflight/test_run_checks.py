"""Checks of a config: all run, all problems are reported."""

import pytest

from medfusion_monai.training.preflight.run_checks import (
    Check,
    PreflightError,
    check_all,
    is_rehearsal,
    rehearsal,
    run_checks,
)


class OwnError(ValueError):
    """A problem of a kind of its own."""


def refuse(text, kind=OwnError):
    raise kind(text)


def checks_of(**parts):
    """Checks of parts, each by name: a value to return, or a function that raises."""
    made = []
    for part, checks in parts.items():
        made += [Check(part, name, what if callable(what) else lambda what=what: what) for name, what in checks.items()]
    return made


def no(text="no", kind=OwnError):
    return lambda: refuse(text, kind)


def divide():
    return 1 / 0


def raised(**parts):
    with pytest.raises(Exception) as caught:  # noqa: PT011  of any kind
        check_all(checks_of(**parts))
    return caught.value


def test_config_without_problems_passes():
    check_all(checks_of(settings={"size": 1, "seed": None}))


def test_one_problem_comes_as_it_was_raised():
    error = raised(settings={"a": 1, "b": no("too small"), "c": 2})
    assert type(error) is OwnError
    assert str(error) == "too small"


def test_all_problems_are_reported_at_once_and_numbered():
    error = raised(settings={"a": no("first"), "b": no("second")}, data={"c": no("third")})
    assert type(error) is PreflightError
    assert str(error) == "3 problems:\n1. first\n2. second\n3. third"


def test_same_problem_of_two_checks_is_reported_once():
    assert str(raised(data={"training": no("no folder"), "validation": no("no folder")})) == "no folder"


@pytest.mark.parametrize("part", ["machine", "settings", "data", "networks"])
def test_room_is_not_measured_where_there_is_a_problem(part):
    parts = {name: {"all": None} for name in ("machine", "settings", "data", "networks", "room")}
    outcomes = run_checks(checks_of(**parts | {part: {"all": no("no")}, "room": {"memory": divide}}))
    assert [outcome.left_out for outcome in outcomes if outcome.part == "room"] == [True]


@pytest.mark.parametrize(("part", "left_out"), [("settings", True), ("machine", False), ("data", False)])
def test_networks_are_not_built_with_bad_settings_only(part, left_out):
    outcomes = run_checks(checks_of(**{part: {"a": no("no")}, "networks": {"b": no("bad")}}))
    assert outcomes[-1].left_out == left_out


def test_error_that_is_not_the_users_is_raised_as_it_is():
    assert isinstance(raised(settings={"a": divide}), ZeroDivisionError)


def test_error_that_follows_from_a_problem_is_not_reported():
    assert str(raised(settings={"a": divide, "b": no("no number")})) == "no number"


def test_errors_of_all_kinds_are_outcomes_of_a_rehearsal():
    with rehearsal() as outcomes, pytest.raises(PreflightError, match="2 problems"):
        check_all(checks_of(settings={"a": divide, "b": no("no number")}))
    assert [str(outcome.error) for outcome in outcomes] == ["division by zero", "no number"]


def test_text_that_a_check_returns_is_kept():
    (outcome,) = run_checks(checks_of(machine={"device": "cpu, 2 cores"}))
    assert (outcome.part, outcome.name, outcome.found, outcome.error) == ("machine", "device", "cpu, 2 cores", None)


def test_rehearsal_collects_all_outcomes_and_ends_at_a_problem():
    assert not is_rehearsal()
    with rehearsal() as outcomes:
        assert is_rehearsal()
        check_all(checks_of(machine={"device": "cpu"}))
        with pytest.raises(OwnError):
            check_all(checks_of(settings={"seed": no("negative")}, networks={"unet": 1}))
    assert not is_rehearsal()
    assert [(outcome.name, outcome.found, str(outcome.error or ""), outcome.left_out) for outcome in outcomes] == [
        ("device", "cpu", "", False),
        ("seed", "", "negative", False),
        ("unet", "", "", True),
    ]
