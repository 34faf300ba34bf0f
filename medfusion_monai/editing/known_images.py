"""Images of known class, from which a run of edits takes the threshold of anomaly maps or the temperature of classes.

They are scored before the first image is edited, by the same settings, and their scores are kept in the run's folder:
a run that is continued does not score them again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader
from tqdm import tqdm

from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.editing.anomaly import anomaly_threshold, rank_of_threshold
from medfusion_monai.editing.diffusion_classifier import calibrate
from medfusion_monai.editing.edit_plan import EditImages, EditPlan, edit_plan
from medfusion_monai.editing.edit_run import Edit, classification
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.runtime import distributed
from medfusion_monai.runtime.distributed import from_first, gather
from medfusion_monai.sampling.manifest import RowList
from medfusion_monai.sampling.plan import parse_label

logger = logging.getLogger(__name__)

SCORES = "known_images.csv"
"""The file with the scores, in the folder of a run."""
FALSE_POSITIVE_RATE = 0.05
KEYS = {"anomaly_map": ("healthy", "threshold"), "classify": ("labelled", "temperature")}
"""By edit: the key of its known images, and the setting that they determine."""


class KnownImages:
    """Healthy images for ``anomaly_map``, or labelled ones for ``classify``; without any, ``measure`` does nothing.

    Args:
        edit: whose ``chosen`` threshold or temperature is set by ``measure``.
        output_dir: of the run.
        preprocessing: reads an image, ``{"image": path}``.
        label: the healthy class, by number or name. Images of other classes of a prepared set are left out.
        healthy: a folder or files, as ``images`` of ``edit_plan``; not trained on.
        labelled: a prepared set, or a folder with one sub-folder per class; not trained on.
        split: of a prepared set; None for ``validation``.
        false_positive_rate: share of healthy images that may exceed the threshold; None for 0.05.
        batch_size: images at a time.
        unreadable: ``stop`` or ``skip``.

    Raises:
        DataError: for images that cannot be read, or have no class where one is needed.
        ValueError: for too few images, or values that have no effect or exclude each other.
    """

    def __init__(
        self,
        edit: Edit,
        output_dir: str | Path,
        preprocessing: Compose,
        label: Any = None,
        healthy: str | Path | Sequence[str | Path] | None = None,
        labelled: str | Path | None = None,
        split: str | None = None,
        false_positive_rate: float | None = None,
        batch_size: int = 8,
        unreadable: str = "stop",
    ) -> None:
        self.edit, self.folder, self.preprocessing = edit, Path(output_dir), preprocessing
        self.batch_size, self.rate = batch_size, false_positive_rate
        given = {"healthy": healthy, "labelled": labelled}
        self.key, self.setting = KEYS.get(edit.edit, ("", ""))
        self._refuse_idle(given, split)
        images = given.get(self.key)
        if images is None:
            self.plan = EditPlan()
            return
        if edit.edit == "anomaly_map" and self.rate is None:
            self.rate = FALSE_POSITIVE_RATE
        names = edit.model.class_names
        prepared = isinstance(images, str | Path) and (Path(images) / DATALIST_NAME).is_file()
        plan = edit_plan(
            "classify",
            images,
            output_dir,
            preprocessing,
            names,
            unreadable=unreadable,
            split=split or ("validation" if prepared else None),
        )
        self.plan = _labelled(plan, images) if self.key == "labelled" else _healthy(plan, parse_label(label, names))
        if self.rate is not None:
            rank_of_threshold(len(self.plan), self.rate)

    def _refuse_idle(self, given: Mapping[str, Any], split: str | None) -> None:
        for name, value in given.items():
            if value is not None and name != self.key:
                raise ValueError(f"{name} {value!r} has no effect on edit {self.edit.edit}: leave it out")
        images = given.get(self.key)
        if images is not None and self.edit.chosen[self.setting] is not None:
            raise ValueError(f"{self.key} and {self.setting} both determine the {self.setting}: leave one of them out")
        for name, value in {"false_positive_rate": self.rate, "known_split": split}.items():
            if value is not None and images is None:
                raise ValueError(f"{name} {value!r} has no effect without healthy or labelled images: leave it out")
        if self.rate is not None and self.key == "labelled":
            raise ValueError(f"false_positive_rate {self.rate!r} has no effect on edit classify: leave it out")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the manifest says of the images, a checksum of pixels and labels, and the rate of false positives."""
        if not self.key:
            return {}
        content = json.dumps(sorted([item["source_pixels"], item["own_label"]] for item in self.plan))
        settings = {self.key: hashlib.sha256(content.encode()).hexdigest() if self.plan else None}
        return settings if self.key == "labelled" else {**settings, "false_positive_rate": self.rate}

    def measure(self) -> None:
        """Score the images that have no scores yet, and set the edit's threshold or temperature.

        Raises:
            ValueError: for scores that are not finite.
        """
        if not self.plan:
            return
        rows = self._scored()
        scores = torch.tensor([json.loads(rows[item["file"]]["scores"]) for item in self.plan], dtype=torch.float64)
        if self.key == "labelled":
            fitted = calibrate(scores, torch.tensor([item["own_label"] for item in self.plan]))
            logger.info(
                "temperature %.4g of %d labelled images: log loss %.3f, %.3f without",
                *(fitted.temperature, fitted.num_images, fitted.log_loss, fitted.log_loss_before),
            )
            self.edit.chosen["temperature"] = fitted.temperature
            return
        found = anomaly_threshold(scores[:, 0], self.rate or FALSE_POSITIVE_RATE)
        logger.info(
            "threshold %.4g (%d%% interval %.4g to %.4g) of %d healthy images: at most %g%% of other healthy images "
            "from the same source exceed it",
            *(found.value, 100 * found.confidence, found.low, found.high, found.num_images),
            100 * found.false_positive_rate,
        )
        self.edit.chosen["threshold"] = found.value

    def _scored(self) -> dict[str, dict[str, str]]:
        """Return a row with ``scores`` per image; each process scores its share of the missing ones."""
        rank = distributed.rank()
        listed, run = RowList(self.folder, SCORES, rank), self._run()
        columns = ("file", "source_pixels", "run", "scores")
        known = from_first(lambda: {name: row for path in listed.paths() for name, row in listed.read(path).items()})
        wanted = {item["file"]: (item["source_pixels"], run) for item in self.plan}
        rows = {name: row for name, row in known.items() if wanted.get(name) == (row["source_pixels"], row["run"])}
        missing = [item for item in self.plan if item["file"] not in rows][rank :: distributed.world_size()]
        loader: Any = DataLoader(EditImages(missing, self.preprocessing), batch_size=self.batch_size) if missing else []
        for batch in tqdm(loader, f"{self.key} images", unit=" batches", disable=rank > 0 or not missing):
            made = [
                {"file": file, "source_pixels": pixels, "run": run, "scores": json.dumps(scores)}
                for file, pixels, scores in zip(batch["file"], batch["source_pixels"], self._scores(batch), strict=True)
            ]
            listed.append(made, columns)
            rows.update({row["file"]: row for row in made})
        for other in gather(rows):
            rows.update(other)
        if rank == 0:
            listed.make_one({name: rows[name] for name in wanted}, columns)
        return rows

    def _scores(self, batch: dict[str, Any]) -> list[list[float]]:
        batch = {**batch, "image": batch["image"].to(self.edit.model.device)}
        if self.key == "labelled":
            return classification(self.edit, batch).log_likelihoods.tolist()
        return [[float(one.max())] for one in self.edit(batch["image"], None, batch)]

    def _run(self) -> str:
        """Return a checksum of what scores depend on besides the image."""
        edit = self.edit.settings(self.batch_size, "")
        settings = {name: str(value) for name, value in edit.items() if name != self.setting}
        content = json.dumps([settings, self.edit.model.weights_sha256], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def _healthy(plan: EditPlan, label: int) -> EditPlan:
    """Return the items of the healthy class, and those of unknown class."""
    kept = [item for item in plan if item["own_label"] in (label, NO_LABEL)]
    if not kept:
        raise DataError(f"healthy: none of its {len(plan)} images has the class {label}. Name images of this class.")
    plan[:] = [{**item, "label": label} for item in kept]
    return plan


def _labelled(plan: EditPlan, images: Any) -> EditPlan:
    if any(item["own_label"] == NO_LABEL for item in plan) or len(plan) < 2:
        raise DataError(
            f"labelled: '{images}' must have at least two images, each with one of the model's classes. Name a "
            "prepared data set, or a folder with one sub-folder per class."
        )
    return plan
