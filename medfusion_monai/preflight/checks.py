"""Trying all of a config's checks and telling all problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monai.bundle import ConfigParser

from medfusion_monai.configs import calling
from medfusion_monai.errors import first_cause, short_message

NEEDS = {"networks": ("settings",), "room": ("machine", "settings", "data", "networks")}
"""Parts of ``checks`` that are left out where one of these had a problem, which would come back in other words."""


class PreflightError(ValueError):
    """Several problems that were found before the first step."""


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Args:
        part: of the config's ``checks``.
        name: of the check.
        found: what it says if all is well.
        error: what it raised.
        left_out: whether it was not tried, since another problem comes first.
    """

    part: str
    name: str
    found: str = ""
    error: Exception | None = None
    left_out: bool = False


def check_all() -> None:
    """Try every check under ``checks`` of the config that is being run; for ``initialize``.

    Each is an expression that raises a ValueError. Its parts are tried in order; see ``NEEDS``.

    Raises:
        ValueError: the one problem that there is, as it was raised.
        PreflightError: all of them, numbered, if there are more.
    """
    raise_problems(run_checks(running_parser()))


def running_parser() -> ConfigParser:
    """Give the parser that is evaluating the expression which called this."""
    parser = calling(ConfigParser)
    if parser is None:
        raise RuntimeError("to be called from an expression of a config")
    return parser


def run_checks(parser: ConfigParser, tell: bool = False) -> list[Outcome]:
    """Try every check under ``checks`` of a config, in order.

    Args:
        parser: of the config.
        tell: whether errors that are none of the user's are outcomes as well; otherwise they are raised, unless a
            problem that may be behind them was found.
    """
    outcomes: list[Outcome] = []
    failed: set[str] = set()
    unexpected: list[Exception] = []
    for part, checks in (parser.get("checks") or {}).items():
        for name in checks:
            if failed.intersection(NEEDS.get(part, ())):
                outcomes.append(Outcome(part, name, left_out=True))
                continue
            outcome = _try(parser, part, name)
            if outcome.error is not None:
                failed.add(part)
                if not (tell or isinstance(outcome.error, ValueError)):
                    unexpected.append(outcome.error)
                    continue
            outcomes.append(outcome)
    if unexpected and not problems_of(outcomes):
        raise unexpected[0]
    return outcomes


def _try(parser: ConfigParser, part: str, name: str) -> Outcome:
    try:
        found = parser.get_parsed_content(f"checks::{part}::{name}")
    except Exception as error:
        cause = first_cause(error)
        return Outcome(part, name, error=cause if isinstance(cause, Exception) else error)
    return Outcome(part, name, found=found if isinstance(found, str) else "")


def problems_of(outcomes: Sequence[Outcome]) -> list[Exception]:
    """Give the errors, those that say the same once."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    return list({short_message(error): error for error in reversed(errors)}.values())[::-1]


def raise_problems(outcomes: Sequence[Outcome]) -> None:
    """Raise the problem, or a PreflightError of all of them."""
    problems = problems_of(outcomes)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise PreflightError(f"{len(problems)} problems:\n{numbered(problems)}")


def numbered(problems: Sequence[Exception]) -> str:
    """Give the problems as numbered lines."""
    return "\n".join(f"{number}. {short_message(error)}" for number, error in enumerate(problems, start=1))
