"""A folder of results, one file each, so that a study can be stopped at any time and continued."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medfusion_monai.runtime.files import renamed_when_whole

IDENTITY = "study.json"
OPTIONAL = ("arm ", "equivariant")
"""Beginnings of the names of settings that a study may gain later."""
STEP_SECONDS = "step_seconds.json"


class Store:
    """Results of a study by name; each is written beside its place and renamed.

    Args:
        folder: it is made if it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.results = self.folder / "results"

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Say what the study is of; refuse to go on with another one.

        Args:
            identity: settings by name, one level of dictionaries among them. Those of ``OPTIONAL`` may be added
                later, but not changed.

        Raises:
            ValueError: the folder holds a study of something else; with both values.
        """
        there, wanted = _flat(self.identity()), _flat(json.loads(json.dumps(identity)))
        if not there:
            self._write(self.folder / IDENTITY, wanted)
            return
        changed = [
            name
            for name in {*there, *wanted}
            if there.get(name) != wanted.get(name)
            and not (name.startswith(OPTIONAL) and not (name in there and name in wanted))
        ]
        if changed:
            words = ", ".join(f"{name} {there.get(name)}, not {wanted.get(name)}" for name in sorted(changed))
            raise ValueError(f"{self.folder} holds a study with {words}. Use another --output, or the same settings")
        if wanted.keys() - there.keys():
            self._write(self.folder / IDENTITY, {**there, **wanted})

    def identity(self) -> dict[str, Any]:
        """Return what the study is of; empty before it is claimed."""
        return self._read(self.folder / IDENTITY) or {}

    @contextmanager
    def alone(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Do something in one process at a time, of those that share the folder.

        Args:
            name: of what is done.
            wait: for the others.

        Yields:
            False if another process is at it, and this one does not wait.
        """
        path = self.folder / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a result, or None where there is none yet."""
        return self._read(self.results / f"{name}.json")

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Keep a result."""
        self._write(self.results / f"{name}.json", record)

    def step_seconds(self) -> dict[str, float]:
        """Return the seconds of a step by arm, as far as they were measured."""
        return self._read(self.folder / STEP_SECONDS) or {}

    def write_step_seconds(self, seconds: Mapping[str, float]) -> None:
        """Keep the seconds of a step by arm."""
        self._write(self.folder / STEP_SECONDS, seconds)

    def records(self) -> list[dict[str, Any]]:
        """Return all results in the order of their names."""
        return [json.loads(path.read_text()) for path in sorted(self.results.glob("*.json"))]

    def _read(self, path: Path) -> Any:
        return json.loads(path.read_text()) if path.is_file() else None

    def _write(self, path: Path, record: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with renamed_when_whole(path) as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n")


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Name the entries of dictionaries, so that an error shows those alone that differ."""
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        if isinstance(value, Mapping) and not name.startswith(OPTIONAL):
            flat |= {f"{name}: {inner}": part for inner, part in value.items()}
        else:
            flat[name] = value
    return flat
