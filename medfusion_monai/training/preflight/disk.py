"""Whether the disks have room for what a run will write."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from medfusion_monai.runtime.files import in_words, nearest_existing
from medfusion_monai.weights.power_average import LENGTHS

COPIES = 3  # of a checkpoint: the newest, the previous, and the one being written
ADAM = 2  # values that Adam keeps per weight


def check_disk(
    ckpt_dir: str | Path,
    model_dir: str | Path,
    autoencoder: nn.Module,
    unet: nn.Module,
    discriminators: nn.Module | None = None,
    other: Mapping[str, int] | None = None,
) -> str:
    """Compare what both phases will write with the free space of each disk, and return both in words.

    A checkpoint holds each weight, Adam's two values for it and, in phase two, its average. Existing files are
    subtracted.

    Args:
        ckpt_dir: folder of the checkpoints.
        model_dir: folder of the weights.
        autoencoder: network of phase one.
        unet: network of phase two.
        discriminators: networks trained with the autoencoder.
        other: bytes to be written in other folders, e.g. pictures and latents.

    Raises:
        ValueError: naming the folders on a full disk, the space needed and the space free.
    """
    first, second = num_bytes(autoencoder), num_bytes(unet)
    trained = first + (num_bytes(discriminators) if discriminators is not None else 0)
    files = {
        Path(ckpt_dir) / "autoencoder_training.pt": COPIES * (1 + ADAM) * trained,
        Path(ckpt_dir) / "autoencoder_best.pt": 2 * first,
        Path(ckpt_dir) / "diffusion_training.pt": COPIES * (1 + ADAM + 1) * second,
        Path(model_dir) / "autoencoder.pt": first,
        Path(model_dir) / "model.pt": 2 * (first + second),
    }
    return check_room(files, other)


def check_room(files: Mapping[Path, int], other: Mapping[str, int] | None = None) -> str:
    """Compare what a run will write with the free space of each disk, and return both in words.

    Args:
        files: bytes of checkpoints and weights by their places; existing files are subtracted.
        other: bytes to be written in other folders, e.g. pictures and latents.

    Raises:
        ValueError: naming the folders on a full disk, the space needed and the space free.
    """
    needed: dict[Path, int] = defaultdict(int)
    for path, size in files.items():
        written = (path, path.with_name(f"{path.stem}.previous{path.suffix}"))
        needed[path.parent] += max(0, size - sum(file.stat().st_size for file in written if file.is_file()))
    for folder, size in (other or {}).items():
        needed[Path(folder)] += size
    disks: dict[int, dict[Path, int]] = defaultdict(dict)
    for place, count in needed.items():
        disks[_disk_of(place)][place] = count
    return "; ".join(_compare(disk) for disk in disks.values())


def num_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def snapshots_bytes(folder: str | Path, count: int, autoencoder: nn.Module, unet: nn.Module) -> int:
    """Return the bytes that ``AverageSnapshots`` still has to write, in its folder and in checkpoints.

    Args:
        folder: of the snapshots; existing files are subtracted.
        count: the most snapshots to keep; one more is being written.
        autoencoder: stored as it is.
        unet: stored for each length in half precision, and in checkpoints as it is.
    """
    averages = len(LENGTHS) * num_bytes(unet)
    written = sum(path.stat().st_size for path in Path(folder).glob("*.pt"))
    return COPIES * averages + max(0, (count + 1) * (averages // 2 + num_bytes(autoencoder)) - written)


def pictures_bytes(image_size: Sequence[int], rows: int, epochs: int, per_row: int = 8) -> int:
    """Return the most bytes that the pictures of validations take, as files and in TensorBoard."""
    return 2 * epochs * rows * per_row * image_size[0] * image_size[1] * 3


def latents_bytes(folder: str | Path, images: int, channels: int, size: Sequence[int], variants: int = 1) -> int:
    """Return the bytes that a store of 16-bit posteriors still has to write.

    Args:
        folder: of the store; existing files are subtracted.
        images: number of images.
        channels: of the latents.
        size: height and width of the latents.
        variants: entries per image, 1 without flips.
    """
    written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return max(0, images * variants * 2 * channels * size[0] * size[1] * 2 - written)


def _disk_of(folder: Path) -> int:
    return nearest_existing(folder).stat().st_dev


def _compare(disk: Mapping[Path, int]) -> str:
    size, free = sum(disk.values()), shutil.disk_usage(nearest_existing(next(iter(disk)))).free
    if size > free:
        parts = ", ".join(f"{in_words(part)} in {folder}" for folder, part in disk.items())
        raise ValueError(
            f"the run will write {in_words(size)} ({parts}), but only {in_words(free)} are free: make room, or choose "
            "another folder with --output_dir or --model_dir"
        )
    return f"the run will write {in_words(size)} at most, {in_words(free)} are free"
