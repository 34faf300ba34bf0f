"""All checks of a config, as a table: ``medfusion check``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medfusion_monai.bundle import load_autoencoder
from medfusion_monai.configs import build
from medfusion_monai.errors import first_cause, short_message
from medfusion_monai.preflight.checks import Outcome, problems_of, run_checks
from medfusion_monai.preflight.config import check_references, read_files
from medfusion_monai.preflight.images import check_sample
from medfusion_monai.preflight.machine import check_versions, installed_version


def check_config(
    files: Sequence[str], overrides: Mapping[str, Any] | None = None, run: str = "training"
) -> list[Outcome]:
    """Try everything that can be tried before a run, and change nothing.

    Args:
        files: configs, as for the bundle runner's ``--config_file``.
        overrides: values of keys.
        run: what is to be run: ``training``, ``train_autoencoder`` or ``train_diffusion``.

    Returns:
        What came of each check.

    Raises:
        ValueError: for configs that cannot be read, keys that they do not have, and configs without such a run.
    """
    parser = read_files(files, overrides or {})
    if run not in parser:
        raise ValueError(f"{run!r} is nothing that {', '.join(files)} can run: choose a key with steps, e.g. training")
    outcomes = [
        _tried("config", "references", lambda: check_references(parser)),
        _tried("config", "bundle", lambda: _bundle_versions(Path(files[0]).parent / "metadata.json")),
    ]
    if "checks" not in parser:
        return [*outcomes, _tried("config", "versions", check_versions)]
    if outcomes[0].error is not None:  # nothing can be built
        return outcomes
    outcomes += run_checks(parser, tell=True)
    if not any(outcome.error for outcome in outcomes if outcome.part == "data"):
        sampled = [outcome for outcome in outcomes if (outcome.part, outcome.name) == ("data", "sample")]
        if not any(outcome.found for outcome in sampled):  # the training itself reads all images
            outcomes = [outcome for outcome in outcomes if outcome not in sampled]
            outcomes.append(_tried("data", "sample", lambda: _sample(parser)))
        outcomes.append(_tried("data", "labels", lambda: _labels(parser)))
    if run == "train_diffusion":
        outcomes.append(_tried("networks", "autoencoder_file", lambda: _autoencoder(parser)))
    return outcomes


def _tried(part: str, name: str, check: Callable[[], str]) -> Outcome:
    try:
        return Outcome(part, name, found=check())
    except Exception as error:
        cause = first_cause(error)
        return Outcome(part, name, error=cause if isinstance(cause, Exception) else error)


def _bundle_versions(metadata: Path) -> str:
    """Say which versions the bundle was tried with, where others are installed."""
    if not metadata.is_file():
        return "no metadata.json beside the config"
    document = json.loads(metadata.read_text(encoding="utf-8"))
    known = {"monai": document.get("monai_version"), "torch": document.get("pytorch_version")}
    known |= {"numpy": document.get("numpy_version"), **document.get("required_packages_version", {})}
    here = {name: installed_version(name) for name, wanted in known.items() if wanted}
    other = {name: found for name, found in here.items() if (found or "").partition("+")[0] != known[name]}
    told = ", ".join(f"{name} {known[name]} (here {found})" for name, found in other.items())
    return f"version {document.get('version')}" + (f", tried with {told}" if told else "")


def _labels(parser: ConfigParser) -> str:
    names = build(parser, "class_names")
    lines = []
    for split, key in (("training", "train_datalist"), ("validation", "val_datalist")):
        counts = Counter(item["label"] for item in build(parser, key))
        lines.append(f"{split} " + ", ".join(f"{counts[label]} {name}" for label, name in enumerate(names)))
    return "; ".join(lines)


def _sample(parser: ConfigParser) -> str:
    keys = ("image_files", "image_channels", "image_size", "dicom_modalities", "unreadable")
    return check_sample(*(build(parser, key) for key in keys))


def _autoencoder(parser: ConfigParser) -> str:
    path = build(parser, "autoencoder_file")
    load_autoencoder(build(parser, "autoencoder"), path)
    return f"{Path(path).name} fits"


def table(outcomes: Sequence[Outcome]) -> str:
    """Lay out what came of each check, and below it the problems in full, numbered."""
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
