"""Finds the patient of each image by its path or its DICOM header."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.dicom import looks_like_dicom
from medfusion_monai.data.reading.images import decode_all, list_problems
from medfusion_monai.runtime.files import make_folders, renamed_when_whole

SALT_NAME = "patient_salt.txt"
SALT = re.compile("[0-9a-f]{64}")


class PatientsByPattern:
    """Patients by a part of the path.

    Args:
        pattern: regular expression with one group, the patient; searched in the path relative to the root, with
            slashes.

    Raises:
        DataError: for an invalid expression, or one without exactly one group.
    """

    def __init__(self, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise DataError(f"patient pattern '{pattern}' is not a regular expression: {error}.") from error
        if self.pattern.groups != 1:
            raise DataError(
                f"patient pattern '{pattern}' has {self.pattern.groups} groups. Put the patient, and nothing else, in "
                "parentheses, e.g. '([0-9]+)_[0-9]+'; use (?:...) for other groups."
            )

    def assign(self, records: Sequence[dict[str, Any]], root: Path) -> None:
        """Set ``patient`` of each record.

        Raises:
            DataError: for paths without a match; the first ten are listed.
        """
        unmatched = []
        for record in records:
            place = Path(os.path.relpath(record["image"], root)).as_posix()
            found = self.pattern.search(place)
            if found is None or not found[1]:
                unmatched.append(place)
            else:
                record["patient"] = found[1]
        if unmatched:
            title = f"patient pattern '{self.pattern.pattern}' does not match {len(unmatched)} of {len(records)} images"
            raise DataError(f"{list_problems(title, unmatched)}\nCorrect --patient-pattern, or leave these images out.")

    def describe(self) -> str:
        """Return the rule in words."""
        return f"patients by the pattern '{self.pattern.pattern}' of their paths"

    def save(self) -> None:
        """Write nothing: the pattern is in the datalist."""


class PatientsByDicom:
    """Patients by DICOM's PatientID, hashed with a random salt; neither IDs nor salt are written into the datalist.

    Equal IDs of different issuers count as one patient.

    Args:
        output: folder of the file with the salt; an existing salt is used again, and gives the same hashes.

    Raises:
        DataError: for an existing file without a salt.
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.file = Path(output) / SALT_NAME
        try:
            self.salt = self.file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            self.salt = secrets.token_hex(32)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.file}: cannot be read: {error}. Correct its permissions, or remove it.") from error
        if not SALT.fullmatch(self.salt):
            raise DataError(f"{self.file}: is not a salt of 64 hexadecimal digits. Restore it, or remove it.")

    def assign(self, records: Sequence[dict[str, Any]], root: Path) -> None:
        """Set ``patient`` of each record to 16 hexadecimal digits.

        Raises:
            DataError: for files without a PatientID; the first ten are listed.
        """
        identifiers = decode_all(_patient_id, [record["image"] for record in records], "read patients")
        lacking = [os.fspath(r["image"]) for r, found in zip(records, identifiers, strict=True) if not found]
        if lacking:
            title = f"{len(lacking)} of {len(records)} images in '{root}' have no DICOM header with a PatientID"
            raise DataError(f"{list_problems(title, lacking)}\nLeave them out, or use --patient-pattern or a table.")
        for record, identifier in zip(records, identifiers, strict=True):
            digest = hmac.new(bytes.fromhex(self.salt), identifier.encode("utf-8", "surrogateescape"), "sha256")
            record["patient"] = digest.hexdigest()[:16]

    def describe(self) -> str:
        """Return the rule in words."""
        return "patients by salted hashes of DICOM's PatientID"

    def save(self) -> None:
        """Write the salt, readable by its owner only."""
        make_folders([self.file.parent])
        with renamed_when_whole(self.file) as partial:
            partial.touch(mode=0o600)
            partial.write_text(f"{self.salt}\n", encoding="ascii")


def _patient_id(path: Path) -> str:
    """Return the PatientID of a file, or "" if it has none."""
    from pydicom import dcmread  # imported on first use, as other sources do not need it

    try:
        with open(path, "rb") as file:
            if not looks_like_dicom(file.read(352)):
                return ""
        header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip()
    except Exception:  # a missing or damaged file has no header, and pydicom raises anything
        return ""
