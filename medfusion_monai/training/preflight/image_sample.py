"""Whether images can be read and fit the settings, by a sample of them."""

from __future__ import annotations

from collections.abc import Sequence

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import list_problems, read_image

SAMPLE = 32


def check_sample(
    paths: Sequence[str],
    channels: int,
    image_size: Sequence[int],
    modalities: Sequence[str] | None = None,
    unreadable: str = "stop",
    count: int = SAMPLE,
) -> str:
    """Read images that are spread over a list and say how large they are.

    Args:
        paths: the files.
        channels: 1 or 3 that they must have.
        image_size: height and width that they are brought to.
        modalities: values of DICOM's Modality that are accepted.
        unreadable: with ``skip`` images that cannot be read are counted only.
        count: images to read, at most.

    Raises:
        DataError: listing those that cannot be read; with ``skip`` if none can.
    """
    count = min(count, len(paths))
    chosen = [paths[round(index * (len(paths) - 1) / max(1, count - 1))] for index in range(count)]
    sizes: list[tuple[int, int]] = []
    problems: list[str] = []
    for path in chosen:
        try:
            height, width = read_image(path, channels, modalities).shape[1:]
            sizes.append((height, width))
        except DataError as error:
            problems.append(str(error))
    if problems and (unreadable != "skip" or not sizes):
        title = f"{len(problems)} of {len(sizes) + len(problems)} images that were tried cannot be used"
        raise DataError(list_problems(title, problems) + "\nReplace or remove these files.")
    least, most = min(sizes), max(sizes)
    small = sum(height < image_size[0] or width < image_size[1] for height, width in sizes)
    words = f"{len(sizes)} of {len(paths)} read, {least[0]}x{least[1]} to {most[0]}x{most[1]} pixels"
    words += f", {small} smaller than image_size" if small else ""
    return words + (f", {len(problems)} cannot be read and will be left out" if problems else "")
