"""Writing sampled images: files marked as synthetic, and a manifest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor
from torch.utils.data import Sampler
from tqdm import tqdm

import medfusion_monai
from medfusion_monai.baselines.gan_sampler import GanSampler
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.runtime import distributed
from medfusion_monai.runtime.distributed import from_first, gather
from medfusion_monai.runtime.dtype import precision_name
from medfusion_monai.runtime.files import file_sha256, renamed_when_whole
from medfusion_monai.runtime.values import is_whole
from medfusion_monai.sampling.image_formats import image_format
from medfusion_monai.sampling.manifest import RowList
from medfusion_monai.sampling.plan import MANIFEST
from medfusion_monai.sampling.refused_copies import Guard, Refusals

logger = logging.getLogger(__name__)

ITEM_COLUMNS = ("file", "label", "class_name", "seed")


def sample_settings(
    inferer: LatentDiffusionSampler | GanSampler,
    network: Any,
    image_size: Sequence[int],
    batch_size: int,
    output_format: str,
    guard_sha256: str = "none",
) -> dict[str, Any]:
    """Return the settings of every image of a run, besides its label, seed and weights.

    Args:
        inferer: samples the images.
        network: the model that is sampled.
        image_size: height and width.
        batch_size: images sampled at a time.
        output_format: of the files.
        guard_sha256: of the guard that refuses copies.
    """
    return {
        "copy_guard": guard_sha256,
        **inferer.settings(),
        **inferer.identity(network),
        "precision": precision_name(inferer.dtype),
        "batch_size": batch_size,
        "image_size": "x".join(str(side) for side in image_size),
        "output_format": output_format,
        "version": medfusion_monai.__version__,
    }


def note_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file of an image says of it, from its line in the manifest."""
    return {"synthetic": True, "generator": "medfusion_monai", **row}


class SampleWriter(Sampler[list[int]]):
    """Writes the images of an evaluator, and resumes a run that was stopped.

    As batch sampler of the evaluator's data loader it yields only batches with missing files, always of the same
    composition, so that a resumed run gives the same bytes. As handler it writes each batch, each file under a
    temporary name first, and then appends its lines to ``manifest.csv``; ``report`` sorts them.

    Several processes take the batches in turn. During the run each but the first has its own manifest,
    ``manifest.RANK.csv``; ``report`` merges them, or after a kill the next run, of any number of processes.

    Args:
        plan: of ``sampling_plan``.
        output_dir: folder of files and manifest.
        settings: of every image of the run; a manifest with other settings is refused.
        model_file: the weights; their SHA-256 is one of the settings.
        batch_size: images sampled at a time.
        output_format: a name in ``FORMATS``: ``png`` (8 bit), ``png16`` (16 bit, gray), ``nifti`` (float32), or
            a kind of DICOM, see ``dicom_format``.
        rank: number of this process; None reads torchrun's environment.
        world_size: number of processes; None likewise.
        guard: of an audit; images that it judges copies of training images are counted and listed in ``refused.csv``,
            not written, and a later run does not sample them again.

    Raises:
        ValueError: for a batch size that is not a whole number of at least 1, or an unknown format.
    """

    item_columns: tuple[str, ...] = ITEM_COLUMNS

    def __init__(
        self,
        plan: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        settings: Mapping[str, Any],
        model_file: str | Path,
        batch_size: int = 16,
        output_format: str = "png",
        rank: int | None = None,
        world_size: int | None = None,
        guard: Guard | None = None,
    ) -> None:
        if not is_whole(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, received {batch_size!r}")
        self.plan, self.output_dir, self.batch_size = list(plan), Path(output_dir), batch_size
        self.format, self.model_file = image_format(output_format), model_file
        self.rank = distributed.rank() if rank is None else rank
        self.world_size = distributed.world_size() if world_size is None else world_size
        self._settings = {name: str(value) for name, value in settings.items()}
        self.manifest = RowList(output_dir, MANIFEST, self.rank)
        self.refusals = Refusals(output_dir, guard, self.rank)
        self.bar: tqdm | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[int] | None = None

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings of every image, as text."""
        return {**self._settings, "weights_sha256": file_sha256(self.model_file)}

    @cached_property
    def written(self) -> dict[str, dict[str, str]]:
        """Lines by file name: in the first process those of all manifests, in the others their own.

        Raises:
            ValueError: if the folder contains another run.
        """
        paths = self.manifest.paths() if self.rank == 0 else []
        found = {path: self.manifest.read(path) for path in paths}
        for path, rows in found.items():
            self._refuse_other_run(path, rows)
        return {name: row for rows in found.values() for name, row in rows.items()}

    @property
    def columns(self) -> list[str]:
        """Names of the manifest's columns."""
        return [*self.item_columns, *self.settings]

    @cached_property
    def missing(self) -> list[list[int]]:
        """Batches that all processes have to write, as found by the first one before any was written.

        Raises:
            ValueError: if the folder contains another run.
        """
        return from_first(self._find_missing)

    def __iter__(self) -> Any:
        """Yield lists of indices into the plan."""
        return iter(self.missing[self.rank :: self.world_size])

    def __len__(self) -> int:
        """Return the number of batches that this process has to write."""
        return len(self.missing[self.rank :: self.world_size])

    def attach(self, engine: Engine) -> None:
        """Write after every batch of an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.settle)

    def __call__(self, engine: Any) -> None:
        """Start writing the images of a batch, then their lines of the manifest, once the previous batch is written.

        The next batch is sampled meanwhile.

        Raises:
            ValueError: as in ``settle``.
        """
        batch: dict[str, Any] = engine.state.batch
        sampled: Tensor = engine.state.output[Keys.PRED].float()
        images, copied = sampled.to("cpu", non_blocking=True), None
        if sampled.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        columns = zip(*(batch[name] for name in self.item_columns), strict=True)
        rows = [
            {**dict(zip(self.item_columns, map(_plain, values), strict=True)), **self.settings} for values in columns
        ]
        self.settle()
        self._pending = self._thread.submit(self._write_batch, images, copied, rows)

    def settle(self) -> None:
        """Wait for the batch that is being written.

        Raises:
            ValueError: if one of its images has values that are not finite, in which case none of them is written, or
                if the disk is full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            count = pending.result()
            if self.rank == 0:
                self._advance(count)

    def report(self) -> None:
        """Sort the lines of all processes into one manifest and log the content of the folder."""
        self.settle()
        if self.bar is not None:
            self.bar.close()
        for rows in gather(self.written):  # not from the files, which another host may see late
            self.written.update(rows)
        refused = self.refusals.finish() if self.refusals.guard is not None else 0
        if self.rank == 0:
            self.manifest.make_one(self.written, self.columns)
            logger.info("%d images and %s are in %s", len(self.plan) - refused, MANIFEST, self.output_dir)

    def _write_batch(self, images: Tensor, copied: torch.cuda.Event | None, rows: Sequence[Mapping[str, Any]]) -> int:
        """Write images (B, C, H, W) and their lines, and return B; runs in its own thread."""
        if copied is not None:
            copied.synchronize()
        refuse_non_finite(images, rows)
        kept = self.refusals.sift(images, rows)
        for index in kept:
            self._write(images[index], rows[index])
        self._note([rows[index] for index in kept])
        return len(rows)

    def start(self, engine: Engine) -> None:
        """Show a progress bar, in the first process."""
        if self.rank == 0:
            done = len(self.plan) - sum(map(len, self.missing))
            self.bar = tqdm(total=len(self.plan), initial=done, desc="sampling", unit=" images", dynamic_ncols=True)

    def _advance(self, count: int) -> None:
        """Advance the bar as if the other processes had written as many images."""
        if self.bar is not None:
            self.bar.update(min(count * self.world_size, len(self.plan) - self.bar.n))

    def _find_missing(self) -> list[list[int]]:
        if self.written and len(self.manifest.paths()) > 1:
            self.manifest.make_one(self.written, self.columns)
        starts = range(0, len(self.plan), self.batch_size)
        batches = [list(range(start, min(start + self.batch_size, len(self.plan)))) for start in starts]
        return [batch for batch in batches if not all(self._is_there(self.plan[index]) for index in batch)]

    def _is_there(self, item: Mapping[str, Any]) -> bool:
        if self.refusals.guard is not None and item["file"] in self.refusals.known:
            return True
        return item["file"] in self.written and self.format.is_whole(self.output_dir / item["file"])

    def _write(self, image: Tensor, row: Mapping[str, Any]) -> None:
        path = self.output_dir / row["file"]
        with renamed_when_whole(path) as partial:
            partial.write_bytes(self.format.encode(image.numpy(), note_of(row)))

    def _note(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.written.update({str(row["file"]): {name: str(value) for name, value in row.items()} for row in rows})
        self.manifest.append(rows, self.columns)

    def _refuse_other_run(self, path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
        planned = {item["file"]: item for item in self.plan}
        for name, row in rows.items():
            expected = dict(self.settings)
            if name in planned:
                columns = [column for column in self.item_columns if column not in ("file", "class_name")]
                expected |= {column: str(planned[name][column]) for column in columns}
            refuse_difference(path, name, row, expected)


def refuse_difference(path: Path, name: str, row: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raise a ValueError if an image of a manifest was made with other settings than those expected."""
    for column, value in expected.items():
        if row.get(column) != value:
            raise ValueError(
                f"{path} contains images of another run: {name} has {column} {row.get(column)}, this run has {value}. "
                "Choose another --output_dir, or delete that folder"
            )


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else int(value)  # labels and seeds are collated to tensors


def refuse_non_finite(images: Tensor, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise a ValueError if one of the images (B, C, H, W) of these rows has values that are not finite."""
    for image, row in zip(images, rows, strict=True):
        if not bool(image.isfinite().all()):
            raise ValueError(
                f"image {row['file']} (label {row['label']}, seed {row['seed']}) has values that are not finite: its "
                "batch is not written. Check that the weights are finite, or lower guidance_scale"
            )
