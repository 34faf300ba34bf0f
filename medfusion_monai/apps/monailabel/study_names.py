"""Names of the studies that the app makes, by which it knows them again."""

from __future__ import annotations

from collections.abc import Sequence

from medfusion_monai.sampling.plan import file_name_of

SYNTHETIC, EDITED = "synthetic_", "edited_"


def synthetic_name(class_name: str, seed: int) -> str:
    """Return the name of a generated study."""
    return f"{SYNTHETIC}{file_name_of(class_name)}_{seed}"


def edited_name(edit: str, study: str, class_name: str = "") -> str:
    """Return the name of a study that shows another one edited.

    Args:
        edit: name of the task.
        study: name of the other one.
        class_name: the class that it shows; empty if it shows none.
    """
    return "_".join([f"{EDITED}{edit}", *([file_name_of(class_name)] if class_name else []), study])


def is_made(study: str) -> bool:
    """Return whether a study was generated or edited by the app."""
    return study.startswith((SYNTHETIC, EDITED))


def real_studies(studies: Sequence[str]) -> list[str]:
    """Return those studies that the app did not make."""
    return [study for study in studies if not is_made(study)]
