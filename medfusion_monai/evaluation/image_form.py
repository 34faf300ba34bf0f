"""The form in which sets of images are compared, and whether they can be compared at all."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import GRAY_TOLERANCE, decode_all, list_problems, pixel_digest, read_image
from medfusion_monai.data.reading.transforms import ResizeCenterCropd
from medfusion_monai.evaluation.image_set import ImageSet
from medfusion_monai.runtime.files import size_and_time


class ImageFacts(NamedTuple):
    """What is known of an image before it is measured."""

    size: tuple[int, int]
    planes: int
    coloured: bool
    constant: bool
    digest: str
    stamp: tuple[int, int] | None = None
    """Size of the file and time of its last change, by which ``refuse_changed`` recognises it."""


class ImageForm(NamedTuple):
    """The form in which all sets are measured.

    Args:
        size: height and width.
        channels: 1 or 3.
        resized: whether images are resized to that size; otherwise they all have it.
        mode: of ``ResizeCenterCropd``, ``crop`` or ``pad``.
    """

    size: tuple[int, int]
    channels: int
    resized: bool
    mode: str = "crop"

    def load(self, path: str) -> Tensor:
        """Read an image: (C, H, W) in [0, 1]."""
        image = torch.from_numpy(read_image(path, self.channels))
        return ResizeCenterCropd("image", self.size, self.mode)({"image": image})["image"] if self.resized else image

    def describe(self) -> str:
        """Return a description that distinguishes forms."""
        fitted = {"crop": "cropped", "pad": "padded"}[self.mode]
        how = f"resized with antialiasing and {fitted} to" if self.resized else "as they are,"
        return f"{how} {self.size[0]}x{self.size[1]}, {self.channels} channels"


def inspect_set(images: ImageSet, progress: bool = True) -> list[ImageFacts]:
    """Decode all images of a set once, in threads.

    Raises:
        DataError: for images that cannot be read; lists the first ten.
    """

    def inspect(path: str) -> ImageFacts | str:
        try:
            stamp = size_and_time(path)
            pixels = read_image(path)
        except DataError as error:
            return str(error)
        coloured = float((pixels.max(0) - pixels.min(0)).max()) * 255 > GRAY_TOLERANCE + 1e-3
        constant = bool((pixels.max((1, 2)) - pixels.min((1, 2))).max() == 0)
        height, width = pixels.shape[1:]
        return ImageFacts((height, width), len(pixels), coloured, constant, pixel_digest(pixels), stamp)

    results = decode_all(inspect, images.paths, f"check {images.name}")
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        title = f"{images.name}: {len(problems)} of {len(results)} images cannot be used"
        raise DataError(list_problems(title, problems) + "\nReplace or remove these files.")
    return [result for result in results if isinstance(result, ImageFacts)]


def refuse_changed(images: ImageSet, facts: Sequence[ImageFacts]) -> None:
    """Raise if files have changed since they were inspected.

    Raises:
        DataError: for files that were changed or removed; lists the first ten.
    """
    changed = [path for path, fact in zip(images.paths, facts, strict=True) if size_and_time(path) != fact.stamp]
    if changed:
        title = f"{images.name}: {len(changed)} of {len(facts)} images were changed or removed while they were measured"
        raise DataError(list_problems(title, changed) + "\nRun again when nothing writes there.")


def content_sha256(facts: Sequence[ImageFacts]) -> str:
    """Return a checksum of a set's pixels, regardless of the order and names of files."""
    return content_sha256_of([fact.digest for fact in facts])


def content_sha256_of(digests: Sequence[str]) -> str:
    """Return the same checksum from the ``pixel_digest`` of each image."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def common_form(
    facts: Mapping[str, Sequence[ImageFacts]],
    size: Sequence[int] | None = None,
    least: int = 2,
    real: Collection[str] = (),
    mode: str = "crop",
) -> ImageForm:
    """Find the form in which all sets can be compared.

    Args:
        facts: of each set by its name; the first is the reference, which decides between gray and colour.
        size: (height, width) that images are resized to; None takes the one that all sets but the ``real`` ones have.
        least: fewest images of a set.
        real: sets that are resized to the size of the others, as the evaluation of a bundle resizes real images.
        mode: of ``ResizeCenterCropd``, ``crop`` or ``pad``.

    Raises:
        DataError: for a set of too few images, several sizes without ``size``, gray sets beside coloured ones, or a set
            with only constant images.
    """
    reference = next(iter(facts))
    coloured = any(fact.coloured for fact in facts[reference])
    for name, images in facts.items():
        _refuse_unmeasurable(name, images, least)
        _refuse_mixed_colours(name, images, reference, coloured)
    if size is not None:
        return ImageForm((int(size[0]), int(size[1])), 3 if coloured else 1, True, mode)
    sizes = {name: Counter(fact.size for fact in images) for name, images in facts.items() if name not in real}
    if len(set().union(*sizes.values())) > 1:
        listed = "; ".join(f"{name}: {_list_sizes(counts)}" for name, counts in sizes.items())
        raise DataError(
            f"the images have several sizes, height x width ({listed}). Sharpness would be compared, not content: "
            "resize all sets to one size, e.g. with --size HEIGHT WIDTH."
        )
    [common] = set().union(*sizes.values())
    resized = any(fact.size != common for images in facts.values() for fact in images)
    return ImageForm(common, 3 if coloured else 1, resized, mode)


def exact_form(name: str, facts: Sequence[ImageFacts], size: Sequence[int], channels: int) -> ImageForm:
    """Check that the images of a set have the form of a bundle's images, and return it.

    Args:
        name: of the set.
        facts: of its images.
        size: the bundle's height and width.
        channels: the bundle's.

    Raises:
        DataError: for images of another size or colour, fewer than two, or all constant.
    """
    _refuse_unmeasurable(name, facts, 2)
    _refuse_mixed_colours(name, facts, "this bundle", channels == 3)
    sizes = Counter(fact.size for fact in facts)
    if set(sizes) != {tuple(size)}:
        raise DataError(
            f"{name}: its images are {_list_sizes(sizes)}, height x width, but image_size is {list(size)}. Set "
            "image_size to what they were sampled with, or sample them again."
        )
    return ImageForm((int(size[0]), int(size[1])), channels, False)


def _refuse_unmeasurable(name: str, images: Sequence[ImageFacts], least: int) -> None:
    if len(images) < least:
        raise DataError(
            f"{name}: contains {len(images)} image, but at least {least} are needed to measure a spread. Add images."
        )
    if all(fact.constant for fact in images):
        raise DataError(
            f"{name}: each of its {len(images)} images has a single colour, which no metric can judge. "
            "Check the files and the program that wrote them."
        )


def _list_sizes(counts: Counter[tuple[int, int]]) -> str:
    listed = [f"{height}x{width} ({number})" for (height, width), number in counts.most_common(3)]
    return ", ".join(listed + ([f"{len(counts) - 3} more"] if len(counts) > 3 else []))


def _refuse_mixed_colours(name: str, images: Sequence[ImageFacts], reference: str, coloured: bool) -> None:
    gray_files = sum(fact.planes == 1 for fact in images)
    coloured_files = sum(fact.coloured for fact in images)
    if coloured and gray_files:
        kind = "mixes gray and coloured images" if coloured_files else "is gray"
        raise DataError(
            f"{name}: {kind} ({gray_files} of {len(images)} files have one channel), but {reference} is coloured. "
            "Compare gray with gray and colour with colour."
        )
    if not coloured and coloured_files:
        kind = "is coloured" if coloured_files == len(images) else "mixes gray and coloured images"
        raise DataError(
            f"{name}: {kind} ({coloured_files} of {len(images)} images), but {reference} is gray. "
            "Compare gray with gray and colour with colour."
        )
