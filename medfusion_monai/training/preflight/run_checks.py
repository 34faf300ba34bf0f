"""Trying all checks of a run and reporting all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from medfusion_monai.runtime.errors import first_cause, short_message

NEEDS = {"networks": ("settings",), "room": ("machine", "settings", "data", "networks")}
"""Parts of the checks that are left out where one of these had a problem, which would come back in other words."""


class PreflightError(ValueError):
    """Several problems that were found before the first step."""


class Check(NamedTuple):
    """A check: it raises a ValueError, or says what it found.

    Attributes:
        part: ``machine``, ``settings``, ``data``, ``networks`` or ``room``.
        name: of the check.
        try_it: does the work.
    """

    part: str
    name: str
    try_it: Callable[[], Any]


class Outcome(NamedTuple):
    """What came of one check.

    Attributes:
        part: of the checks.
        name: of the check.
        found: what it says if all is well.
        error: what it raised.
        left_out: whether it was not tried, since another problem comes first.
    """

    part: str
    name: str
    found: str = ""
    error: BaseException | None = None
    left_out: bool = False


_collected: list[Outcome] | None = None


@contextmanager
def rehearsal() -> Iterator[list[Outcome]]:
    """Have a run in this block try its checks and nothing else; yields the list to which their outcomes are added."""
    global _collected
    _collected = []
    try:
        yield _collected
    finally:
        _collected = None


def is_rehearsal() -> bool:
    """Whether the run is one of ``medfusion check``: it writes nothing and trains nothing."""
    return _collected is not None


def check_all(checks: Sequence[Check]) -> None:
    """Try every check.

    Raises:
        ValueError: the one problem that there is, as it was raised.
        PreflightError: all of them, numbered, if there are more.
    """
    outcomes = run_checks(checks, tell=is_rehearsal())
    if _collected is not None:
        _collected.extend(outcomes)
    problems = problems_of(outcomes)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        numbered = [f"{number}. {short_message(error)}" for number, error in enumerate(problems, start=1)]
        raise PreflightError("\n".join([f"{len(problems)} problems:", *numbered]))


def run_checks(checks: Sequence[Check], tell: bool = False) -> list[Outcome]:
    """Try every check, in order.

    Args:
        checks: those of a part stand together.
        tell: whether errors that are none of the user's are outcomes as well; otherwise they are raised, unless a
            problem that may be behind them was found.
    """
    outcomes: list[Outcome] = []
    failed: set[str] = set()
    unexpected: list[BaseException] = []
    for check in checks:
        if failed.intersection(NEEDS.get(check.part, ())):
            outcomes.append(Outcome(check.part, check.name, left_out=True))
            continue
        outcome = try_check(check)
        if outcome.error is not None:
            failed.add(check.part)
            if not (tell or isinstance(outcome.error, ValueError)):
                unexpected.append(outcome.error)
                continue
        outcomes.append(outcome)
    if unexpected and not problems_of(outcomes):
        raise unexpected[0]
    return outcomes


def try_check(check: Check) -> Outcome:
    """Try a check; whatever it raises is its outcome."""
    try:
        found = check.try_it()
    except Exception as error:
        return Outcome(check.part, check.name, error=first_cause(error))
    return Outcome(check.part, check.name, found=found if isinstance(found, str) else "")


def problems_of(outcomes: Sequence[Outcome]) -> list[BaseException]:
    """Return the errors, those that say the same once."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    return list({short_message(error): error for error in reversed(errors)}.values())[::-1]
