"""The dataset of phase two: latents that are encoded once and stored on disk, or the images themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, Randomizable
from torch.utils.data import Dataset

from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.data.reading.transforms import form_of
from medfusion_monai.data.training.flips import FlippedDataset, check_flips, for_each_variant
from medfusion_monai.data.training.latent_identity import describe_transforms
from medfusion_monai.data.training.latent_store import LatentStore
from medfusion_monai.data.training.readable import ReadableDataset
from medfusion_monai.data.training.stream import SeededDataset
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.training.latent_encoding import cached_latents
from medfusion_monai.training.run import TrainingRun
from medfusion_monai.training.training_images import TrainingImages


class LatentDataset(Dataset):
    """Images with labels; after ``prepare`` and with cached latents, posteriors with labels.

    Length, order and labels are the same before and after: a workflow can be inspected without encoding anything. Each
    flip is a separate entry.

    Args:
        data: items with ``image`` (path) and ``label``.
        transform: reads and resizes an image; deterministic.
        network: contains the autoencoder.
        run: defines the folder of the latents.
        name: of this dataset's subfolder.
        cache_latents: whether phase two encodes each image once; ``auto``: unless there are random transforms but no
            flips.
        flips: some of ``horizontal``, ``vertical`` and ``both``.
        random_transforms: of phase one, and of phase two if latents are not cached.
        unreadable: ``stop`` or ``skip``, see :class:`~medfusion_monai.data.training.readable.ReadableDataset`.
        cache_num: images that stay in memory after they are read.

    Raises:
        ValueError: for unknown flips, cached latents with random transforms, or a random ``transform``.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Any,
        network: Medfusion,
        run: TrainingRun,
        name: str,
        cache_latents: bool | str = "auto",
        flips: Sequence[str] = (),
        random_transforms: Sequence[Any] = (),
        unreadable: str = "stop",
        cache_num: int = 0,
    ) -> None:
        self.flips = check_flips(flips)
        if cache_latents is True and random_transforms and not flips:
            raise ValueError(
                f"cache_latents true encodes each image once, but random_transforms has {len(random_transforms)} "
                "entries: set cache_latents to false, or name the flips for phase two in latent_flips"
            )
        if cache_latents not in (True, False, "auto"):
            raise ValueError(f"cache_latents must be true, false or auto, received {cache_latents!r}")
        self.caches = bool(flips) or not random_transforms if cache_latents == "auto" else bool(cache_latents)
        if any(isinstance(step, Randomizable) for step in getattr(transform, "transforms", [transform])):
            raise ValueError(
                "preprocessing is done once per image, but it holds random transforms: move them to random_transforms"
            )
        self.images = ReadableDataset(data, transform, unreadable, cache_num)
        self._flipped = FlippedDataset(self.images, self.flips)
        self.random_transform = Compose(list(random_transforms))
        # Described before use: random transforms keep their last draw in attributes, which would look like settings.
        self.random_settings = describe_transforms(self.random_transform)
        self.network, self.latents_dir = network, run.latents_dir / name
        self._store: LatentStore | None = None

    def __len__(self) -> int:
        """Entries: images times variants."""
        return len(self._flipped)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return entry ``index``: ``label`` and ``image`` (C, H, W) or, once prepared, ``moments`` (2L, h, w)."""
        return self._flipped[index] if self._store is None else self._store[index]

    @property
    def labels(self) -> list[int]:
        """Labels of all entries."""
        return for_each_variant(self.image_labels, self.flips)

    @property
    def image_labels(self) -> list[int]:
        """Labels of the images."""
        return [item["label"] for item in self.images.data]

    def prepare(self, device: torch.device | str, batch_size: int = 32, num_workers: int = 0) -> None:
        """With cached latents, encode the missing ones; all processes of a run must call it.

        Args:
            device: where to encode.
            batch_size: images at a time.
            num_workers: processes that read images.

        Raises:
            ValueError: see ``cached_latents``.
        """
        if not self.caches:
            self.images.keep()  # before data loader workers start, which would each read their own
            return
        if self._store is None:
            images = FlippedDataset(self.images.as_files_are(), self.flips)
            size = self.network.image_size
            assert size is not None
            autoencoder = self.network.autoencoder
            self._store = cached_latents(autoencoder, images, self.latents_dir, size, device, batch_size, num_workers)
            self.images.forget()

    def image_stream(self, seed: int, shares: Sequence[float] | None = None, shuffle: bool = True) -> SeededDataset:
        """Return the stream of phase one: augmented images, or plain ones in order for validation."""
        if not shuffle:
            return SeededDataset(self.images, seed=seed, shuffle=False)
        return SeededDataset(self.images, self.random_transform, seed, labels=self.image_labels, shares=shares)

    def stream(self, seed: int, shares: Sequence[float] | None = None, shuffle: bool = True) -> SeededDataset:
        """Return the stream of phase two: entries with random transforms if not cached; in order for validation."""
        if not shuffle:
            return SeededDataset(self, seed=seed, shuffle=False)
        transform = None if self.caches else self.random_transform
        return SeededDataset(self, transform, seed, labels=self.labels, shares=shares)

    def settings(self, run: TrainingRun, images: TrainingImages) -> dict[str, Any]:
        """Return the settings that determine the items of both streams, for a checkpoint to compare."""
        return {
            "seed": run.seed,
            "epochs_per_validation": run.val_interval,
            "training_images": fingerprint(images.training, ordered=True),
            "val_images": f"{len(images.validation)}, {fingerprint(images.validation, ordered=True)}",
            "class_names": images.class_names,
            "class_shares": images.class_shares,
            "image_size": images.image_size,
            "unreadable": images.unreadable,
            **form_of(self.images.transform),
            **run.pretrained.settings,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Omit the network, which data loader workers do not need."""
        return {**self.__dict__, "network": None}
