"""Images that are not written because they are too close to a training image: counted, and not sampled again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from medfusion_monai.runtime.distributed import gather
from medfusion_monai.sampling.manifest import RowList

logger = logging.getLogger(__name__)

REFUSED = "refused.csv"
SCORE = "copy_score"


class Guard(Protocol):
    """Interface of a judge of images, such as ``CopyGuard`` of an audit."""

    def check(self, images: Tensor) -> Any:
        """Return ``copies`` (B,), booleans, and ``scores`` (B,) for images (B, C, H, W) in [0, 1]."""
        ...


class Refusals:
    """Filters images before they are written, and lists the refused ones in ``refused.csv``.

    During a run of several processes each keeps its own list, ``refused.RANK.csv``, like ``SampleWriter`` its manifest.

    Args:
        output_dir: folder of the images.
        guard: judges images; None refuses none.
        rank: number of this process.
    """

    def __init__(self, output_dir: str | Path, guard: Guard | None = None, rank: int = 0) -> None:
        self.guard, self.rank, self.listed = guard, rank, RowList(output_dir, REFUSED, rank)

    @cached_property
    def known(self) -> dict[str, dict[str, str]]:
        """Rows by file: in the first process those of all lists, in the others their own."""
        paths = self.listed.paths() if self.rank == 0 else []
        return {name: row for path in paths for name, row in self.listed.read(path).items()}

    def sift(self, images: Tensor, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """List the refused images, and return the indices of the others.

        Args:
            images: (B, C, H, W) in [0, 1].
            rows: of the manifest, one per image.
        """
        if self.guard is None:
            return list(range(len(rows)))
        verdict = self.guard.check(images)
        copies, scores = verdict.copies.tolist(), verdict.scores.tolist()
        refused = [
            {**row, SCORE: f"{score:.4f}"} for row, score, copy in zip(rows, scores, copies, strict=True) if copy
        ]
        if refused:
            self.known.update({str(row["file"]): {name: str(value) for name, value in row.items()} for row in refused})
            self.listed.append(refused, list(refused[0]))
        return [index for index, copy in enumerate(copies) if not copy]

    def finish(self) -> int:
        """Merge the lists of all processes, and return the number of refused images."""
        for rows in gather(self.known):  # not from the files, which another host may see late
            self.known.update(rows)
        if self.rank == 0 and self.known:
            self.listed.make_one(self.known, list(next(iter(self.known.values()))))
            logger.warning(
                "%d images were refused as copies of training images and not written; %s lists them. To "
                "replace them, sample with other seeds, and find out why the model copies",
                len(self.known),
                REFUSED,
            )
        return len(self.known)
