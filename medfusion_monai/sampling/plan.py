"""What an inference run writes: which images of which labels, from which seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medfusion_monai.data.preparing.splits import apportion
from medfusion_monai.data.training.class_shares import parse_class_shares
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.runtime.values import check_counts, is_whole

Label = int | str
MANIFEST = "manifest.csv"
"""The file in which a run lists its images."""
NAME_BYTES = 150
"""Bytes of a class name in the names of files, of which file systems allow 255."""

MOST = 10_000_000
"""Images of a run; listing more takes minutes and gigabytes before the first is sampled."""


def parse_labels(label: Label | Sequence[Label] | None, class_names: Sequence[str]) -> list[int]:
    """Convert labels or class names, one or several, to labels; None means every class.

    Raises:
        ValueError: for an unknown name or number, an empty list, or a class given twice.
    """
    if label is None:
        return list(range(len(class_names)))
    entries = list(label) if isinstance(label, list | tuple) else [label]
    labels = [parse_label(entry, class_names) for entry in entries]
    if len(set(labels)) != len(labels) or not labels:
        raise ValueError(f"label must name at least one class and none twice, received {label!r}")
    return labels


def parse_label(label: Any, class_names: Sequence[str], argument: str = "label") -> int:
    """Convert one label or class name to a label.

    Args:
        label: as given by the user.
        class_names: the bundle's classes, in label order.
        argument: name of the argument, for the error text.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(label, str) and label in class_names:
        return list(class_names).index(label)
    is_number = is_whole(label) or (isinstance(label, str) and label.isdecimal())
    if not is_number or not 0 <= int(label) < len(class_names):
        known = ", ".join(f"{index} {name}" for index, name in enumerate(class_names))
        raise ValueError(
            f"{argument} {label!r} is not a class of this bundle: give the number or name of one of its classes, "
            f"{known}"
        )
    return int(label)


def parse_negative_label(label: Any, class_names: Sequence[str]) -> int | list[int]:
    """Convert the class to steer away from, one for all images or a list of one per label.

    Raises:
        ValueError: for an unknown class, or a list of another length than the classes.
    """
    if not isinstance(label, list | tuple):
        return parse_label(label, class_names, "negative_label")
    if len(label) != len(class_names):
        raise ValueError(
            f"negative_label {list(label)} has {len(label)} entries: give one class, or a list of {len(class_names)}, "
            f"one for each of {', '.join(class_names)}"
        )
    return [parse_label(entry, class_names, "negative_label") for entry in label]


def sampling_plan(
    class_names: Sequence[str],
    label: Label | Sequence[Label] | None = None,
    num_samples: int | Sequence[int] = 16,
    seed: int = 0,
    image_seeds: Sequence[int] | None = None,
    suffix: str = ".png",
    class_shares: str | Sequence[float] | None = None,
    real_shares: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """List the images of a run; image k of a label is the same however many others are requested.

    Args:
        class_names: the bundle's classes, in label order.
        label: label or class name, or a list of them; None for all classes.
        num_samples: images per label, or a list with one count per label; with ``class_shares``, images in total.
        seed: of the run; each image has its own seed, derived from it, its label and its number.
        image_seeds: explicit seeds of the images instead, e.g. from a manifest, to sample these images again.
        suffix: of the file names.
        class_shares: None for ``num_samples`` per label; ``real`` for the shares of the training data; or a list of
            shares, one per label.
        real_shares: of all classes in the training data, in label order; for ``real``.

    Returns:
        Items with ``file`` (name), ``label``, ``class_name`` and ``seed``.

    Raises:
        ValueError: for an unknown class, a count below 1, a seed below 0, lists of different lengths, or shares that
            are unknown or combined with ``image_seeds`` or several counts.
    """
    check_counts(0, seed=seed)
    labels = parse_labels(label, class_names)
    seeds = None if image_seeds is None else _checked_seeds(image_seeds)
    shares = _checked_shares(class_shares, labels, real_shares)
    if seeds and shares:
        raise ValueError("image_seeds and class_shares both determine which images to sample: give only one of them")
    if shares:
        counts = apportion(_checked_total(num_samples), shares)
    else:
        counts = [len(seeds)] * len(labels) if seeds else _checked_counts(num_samples, len(labels))
    plan = []
    for number, count in zip(labels, counts, strict=True):
        name = class_names[number]
        own_seeds = seeds or [derive_seed("image", seed, number, index) for index in range(count)]
        for index, image_seed in enumerate(own_seeds):
            # The number distinguishes classes whose names differ only in characters that are replaced.
            file = f"{number}_{name_in_files(name)}_{index:06d}{suffix}"
            plan.append({"file": file, "label": number, "class_name": name, "seed": image_seed})
    return plan


def _checked_counts(num_samples: Any, num_labels: int) -> list[int]:
    counts = list(num_samples) if isinstance(num_samples, list | tuple) else [num_samples] * num_labels
    if not all(is_whole(count) and count >= 1 for count in counts):
        raise ValueError(f"num_samples must be whole numbers of at least 1, received {num_samples!r}")
    if len(counts) != num_labels:
        raise ValueError(
            f"num_samples has {len(counts)} counts for {num_labels} labels: give one count, or one per label"
        )
    if sum(counts) > MOST:
        raise ValueError(
            f"num_samples asks for {sum(counts):,} images: a run writes at most {MOST:,}; use several seeds"
        )
    return counts


def _checked_shares(
    class_shares: Any, labels: Sequence[int], real_shares: Sequence[float] | None
) -> list[float] | None:
    shares = parse_class_shares(class_shares, len(labels), "real")
    if not isinstance(shares, str):
        return shares
    chosen = [real_shares[label] for label in labels] if real_shares else []
    if not sum(chosen) > 0:
        raise ValueError(
            f"class_shares real needs the shares of the labels {labels} in the training data, received {real_shares}: "
            "give a list, e.g. --class_shares '[0.97, 0.03]'"
        )
    return [share / sum(chosen) for share in chosen]


def _checked_total(num_samples: Any) -> int:
    if not is_whole(num_samples) or num_samples < 1:
        raise ValueError(
            "with class_shares, num_samples is the total number of images, a whole number of at least 1, received "
            f"{num_samples!r}"
        )
    return num_samples


def _checked_seeds(image_seeds: Any) -> list[int]:
    seeds = list(image_seeds) if isinstance(image_seeds, list | tuple) else []
    if not seeds or not all(is_whole(seed) and 0 <= seed < 2**63 for seed in seeds):
        raise ValueError(
            "image_seeds must be a list of whole numbers from 0 to 2**63 - 1, e.g. '[12, 34]', "
            f"received {image_seeds!r}"
        )
    return seeds


def name_in_files(class_name: str) -> str:
    """Return what stands for a class in the names of files: its letters and digits, and underscores."""
    name = "".join(character if character.isalnum() else "_" for character in class_name)
    return name.encode()[:NAME_BYTES].decode(errors="ignore")
