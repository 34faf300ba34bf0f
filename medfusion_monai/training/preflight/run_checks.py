"""Running all checks of a training and reporting all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from medfusion_monai.runtime.errors import first_cause, short_message

NEEDS = {"networks": ("settings",), "room": ("machine", "settings", "data", "networks")}
"""Parts that are skipped after a problem in one of these, which they would only report again in other words."""


class PreflightError(ValueError):
    """Several problems found before the first step."""


class Check(NamedTuple):
    """A check: raises a ValueError, or returns what it found.

    Attributes:
        part: ``machine``, ``settings``, ``data``, ``networks`` or ``room`` (disk and memory).
        name: of the check.
        try_it: does the work.
    """

    part: str
    name: str
    try_it: Callable[[], Any]


class Outcome(NamedTuple):
    """The outcome of one check.

    Attributes:
        part: of the check.
        name: of the check.
        found: the text it returned, if any.
        error: the error it raised.
        left_out: whether it was skipped because of an earlier problem.
    """

    part: str
    name: str
    found: str = ""
    error: BaseException | None = None
    left_out: bool = False


_collected: list[Outcome] | None = None
_contact_sheet: str | None = None


@contextmanager
def rehearsal(contact_sheet: str | None = None) -> Iterator[list[Outcome]]:
    """Limit runs in this block to their checks; yields the list that collects the outcomes.

    Args:
        contact_sheet: PNG file to write with a sample of the images as the networks will see them; None for none.
    """
    global _collected, _contact_sheet
    _collected, _contact_sheet = [], contact_sheet
    try:
        yield _collected
    finally:
        _collected = _contact_sheet = None


def contact_sheet() -> str | None:
    """Return the file of the rehearsal's contact sheet, if one is wanted."""
    return _contact_sheet


def is_rehearsal() -> bool:
    """Whether the run is one of ``medfusion check``, which writes and trains nothing."""
    return _collected is not None


def check_all(checks: Sequence[Check]) -> None:
    """Run every check.

    Raises:
        ValueError: the problem as it was raised, if there is only one.
        PreflightError: all problems, numbered.
    """
    outcomes = run_checks(checks)
    problems = problems_of(outcomes)
    if _collected is not None:
        _collected.extend(outcomes)
    else:  # other errors are bugs, or follow from the problems of the user
        problems = [error for error in problems if isinstance(error, ValueError)] or problems[:1]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        numbered = [f"{number}. {short_message(error)}" for number, error in enumerate(problems, start=1)]
        raise PreflightError("\n".join([f"{len(problems)} problems:", *numbered]))


def run_checks(checks: Sequence[Check]) -> list[Outcome]:
    """Run checks in order, skipping those that ``NEEDS`` a part with a problem."""
    outcomes: list[Outcome] = []
    failed: set[str] = set()
    for check in checks:
        if failed.intersection(NEEDS.get(check.part, ())):
            outcomes.append(Outcome(check.part, check.name, left_out=True))
            continue
        outcomes.append(try_check(check))
        if outcomes[-1].error is not None:
            failed.add(check.part)
    return outcomes


def try_check(check: Check) -> Outcome:
    """Run one check and catch any error."""
    try:
        found = check.try_it()
    except Exception as error:
        return Outcome(check.part, check.name, error=first_cause(error))
    return Outcome(check.part, check.name, found=found if isinstance(found, str) else "")


def problems_of(outcomes: Sequence[Outcome]) -> list[BaseException]:
    """Return the errors, one per message."""
    errors: dict[str, BaseException] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            errors.setdefault(short_message(outcome.error), outcome.error)
    return list(errors.values())
