"""Whether a sample of the images can be read and fits the settings."""

from __future__ import annotations

from collections.abc import Sequence

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.brightness import ImageSurvey, spread_evenly
from medfusion_monai.data.reading.images import list_problems, read_image

SAMPLE = 32


def check_sample(
    paths: Sequence[str],
    channels: int,
    image_size: Sequence[int],
    modalities: Sequence[str] | None = None,
    unreadable: str = "stop",
    resize_mode: str = "crop",
    contact_sheet: str | None = None,
    count: int = SAMPLE,
) -> str:
    """Read images spread evenly over a list and return their sizes and brightness, in words.

    Args:
        paths: the files.
        channels: 1 or 3, which they must have.
        image_size: height and width of the training.
        modalities: accepted values of DICOM's Modality.
        unreadable: with ``skip``, unreadable images are only counted.
        resize_mode: ``crop`` or ``pad``.
        contact_sheet: PNG file to write with images as the networks will see them; None for none.
        count: most images to read.

    Raises:
        DataError: listing the unreadable, tiny and constant images; with ``skip``, unreadable ones only if none can be
            read.
    """
    chosen = spread_evenly(paths, count)
    survey = ImageSurvey(chosen, size=image_size, resize_mode=resize_mode)
    sizes: list[tuple[int, int]] = []
    problems: list[str] = []
    empty: list[str] = []
    for path in chosen:
        try:
            pixels = read_image(path, channels, modalities)
        except DataError as error:
            problems.append(str(error))
            continue
        height, width = pixels.shape[1:]
        sizes.append((height, width))
        try:
            survey.add(path, pixels)
        except DataError as error:
            empty.append(str(error))
    refused = empty if unreadable == "skip" and sizes else problems + empty
    if refused:
        title = f"{len(refused)} of a sample of {len(chosen)} images cannot be used"
        raise DataError(list_problems(title, refused) + "\nReplace or remove these files.")
    if contact_sheet is not None:
        survey.write_sheet(contact_sheet)
    words = [f"{len(sizes)} of {len(paths)} read, {_span(sizes)} pixels"]
    small = sum(height < image_size[0] or width < image_size[1] for height, width in sizes)
    words += [f"{small} smaller than image_size"] if small else []
    words += [survey.describe(), *survey.doubts()]
    return ", ".join(words + ([f"{len(problems)} cannot be read and will be skipped"] if problems else []))


def _span(sizes: Sequence[tuple[int, int]]) -> str:
    least, most = min(sizes), max(sizes)
    return f"{least[0]}x{least[1]} to {most[0]}x{most[1]}"
