"""The images of a training: the datalist and the settings for reading its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from medfusion_monai.data.datalist import read_splits
from medfusion_monai.data.pixels import digests_of, fingerprint, record_digests, refuse_repeats
from medfusion_monai.data.reading.transforms import read_and_resize
from medfusion_monai.data.training.class_shares import parse_class_shares, training_shares
from medfusion_monai.data.training.readable import check_policy
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.values import check_class_names

Item = dict[str, Any]


class TrainingImages:
    """The training and validation items of a datalist, with the settings they share.

    It reads nothing when it is built, which lets all settings be checked together.

    Args:
        dataset_dir: folder of ``datalist.json``, as ``medfusion prepare`` writes it.
        class_names: in label order.
        image_size: height and width to which images are resized.
        image_channels: 1 (gray) or 3 (RGB).
        downsampling: ratio of image size and latent size.
        dicom_modalities: accepted values of DICOM's Modality; None for projections and photographs.
        resize_mode: ``crop`` or ``pad``.
        unreadable: ``stop`` (an unreadable image ends the training) or ``skip`` (it is left out).
        class_shares: of the classes in training: None as in the data, ``equal``, or one share per class.
        val_images: about the most images of the validation split to use, spread evenly.
        check_files: whether to read every image once before the first step.
    """

    def __init__(
        self,
        dataset_dir: str,
        class_names: Sequence[str],
        image_size: Sequence[int],
        image_channels: int = 1,
        downsampling: int = 8,
        dicom_modalities: Sequence[str] | None = None,
        resize_mode: str = "crop",
        unreadable: str = "stop",
        class_shares: str | Sequence[float] | None = None,
        val_images: int = 2000,
        check_files: bool = True,
    ) -> None:
        self.dataset_dir, self.class_names, self.image_size = dataset_dir, class_names, image_size
        self.image_channels, self.downsampling, self.dicom_modalities = image_channels, downsampling, dicom_modalities
        self.resize_mode, self.unreadable, self.class_shares = resize_mode, unreadable, class_shares
        self.val_images, self.check_files = val_images, check_files

    @cached_property
    def training(self) -> list[Item]:
        """Items of the training split.

        Raises:
            DataError: see ``read_datalist``; also for the validation split.
        """
        return self._splits["training"]

    @cached_property
    def validation(self) -> list[Item]:
        """Items of the validation split to use.

        Raises:
            DataError: see ``read_datalist``; also for the training split.
        """
        items = self._splits.pop("validation")  # those that are left out below need not stay in memory
        return items[:: max(1, len(items) // self.val_images)]

    @cached_property
    def _splits(self) -> dict[str, list[Item]]:
        return read_splits(self.dataset_dir, ("training", "validation"), self.class_names, where_existing=["test"])

    @property
    def shares(self) -> list[float] | None:
        """Share of each class in training, or None for the shares of the data.

        Raises:
            ValueError: for invalid ``class_shares``, or a class without images, unless its share is 0.
        """
        return training_shares(self.class_shares, self.class_names, [item["label"] for item in self.training])

    @property
    def fingerprint(self) -> str:
        """Digits that identify the training images by their pixels."""
        return fingerprint(self.training)

    def identify(self) -> None:
        """Take the checksums of the images' pixels that neither the datalist records nor a check has taken.

        Raises:
            DataError: if images with equal pixels are in two splits, that for the test included, or have two labels.
        """
        splits = {"training": self.training, "validation": self.validation, "test": self._splits.get("test", [])}
        for items in splits.values():
            record_digests(items, from_first(partial(digests_of, items, self.dicom_modalities)))
        refuse_repeats(splits, self.class_names)
        self._splits.pop("test", None)  # needed only here

    @property
    def reading(self) -> dict[str, Any]:
        """Keywords of ``check_sample``."""
        names = {"channels": self.image_channels, "image_size": self.image_size}
        names |= {"modalities": self.dicom_modalities, "resize_mode": self.resize_mode}
        return {**names, "unreadable": self.unreadable}

    def check_choices(self) -> None:
        """Check the settings that no other constructor checks.

        Raises:
            ValueError: naming the key, the value and what to do.
        """
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels must be 1 (gray) or 3 (RGB), received {self.image_channels!r}")
        check_class_names(self.class_names)
        read_and_resize([1, 1], self.image_channels, self.resize_mode, self.dicom_modalities)
        parse_class_shares(self.class_shares, len(self.class_names), "equal")
        check_policy(self.unreadable)

    def describe_labels(self) -> str:
        """Return the number of images per class, in words."""
        lines = []
        for split, items in (("training", self.training), ("validation", self.validation)):
            counts = Counter(item["label"] for item in items)
            lines.append(
                f"{split} " + ", ".join(f"{counts[label]} {name}" for label, name in enumerate(self.class_names))
            )
        return "; ".join(lines)
