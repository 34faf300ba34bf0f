"""Values of DICOM attributes: coded entries, items of sequences, and identifiers from hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

MAKER = "medfusion_monai"


def item(**values: Any) -> Dataset:
    """Return a dataset with these values, by keyword."""
    from pydicom import Dataset  # on first use: other formats do not need it

    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return a coded entry, e.g. ``code("43799004", "SCT", "Thorax")``."""
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def as_text(note: Mapping[str, Any]) -> str:
    """Return the same text for the same entries, in whatever order they are."""
    return repr(sorted((name, str(value)) for name, value in note.items()))


def digest(*words: str) -> str:
    """Return the SHA-256 of words as 64 hexadecimal digits."""
    return hashlib.sha256(repr((MAKER, *words)).encode()).hexdigest()


def uid(*words: str) -> str:
    """Return a UID of 2.25 (PS3.5, B.2) and a UUID of version 8 (RFC 9562) from a hash of words."""
    value = int(digest(*words)[:32], 16)
    value = value & ~(0xF << 76) | 0x8 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return f"2.25.{value}"
