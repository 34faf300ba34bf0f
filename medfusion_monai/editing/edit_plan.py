"""Which images a run edits, and the names of what it writes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import Dataset

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import decode_all, list_problems, pixel_digest
from medfusion_monai.data.training.readable import check_policy
from medfusion_monai.editing.edit_masks import bare_name, masks_of, read_mask
from medfusion_monai.editing.edit_patient import patient_of
from medfusion_monai.evaluation.image_set import ImageSet, open_image_set
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.runtime.values import check_counts
from medfusion_monai.sampling.plan import parse_label

logger = logging.getLogger(__name__)


class EditPlan(list[dict[str, Any]]):
    """Items with ``file``, ``label``, ``class_name``, ``seed``, ``source``, ``path``, ``own_label``, ``index``.

    Attributes:
        unreadable: why images were left out, by their place relative to the folder.
        keep_patient: whether DICOM files of edited images keep the patient of the DICOM file that was edited.
        preprocessing: reads an image.
    """

    unreadable: dict[str, str]
    keep_patient: bool
    preprocessing: Compose


def edit_plan(
    edit: str,
    images: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    preprocessing: Compose,
    class_names: Sequence[str],
    label: Any = None,
    own_label: Any = None,
    number: int = 1,
    seed: int = 0,
    suffix: str = ".png",
    unreadable: str = "stop",
    split: str | None = None,
    masks: str | Path | None = None,
    keep_patient: bool = False,
    output_format: str = "dicom",
) -> EditPlan:
    """List what a run writes; every image is read once, so that a damaged one is known before the first is edited.

    Args:
        edit: a name in ``EDITS``; ``interpolate`` takes two images, the first and the last of ``number`` frames.
        images: a folder, as ``open_image_set`` takes it, or files.
        output_dir: of the run; not in the folder of the images.
        preprocessing: reads an image, ``{"image": path}``.
        class_names: of the model.
        label: class that the edit needs, in number or name; None if it needs none.
        own_label: class of all images; None for that of the data set if its classes are the model's, else unknown.
        number: images that are written for each.
        seed: of the run.
        suffix: of the files that are written.
        unreadable: ``stop`` or ``skip``, for files that cannot be read.
        split: of a prepared data set; None takes ``reference`` if there is one, else ``test``.
        masks: for ``inpaint``: one file for all images, or a folder with one of the same name, apart from its ending,
            per image. Values other than 0 mark what to sample. A mask has the size of its image's file.
        keep_patient: whether DICOM files of edited images keep patient and study of their sources; these must then
            be DICOM files.
        output_format: of the files, if they keep patients: some formats require what the sources must then state.

    Raises:
        DataError: for a folder without images, an unreadable file unless they are skipped, no readable one, or two
            images that would be written to one file.
        ValueError: for an unknown class or another value out of range.
    """
    check_counts(0, seed=seed)
    check_counts(number=number)
    opened, root = _opened(images, split, output_dir)
    target = NO_LABEL if label is None else parse_label(label, class_names)
    places = masks_of(opened.paths, masks, edit == "inpaint")
    _check_keeping(keep_patient, edit, suffix)
    kept_in = output_format if keep_patient else None
    found = _readable(opened.paths, places, preprocessing, check_policy(unreadable), kept_in)
    plan = EditPlan()
    plan.keep_patient, plan.preprocessing = keep_patient, preprocessing
    problems = {path: one.problem for path, one in found.items() if one.problem is not None}
    plan.unreadable = {_place(path, root): text.removeprefix(f"{path}: ") for path, text in problems.items()}
    own = None if own_label is None else parse_label(own_label, class_names, "own_label")
    common = {"label": target, "class_name": class_names[target] if target >= 0 else "", "seed": seed}
    for item in opened.items:
        if item["image"] not in problems:
            known = item["label"] if own is None and opened.class_names == list(class_names) else own
            source = {"source": _place(item["image"], root), "path": item["image"]}
            source["source_pixels"] = found[item["image"]].digest
            mask = {"mask": places[item["image"]]} if places else {}
            plan.append({**common, **source, **mask, "own_label": NO_LABEL if known is None else known})
    if edit == "interpolate":
        plan[:] = _frames(plan, number, suffix)
    else:
        plan[:] = [{**item, **extra} for item in plan for extra in numbered_files(item["source"], number, suffix)]
    _refuse_equal_names(plan)
    return plan


def numbered_files(source: str, number: int, suffix: str) -> list[dict[str, Any]]:
    """Return ``file`` and ``index`` of each image that is made from a source, a path relative to its folder."""
    if number == 1:
        return [{"file": f"{bare_name(source)}{suffix}", "index": 0}]
    width = len(str(number - 1))
    return [{"file": f"{bare_name(source)}_{index:0{width}d}{suffix}", "index": index} for index in range(number)]


def _frames(plan: Sequence[Mapping[str, Any]], number: int, suffix: str) -> list[dict[str, Any]]:
    if len(plan) != 2:
        raise ValueError(f"images must be two for edit interpolate, the first and the last frame, received {len(plan)}")
    first, last = plan
    ends = {"other": last["path"], "other_label": last["own_label"], "source": f"{first['source']}, {last['source']}"}
    ends["source_pixels"] = f"{first['source_pixels']}, {last['source_pixels']}"
    return [{**first, **ends, **extra} for extra in numbered_files("frame", number, suffix)]


class EditImages(Dataset):
    """The images of a plan, read for the editing of batches.

    Args:
        plan: of ``edit_plan``.
        preprocessing: reads an image, ``{"image": path}``.
    """

    def __init__(self, plan: Sequence[Mapping[str, Any]], preprocessing: Compose) -> None:
        self.plan, self.preprocessing = plan, preprocessing

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an item of the plan with its ``image`` (C, H, W) in [0, 1]."""
        item = dict(self.plan[index])
        item["image"] = self.read(item["path"])
        if "other" in item:
            item["other"] = self.read(item["other"])
        if "mask" in item:
            item["mask"] = read_mask(item["mask"], item["path"], item["image"].shape[-2:], self.preprocessing)
        return item

    def read(self, path: str) -> torch.Tensor:
        """Return an image (C, H, W) in [0, 1]."""
        return torch.as_tensor(self.preprocessing({"image": path})["image"])


def _check_keeping(keep_patient: Any, edit: str, suffix: str) -> None:
    if not isinstance(keep_patient, bool):
        raise ValueError(f"keep_patient must be true or false, received {keep_patient!r}")
    if keep_patient and suffix != ".dcm":
        raise ValueError("keep_patient has an effect on DICOM files only: add --output_format dicom, or leave it out")
    if keep_patient and edit in ("interpolate", "classify"):
        raise ValueError(f"keep_patient has no effect on edit {edit}, whose output is not of one patient: leave it out")


def _opened(images: Any, split: str | None, output_dir: str | Path) -> tuple[ImageSet, Path]:
    if isinstance(images, str | Path) and not os.path.isfile(images):
        root = Path(os.path.realpath(images))
        _refuse_within(output_dir, root)
        return open_image_set("images", images, split), root
    files = [images] if isinstance(images, str | Path) else images
    if not isinstance(files, list | tuple) or not files or not all(isinstance(file, str | Path) for file in files):
        raise ValueError(f"images must be a folder, a file or a list of files, received {images!r}")
    if split is not None:
        raise ValueError(f"split {split!r} is one of a prepared data set: leave it out with a list of files")
    paths = [os.path.realpath(file) for file in files]
    items = [{"image": path, "label": None} for path in paths]
    return ImageSet("images", items, [], "files"), Path(os.path.commonpath([os.path.dirname(path) for path in paths]))


def _refuse_within(output_dir: str | Path, root: Path) -> None:
    place = Path(os.path.realpath(output_dir))
    if place == root or root in place.parents:
        raise ValueError(
            f"output_dir {output_dir} is in the folder of the images: the next run would edit what this one writes. "
            "Choose another folder"
        )


class _Found(NamedTuple):
    """Why an image, or its mask, cannot be used, None if it can, and a checksum of the pixels of both."""

    problem: str | None
    digest: str = ""


def _readable(
    paths: Sequence[str], masks: Mapping[str, str], preprocessing: Compose, unreadable: str, kept_in: str | None
) -> dict[str, _Found]:
    """Return what reading found, by path."""

    def read(path: str) -> _Found:
        if masks and not masks[path]:
            return _Found(f"{path}: has no mask. Add a mask of the same name.")
        try:
            image = preprocessing({"image": path})["image"]
            digest = pixel_digest(np.asarray(image))
            if kept_in is not None:
                patient_of(path, kept_in, preprocessing)
            if masks:
                mask = read_mask(masks[path], path, image.shape[-2:], preprocessing)
                digest += " " + pixel_digest(mask.float().numpy())
        except (DataError, RuntimeError) as error:  # MONAI's transforms wrap errors
            cause = error if isinstance(error, DataError) else error.__cause__
            if not isinstance(cause, DataError):
                raise
            return _Found(str(cause))
        return _Found(None, digest)

    found = decode_all(read, paths, "check images")
    problems = [one.problem for one in found if one.problem is not None]
    if problems:
        listed = list_problems(f"{len(problems)} of {len(paths)} images cannot be read", problems)
        if unreadable == "stop" or len(problems) == len(paths):
            raise DataError(f"{listed}\nReplace or remove these files, or set unreadable to skip.")
        logger.warning("%s\nThey are left out.", listed)
    return dict(zip(paths, found, strict=True))


def _place(path: str, root: Path) -> str:
    """Return a path relative to the folder, or its name if it lies elsewhere; never a place of the disk."""
    relative = os.path.relpath(path, root)
    return os.path.basename(path) if relative.startswith("..") else relative.replace(os.sep, "/")


def _refuse_equal_names(plan: EditPlan) -> None:
    sources: dict[str, str] = {}
    for item in plan:
        if item["file"] in sources:
            raise DataError(
                f"{sources[item['file']]} and {item['source']} would both be written as {item['file']}: rename one of "
                "them, or edit them in two runs."
            )
        sources[item["file"]] = item["source"]
