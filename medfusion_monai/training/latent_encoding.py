"""Encodes images once and stores their posteriors on disk."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from medfusion_monai.data.training.flips import FlippedDataset, for_each_variant
from medfusion_monai.data.training.latent_identity import differences, latent_identity
from medfusion_monai.data.training.latent_store import LatentStore
from medfusion_monai.networks.autoencoder import LatentAutoencoder
from medfusion_monai.runtime.distributed import from_first, together
from medfusion_monai.training.prepare_batch import to_network

logger = logging.getLogger(__name__)

SECONDS_TO_SEE = 60.0


def cached_latents(
    autoencoder: LatentAutoencoder,
    images: FlippedDataset,
    folder: str | Path,
    image_size: Sequence[int],
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    num_workers: int = 0,
) -> LatentStore:
    """Encode the images whose posteriors are not stored yet, and return the store.

    Each process encodes its share; all of them need access to the folder. A run that was stopped resumes where it
    was. Latents of other weights, files, flips or transforms are never used.

    Args:
        autoencoder: the trained network.
        images: flips of a ``ReadableDataset`` (or another data set with ``data``, whose items have ``image``, a path,
            and ``label``, and a deterministic ``transform``) that reads files each time.
        folder: of the store.
        image_size: height and width of the images.
        device: where to encode.
        batch_size: images at a time.
        num_workers: processes that read images.

    Returns:
        Entries like those of ``images``, with ``moments`` (2 * latent_channels, h, w) instead of ``image``.

    Raises:
        ValueError: if an image cannot be read, encoded or stored as float16, the disk is full, images change
            meanwhile, or a process does not see the files of another.
    """
    dataset = images.dataset
    if getattr(dataset, "cache_num", 0) > 0:
        raise ValueError(
            "latents must be encoded from the current files, not from memory: pass a dataset with cache_num=0, "
            f"received {dataset.cache_num}"
        )
    labels = for_each_variant([item["label"] for item in dataset.data], images.flips)
    channels, *sides = autoencoder.latent_shape(image_size)
    identity = from_first(lambda: _identity(autoencoder, images))
    store = together(lambda: LatentStore(folder, identity, labels, (2 * channels, *sides)))
    missing = from_first(store.prepare)
    if missing:
        present = len(store) - sum(len(store.entries(number)) for number in missing)
        logger.info("encoding %d images, %d are stored already", len(store) - present, present)
        encoding = {"device": torch.device(device), "batch_size": batch_size, "num_workers": num_workers}
        _fill(store, missing, autoencoder.eval(), images, **encoding)
        from_first(lambda: _refuse_changed(identity, autoencoder, images))
    return store


def _identity(autoencoder: LatentAutoencoder, images: FlippedDataset) -> dict[str, Any]:
    dataset = images.dataset
    files = [item["image"] for item in dataset.data]
    # An unreadable file is replaced by another of the same label.
    labels = [item["label"] for item in dataset.data] if getattr(dataset, "unreadable", "stop") == "skip" else None
    return latent_identity(autoencoder, files, images.flips, getattr(dataset, "transform", None), labels)


def _refuse_changed(identity: dict[str, Any], autoencoder: LatentAutoencoder, images: FlippedDataset) -> None:
    if differences(_identity(autoencoder, images), identity):
        raise ValueError(
            "images changed while they were encoded: run the same command again once all files are complete"
        )


def _fill(
    store: LatentStore, missing: Sequence[int], autoencoder: LatentAutoencoder, images: FlippedDataset, **encoding: Any
) -> None:
    world_size = idist.get_world_size()
    mine = missing[idist.get_rank() :: world_size]
    parts = [store.entries(number) for number in mine]
    with closing(_encoded_parts(parts, autoencoder, images, **encoding)) as shards:
        for turn in range(-(-len(missing) // world_size)):
            together(partial(_write_next, store, mine[turn : turn + 1], shards))
    together(lambda: _wait_for(store))


def _write_next(store: LatentStore, numbers: Sequence[int], shards: Iterator[np.ndarray]) -> None:
    for number in numbers:
        store.write(number, next(shards))


@torch.no_grad()
def _encoded_parts(
    parts: Sequence[range],
    autoencoder: LatentAutoencoder,
    images: FlippedDataset,
    device: torch.device,
    batch_size: int,
    num_workers: int,
) -> Generator[np.ndarray, None, None]:
    """Yield the moments (entries, 2 * latent_channels, h, w) of each part, encoded in batches."""
    batches = [list(part[start : start + batch_size]) for part in parts for start in range(0, len(part), batch_size)]
    loader = iter(DataLoader(images, batch_sampler=batches, num_workers=num_workers, collate_fn=_stack_images))
    bar_options = {"disable": idist.get_rank() > 0, "mininterval": 1.0 if sys.stderr.isatty() else 30.0}
    with tqdm(desc="encoding", total=sum(map(len, parts)), unit=" images", **bar_options) as bar:
        for part in parts:
            rows: list[np.ndarray] = []
            while sum(map(len, rows)) < len(part):
                posterior = autoencoder.encode(to_network(next(loader), device))
                rows.append(torch.cat([posterior.mean, posterior.logvar], dim=1).float().cpu().numpy())
                bar.update(len(rows[-1]))
            yield np.concatenate(rows)


def _stack_images(items: Sequence[dict[str, Any]]) -> Tensor:
    return torch.stack([convert_to_tensor(item["image"]) for item in items])


def _wait_for(store: LatentStore) -> None:
    """Wait until the files of other processes are visible here, which may take a while on a network drive."""
    deadline = time.monotonic() + SECONDS_TO_SEE
    while unseen := store.missing():
        if time.monotonic() > deadline:
            raise ValueError(
                f"{len(unseen)} files in {store.folder}, written by other processes, are not visible after "
                f"{SECONDS_TO_SEE:.0f} seconds: set --latents_dir to a folder that all hosts share"
            )
        time.sleep(1.0)
