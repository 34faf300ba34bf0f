"""What an inference run writes: which images of which labels, from which seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medfusion_monai.diffusion.randomness import derive_seed

Label = int | str


def parse_labels(label: Label | Sequence[Label] | None, class_names: Sequence[str]) -> list[int]:
    """Turn labels or class names, one or several, into labels; None means every class.

    Raises:
        ValueError: for a name or number that is no class.
    """
    if label is None:
        return list(range(len(class_names)))
    labels = [label] if isinstance(label, int | str) else list(label)
    return [parse_label(entry, class_names) for entry in labels]


def parse_label(label: Label, class_names: Sequence[str]) -> int:
    """Turn one label or class name into a label; raise a ValueError if it is neither."""
    if isinstance(label, str) and label in class_names:
        return list(class_names).index(label)
    number = int(label) if isinstance(label, int) or label.isdecimal() else -1
    if isinstance(label, bool) or not 0 <= number < len(class_names):
        known = ", ".join(f"{index} {name}" for index, name in enumerate(class_names))
        raise ValueError(f"label {label!r} is no class of this bundle; its classes are: {known}")
    return number


def sampling_plan(
    class_names: Sequence[str],
    label: Label | Sequence[Label] | None = None,
    num_samples: int | Sequence[int] = 16,
    seed: int = 0,
    image_seeds: Sequence[int] | None = None,
    suffix: str = ".png",
) -> list[dict[str, Any]]:
    """List the images of a run; image k of a label is the same however many others are asked for.

    Args:
        class_names: the bundle's classes, in label order.
        label: label or class name, or a list of them; None for all classes.
        num_samples: images of each label, or a list with one count a label.
        seed: of the run; each image has its own seed, derived from it, its label and its number.
        image_seeds: seeds of the images instead, e.g. from a manifest, to make these images again.
        suffix: of the file names.

    Returns:
        Items with ``file`` (name), ``label``, ``class_name`` and ``seed``.

    Raises:
        ValueError: for an unknown class, a count below 1, or lists of different lengths.
    """
    labels = parse_labels(label, class_names)
    if len(set(labels)) != len(labels) or not labels:
        raise ValueError(f"label names no class, or one twice: {label!r}")
    counts = [num_samples] * len(labels) if isinstance(num_samples, int) else list(num_samples)
    if image_seeds is not None:
        counts = [len(image_seeds)] * len(labels)
    if len(counts) != len(labels):
        raise ValueError(f"num_samples has {len(counts)} counts for {len(labels)} labels: give one count, or one each")
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 1 for count in counts):
        raise ValueError(f"num_samples must be whole numbers of at least 1, received {num_samples!r}")
    plan = []
    for number, count in zip(labels, counts, strict=True):
        seeds = image_seeds or [derive_seed("image", seed, number, index) for index in range(count)]
        name = class_names[number]
        for index, image_seed in enumerate(seeds):
            file = f"{_file_name(name)}_{index:06d}{suffix}"
            plan.append({"file": file, "label": number, "class_name": name, "seed": int(image_seed)})
    return plan


def _file_name(class_name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in class_name)
