"""Checks and comparison of config values, paths and class names, and the number of epochs of a phase."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_bool(**values: Any) -> None:
    """Raise a ValueError unless the values of these keys are true or false."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, received {value!r}")


def check_numbers(least: float = 0.0, above: bool = False, **values: Any) -> None:
    """Raise a ValueError unless the values of these keys are finite numbers of at least (or above) ``least``."""
    for name, value in values.items():
        if not is_number(value) or value < least or (above and value == least):
            bound = f"above {least:g}" if above else f"of at least {least:g}"
            raise ValueError(f"{name} must be a finite number {bound}, received {value!r}")


def check_counts(least: int = 1, **values: Any) -> None:
    """Raise a ValueError unless the values of these keys are whole numbers of at least ``least``."""
    for name, value in values.items():
        if not is_whole(value) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, received {value!r}")


def check_optional_counts(least: int = 1, **values: Any) -> None:
    """Raise a ValueError unless these keys are unset or whole numbers of at least ``least``."""
    check_counts(least, **{name: value for name, value in values.items() if value is not None})


def check_image_size(image_size: Any, factor: int = 8) -> None:
    """Raise a ValueError unless ``image_size`` is (height, width), both positive multiples of ``factor``."""
    sides: Sequence[Any] = list(image_size) if isinstance(image_size, list | tuple) else []
    if len(sides) != 2 or any(not is_whole(side) or side <= 0 or side % factor for side in sides):
        raise ValueError(
            f"image_size must be [height, width], both multiples of {factor} (the networks reduce images by this "
            f"factor), received {image_size}"
        )


def check_class_names(class_names: Any, argument: str = "class_names") -> None:
    """Raise a ValueError unless these are different names that MONAI's configs neither alter nor evaluate."""
    is_list = isinstance(class_names, list | tuple)
    texts = [name for name in class_names if isinstance(name, str) and name.strip()] if is_list else []
    if not texts or len(texts) != len(class_names) or len(set(texts)) != len(texts):
        raise ValueError(
            f"{argument} must be a list of different names, one per label, none empty, received {class_names!r}"
        )
    altered = [name for name in texts if _is_altered(name) or name[0] in "$@%"]
    if altered:
        raise ValueError(
            f"{argument} contains {altered}: a name must not contain '#' (which MONAI's configs turn into '::') or "
            "'::', or begin with '$', '@' or '%' (which they evaluate). Rename the class"
        )


def check_paths(**values: Any) -> None:
    """Raise a ValueError unless the values of these keys are unset, or paths not empty and without a leading ``~``."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, str | os.PathLike) and os.fspath(value).strip()):
            raise ValueError(f"{name} must be a path, received {value!r}. Use . for the working directory")
        if value is not None and os.fspath(value).startswith("~"):
            raise ValueError(f"{name} {value!r} begins with '~', which only a shell expands. Write the path in full")


def check_config_paths(**values: Any) -> None:
    """Raise a ValueError for paths as ``check_paths``, and for those that MONAI's configs alter."""
    check_paths(**values)
    for name, value in values.items():
        if value is not None and _is_altered(os.fspath(value)):
            raise ValueError(
                f"{name} {os.fspath(value)!r} contains '#' (which MONAI's configs turn into '::') or '::'. Rename the "
                "folder or file, or choose another one"
            )


def _is_altered(text: str) -> bool:
    return "#" in text or "::" in text


def epochs(steps: int, val_interval: int) -> int:
    """Return the number of epochs of a phase. An epoch is ``val_interval`` steps, or all steps if there are fewer."""
    return max(1, steps // val_interval)


def check_steps(phase: str, steps: int, interval: int, val_interval: int = 1) -> None:
    """Check that the training of a phase ends with a validation; its last steps would be lost otherwise.

    Args:
        phase: ``autoencoder`` or ``diffusion``.
        steps: steps of the training.
        interval: steps per epoch; fewer steps are one epoch.
        val_interval: epochs between validations.

    Raises:
        ValueError: with the key, its value and what to do.
    """
    check_counts(**{f"{phase}_steps": steps, f"{phase}_val_interval": interval, "val_interval": val_interval})
    if steps > interval and steps % interval:
        raise ValueError(
            f"{phase}_steps {steps} is not a multiple of {phase}_val_interval {interval}: training must end with a "
            f"validation. Use {phase}_steps {steps - steps % interval}, or another interval"
        )
    count = epochs(steps, interval)
    if count % val_interval:
        raise ValueError(
            f"val_interval {val_interval} does not divide the {count} epochs of {phase}_steps {steps}: training must "
            f"end with a validation. Leave val_interval at 1 and raise {phase}_val_interval to validate less often"
        )


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as JSON by their path, as ``{"loss.kl_weight": "1e-06"}``."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, sort_keys=True)
    return flat


def differences_of(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what changed between two sets of flat settings, one sentence per setting."""
    return [
        f"{name} was {before.get(name, 'not set')}, now it is {now.get(name, 'not set')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def duration_in_words(seconds: float) -> str:
    """Return a duration in the unit that suits it, e.g. ``40 s``, ``12 min``, ``5 h``, ``3 days``."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
