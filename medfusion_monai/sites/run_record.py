"""What a federated run was begun with, kept beside its results: a command with other settings cannot continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfusion_monai.runtime.files import renamed_when_whole
from medfusion_monai.runtime.values import differences_of, flat_settings
from medfusion_monai.sites.federation import FederationError

RECORD = "run.json"


def keep_to_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Record the settings of a run in its folder, or compare them with those that it was begun with.

    Args:
        folder: of the results; it exists.
        settings: all that the result depends on, as plain data.

    Raises:
        FederationError: if the folder has a run with other settings, or results of which nothing is recorded.
    """
    place = folder / RECORD
    if place.is_file():
        changes = differences_of(flat_settings(_read(place)), flat_settings(settings))
        if changes:
            raise FederationError(
                f"{folder} has a run with other settings: {'; '.join(changes)}. Continue it with its own settings, or "
                "choose another --output"
            )
        return
    results = sorted(path.name for path in folder.glob("*.pt"))
    if results:
        raise FederationError(
            f"{folder} has {', '.join(results)}, but no {RECORD} with the settings of their run: choose another "
            "--output"
        )
    with renamed_when_whole(place) as partial:
        partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _read(place: Path) -> dict[str, Any]:
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FederationError(f"{place} cannot be read ({error}): restore it, or choose another --output") from error
    if not isinstance(content, dict):
        raise FederationError(f"{place} has no settings of a run: restore it, or choose another --output")
    return content
