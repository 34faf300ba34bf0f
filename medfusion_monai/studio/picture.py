"""An image that the studio made, with its line of the manifest."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Picture(NamedTuple):
    """An image and how it was made.

    Attributes:
        image: (C, H, W) in [0, 1], float32, on the CPU.
        row: line of the manifest, as ``run inference`` and ``run editing`` write it; ``file`` ends with ``.png`` and
            ``output_format`` is ``png`` until another format is asked for.
    """

    image: Tensor
    row: dict[str, Any]

    @property
    def is_edited(self) -> bool:
        """Whether it was made from a given image, and so may show a patient."""
        return "edit" in self.row
