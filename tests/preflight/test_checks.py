"""Checks of a config: all are tried, all problems are told."""

import pytest
from monai.bundle import ConfigParser

from medfusion_monai.errors import first_cause
from medfusion_monai.preflight import PreflightError, check_all
from medfusion_monai.preflight.checks import run_checks


class OwnError(ValueError):
    """A problem of a kind of its own."""


def refuse(text, kind=OwnError):
    raise kind(text)


def parser_of(**checks):
    config = {
        "imports": ["$import medfusion_monai", "$import medfusion_monai.preflight"],
        "checks": checks,
        "initialize": ["$medfusion_monai.preflight.check_all()"],
    }
    return ConfigParser(config, globals={"refuse": refuse})


def raised(**checks):
    with pytest.raises(RuntimeError) as caught:
        parser_of(**checks).get_parsed_content("initialize")
    return first_cause(caught.value)


def test_config_without_problems_goes_on():
    parser_of(settings={"size": "$1", "seed": "$None"}).get_parsed_content("initialize")


def test_one_problem_comes_as_it_was_raised():
    error = raised(settings={"a": "$1", "b": "$refuse('too small')", "c": "$2"})
    assert type(error) is OwnError
    assert str(error) == "too small"


def test_all_problems_are_told_at_once_and_numbered():
    error = raised(settings={"a": "$refuse('first')", "b": "$refuse('second')"}, data={"c": "$refuse('third')"})
    assert type(error) is PreflightError
    assert str(error) == "3 problems:\n1. first\n2. second\n3. third"


def test_same_problem_of_two_checks_is_told_once():
    assert str(raised(data={"training": "$refuse('no folder')", "validation": "$refuse('no folder')"})) == "no folder"


@pytest.mark.parametrize("part", ["machine", "settings", "data", "networks"])
def test_room_is_not_measured_where_there_is_a_problem(part):
    parts = {name: {"all": "$None"} for name in ("machine", "settings", "data", "networks", "room")}
    outcomes = run_checks(parser_of(**parts | {part: {"all": "$refuse('no')"}, "room": {"memory": "$1 / 0"}}))
    assert [outcome.left_out for outcome in outcomes if outcome.part == "room"] == [True]


@pytest.mark.parametrize(("part", "left_out"), [("settings", True), ("machine", False), ("data", False)])
def test_networks_are_not_built_with_bad_settings_only(part, left_out):
    outcomes = run_checks(parser_of(**{part: {"a": "$refuse('no')"}, "networks": {"b": "$refuse('bad')"}}))
    assert outcomes[-1].left_out == left_out


def test_error_that_is_none_of_the_users_is_raised_as_it_is():
    assert isinstance(raised(settings={"a": "$1 / 0"}), ZeroDivisionError)


def test_error_that_follows_from_a_problem_is_not_told():
    assert str(raised(settings={"a": "$1 / 0", "b": "$refuse('no number')"})) == "no number"


def test_errors_of_all_kinds_are_outcomes_where_all_is_to_be_told():
    outcomes = run_checks(parser_of(settings={"a": "$1 / 0", "b": "$refuse('no number')"}), tell=True)
    assert [str(outcome.error) for outcome in outcomes] == ["division by zero", "no number"]


def test_what_a_check_says_is_kept():
    (outcome,) = run_checks(parser_of(machine={"device": "$'cpu, 2 cores'"}))
    assert (outcome.part, outcome.name, outcome.found, outcome.error) == ("machine", "device", "cpu, 2 cores", None)


def test_check_outside_a_config_is_our_mistake():
    with pytest.raises(RuntimeError, match="from an expression of a config"):
        check_all()
