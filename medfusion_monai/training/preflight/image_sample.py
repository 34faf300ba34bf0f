"""Whether a sample of the images can be read and fits the settings."""

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
    """Read images spread evenly over a list and return their sizes, in words.

    Args:
        paths: the files.
        channels: 1 or 3, which they must have.
        image_size: height and width of the training.
        modalities: accepted values of DICOM's Modality.
        unreadable: with ``skip``, unreadable images are only counted.
        count: most images to read.

    Raises:
        DataError: listing the unreadable images; with ``skip``, only if none can be read.
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
        title = f"{len(problems)} of a sample of {count} images cannot be used"
        raise DataError(list_problems(title, problems) + "\nReplace or remove these files.")
    least, most = min(sizes), max(sizes)
    small = sum(height < image_size[0] or width < image_size[1] for height, width in sizes)
    words = f"{len(sizes)} of {len(paths)} read, {least[0]}x{least[1]} to {most[0]}x{most[1]} pixels"
    words += f", {small} smaller than image_size" if small else ""
    return words + (f", {len(problems)} cannot be read and will be skipped" if problems else "")
