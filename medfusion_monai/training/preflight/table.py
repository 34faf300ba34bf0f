"""All checks of a run, as a table: ``medfusion check``."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from medfusion_monai.bundle.parser import check_references, read_files
from medfusion_monai.runtime.errors import first_cause, short_message
from medfusion_monai.training.preflight.machine import installed_version
from medfusion_monai.training.preflight.run_checks import Check, Outcome, problems_of, rehearsal, try_check

LAST = (("networks", "networks"), ("room", "disk"), ("room", "memory"))
"""Checks that are left out after a problem of settings, machine or data."""


def check_config(
    files: Sequence[str],
    overrides: Mapping[str, Any] | None = None,
    run: str = "training",
    contact_sheet: str | None = None,
) -> list[Outcome]:
    """Rehearse a run: check everything that can be checked in advance, without changing anything.

    Args:
        files: configs, as for the bundle runner's ``--config_file``.
        overrides: values of keys.
        run: key to run: ``training``, ``train_autoencoder``, ``train_diffusion``, ``train_few_steps`` or ``train_gan``.
        contact_sheet: PNG file to write with a sample of the images as the networks will see them; None for none.

    Returns:
        The outcome of each check.

    Raises:
        ValueError: for unreadable configs, unknown keys, and configs without this run.
    """
    parser = read_files(files, overrides or {})
    if run not in parser:
        raise ValueError(f"{', '.join(files)}: there is no {run!r} to run. Choose a key with steps, e.g. training")
    outcomes = [
        try_check(Check("config", "references", lambda: check_references(parser))),
        try_check(Check("config", "bundle", lambda: _bundle_versions(Path(files[0]).parent / "metadata.json"))),
    ]
    if outcomes[0].error is not None:  # nothing can be built
        return outcomes
    return outcomes + _rehearse(files, overrides or {}, run, contact_sheet)


def _rehearse(files: Sequence[str], overrides: Mapping[str, Any], run: str, contact_sheet: str | None) -> list[Outcome]:
    with rehearsal(contact_sheet) as outcomes, _process_as_before():
        workflow = ConfigWorkflow(list(files), run_id=run, logging_file=False, **overrides)
        try:
            workflow.initialize()
            if outcomes:  # a training, whose trainers know what a rehearsal is
                workflow.run()
        except Exception as error:
            if not problems_of(outcomes):  # a network or trainer that cannot be built
                outcomes.append(Outcome(*LAST[0], error=first_cause(error)))
    if not outcomes:
        return [Outcome(*LAST[0])]
    tried = {(outcome.part, outcome.name) for outcome in outcomes}
    return [*outcomes, *(Outcome(*check, left_out=True) for check in LAST if check not in tried)]


@contextmanager
def _process_as_before() -> Iterator[None]:
    """Restore what the first steps of a run change in the process: signals, the exception hook, random numbers."""
    hook, in_main = sys.excepthook, threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)} if in_main else {}
    try:
        with torch.random.fork_rng():
            yield
    finally:
        sys.excepthook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _bundle_versions(metadata: Path) -> str:
    """Return the version of the bundle, and the versions it was tested with if others are installed."""
    if not metadata.is_file():
        return "no metadata.json beside the config"
    document = json.loads(metadata.read_text(encoding="utf-8"))
    known = {"monai": document.get("monai_version"), "torch": document.get("pytorch_version")}
    known |= {"numpy": document.get("numpy_version"), **document.get("required_packages_version", {})}
    here = {name: installed_version(name) for name, wanted in known.items() if wanted}
    other = {name: found for name, found in here.items() if (found or "").partition("+")[0] != known[name]}
    tested = ", ".join(f"{name} {known[name]} (here {found})" for name, found in other.items())
    return f"version {document.get('version')}" + (f", tested with {tested}" if tested else "")


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table, followed by the problems in full, numbered."""
    problems = problems_of(outcomes)
    numbers = {short_message(error): number for number, error in enumerate(problems, start=1)}
    rows = [
        (f"{o.part}: {o.name}", *(("problem", f"see {numbers[short_message(o.error)]}") if o.error else _good(o)))
        for o in outcomes
    ]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {result:<9}  {found}".rstrip() for name, result, found in rows]
    lines += ["", *(f"{number}. {message}" for message, number in numbers.items())] if problems else []
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "no problems"
    return "\n".join([*lines, "", f"{len(outcomes)} checks, {count}"])


def _good(outcome: Outcome) -> tuple[str, str]:
    return ("left out", "after the problems above") if outcome.left_out else ("ok", outcome.found)
