"""Images that are not written because they come too near to a training image: counted, and never sampled twice."""

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
    """What judges images, as ``CopyGuard`` of an audit does."""

    def check(self, images: Tensor) -> Any:
        """Give ``copies`` (B,) of booleans and ``scores`` (B,) of images (B, C, H, W) in [0, 1]."""
        ...


class Refusals:
    """Sifts images before they are written, and keeps a list of those that were refused: ``refused.csv``.

    Several processes keep a list each, ``refused.RANK.csv``, while they run, as ``SampleWriter`` does of its manifest.

    Args:
        output_dir: folder of the images.
        guard: judges images; None refuses none.
        rank: number of this process.
    """

    def __init__(self, output_dir: str | Path, guard: Guard | None = None, rank: int = 0) -> None:
        self.guard, self.rank, self.listed = guard, rank, RowList(output_dir, REFUSED, rank)

    @cached_property
    def known(self) -> dict[str, dict[str, str]]:
        """Rows by file: for the first process of all lists, for the others of their own."""
        paths = self.listed.paths() if self.rank == 0 else []
        return {name: row for path in paths for name, row in self.listed.read(path).items()}

    def sift(self, images: Tensor, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """List the images that are refused, and give the places of the others.

        Args:
            images: (B, C, H, W) in [0, 1].
            rows: of the manifest, one an image.
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
        """Bring the lists of all processes together, and give the number of refused images."""
        for rows in gather(self.known):  # not by the files, which another host may see late
            self.known.update(rows)
        if self.rank == 0 and self.known:
            self.listed.make_one(self.known, list(next(iter(self.known.values()))))
            logger.warning(
                "%d images were refused as copies of training images and not written; %s lists them. Give other seeds "
                "for others in their place, and look at why the model copies",
                len(self.known),
                REFUSED,
            )
        return len(self.known)
