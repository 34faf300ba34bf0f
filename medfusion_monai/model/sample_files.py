"""DICOM files of samples, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from medfusion_monai.model.own_sampler import make_sampler
from medfusion_monai.runtime.files import make_folders, renamed_when_whole
from medfusion_monai.sampling.dicom_format import KINDS
from medfusion_monai.sampling.image_formats import image_format, suffix_of
from medfusion_monai.sampling.plan import parse_labels, sampling_plan
from medfusion_monai.sampling.writer import note_of, sample_settings

if TYPE_CHECKING:
    from medfusion_monai.model.trained_model import Model


def save_dicom(
    model: Model,
    images: Tensor,
    folder: str | Path,
    label: int | str | Sequence[int | str],
    seed: int = 0,
    batch_size: int = 16,
    kind: str = "dicom",
    **choices: Any,
) -> list[Path]:
    """Write samples as the DICOM files of ``run inference --precision float32 --output_format dicom``, byte by byte.

    The files say that their images are samples of this label, seed and settings: that must be how they were made. An
    edited image, which shows a patient, is written by ``run editing --output_format dicom``.

    Args:
        model: that sampled them.
        images: (len(label) * n, C, H, W) in [0, 1], of ``Model.sample`` with the following arguments.
        folder: of the files, which have the names that ``run inference`` gives them.
        label: as it was sampled.
        seed: likewise.
        batch_size: likewise; ``run inference`` has the same default.
        kind: of DICOM: ``dicom``, ``dicom_dx``, ``dicom_op`` or ``dicom_gm``.
        choices: likewise.

    Returns:
        The paths of the files, in the order of the images.

    Raises:
        ValueError: for images of another form or number, an unknown class or kind, a setting out of range, or a file
            that exists with other content.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, received {kind!r}")
    suffix = suffix_of(kind, model.image_channels)
    plan = sampling_plan(model.class_names, label, _count(model, images, label), seed, suffix=suffix)
    inferer = make_sampler(model, **choices) if choices else model.sampler
    settings = sample_settings(inferer, model.network, model.image_size, batch_size, kind)
    settings["weights_sha256"] = model.weights_sha256
    encode = image_format(kind).encode
    files = {
        item["file"]: encode(image.detach().cpu().float().numpy(), note_of({**item, **settings}))
        for item, image in zip(plan, images, strict=True)
    }
    make_folders([folder])
    for name, content in files.items():
        _write(Path(folder) / name, content)
    return [Path(folder) / name for name in files]


def _count(model: Model, images: Tensor, label: int | str | Sequence[int | str]) -> int:
    """Return the number of images per label."""
    labels = len(parse_labels(label, model.class_names))
    wanted = (model.image_channels, *model.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != wanted or len(images) % labels or not len(images):
        raise ValueError(
            f"images must be {wanted} each, equally many of each of {labels} labels, as sample returns them, received "
            f"shape {tuple(images.shape)}"
        )
    if not bool(images.isfinite().all()):
        raise ValueError("images have values that are not finite: check that the weights are finite")
    return len(images) // labels


def _write(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() != content:
        raise ValueError(f"{path} exists with another image, or other settings: choose another folder, or delete it")
    with renamed_when_whole(path) as partial:
        partial.write_bytes(content)
