"""Generated and real features side by side: what each metric of the fidelity table is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.evaluation.metrics.neighbours import Neighbourhoods, neighbourhoods

_COSTLY = 1000  # samples above which 100 pairs of halves take more than ten seconds
_FEW_HALVES = 20
_LARGEST = 1e15  # squares of larger features overflow float32


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sets of features and the settings of their metrics.

    Attributes:
        real: features (N, D).
        fake: features (M, D).
        replicates: resampled sets per interval; 0 leaves the intervals out.
        seed: of the resampling and of random pairs.
        k: neighbours for precision and recall; the paper and Medfusion use 3.
        density_k: neighbours for density and coverage; the paper uses 5.
        images: the M generated images, (C, H, W) in [0, 1], read when indexed; None if only features are known.

    Raises:
        ValueError: if a set has fewer than two samples, the features differ in size, or one is not finite.
    """

    real: Tensor
    fake: Tensor
    replicates: int = 100
    seed: int = 0
    k: int = 3
    density_k: int = 5
    images: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse features from which no metric can be computed."""
        check_features(self.real, self.fake)

    @property
    def counts(self) -> str:
        """The numbers of samples, with which every note begins."""
        return f"{len(self.fake)} samples against {len(self.real)}"

    @cached_property
    def constant(self) -> list[str]:
        """The sets whose features are all equal, each as a clause for a note."""
        sets = (("real", self.real), ("generated", self.fake))
        return [f"all {name} features are equal" for name, features in sets if _is_constant(features)]

    @property
    def note(self) -> str:
        """What every metric of these sets has to mention."""
        return "; ".join([self.counts, *self.constant])

    @cached_property
    def shares(self) -> Neighbourhoods:
        """Precision, recall, density and coverage per sample, from one pass over the distances.

        Where a set is too small for one of ``k`` and ``density_k``, the other takes its place.
        """
        return self._neighbourhoods(self.real, self.fake)

    @cached_property
    def halves(self) -> dict[str, Tensor]:
        """The means of ``shares``, (R,) each, of random halves of both sets, drawn without replacement.

        Half sets vary as much around the whole ones as those vary around the distributions (Politis and Romano 1994).
        Unlike sets drawn with replacement, they contain no sample twice, which would shrink its neighbourhood to
        nothing. Of large sets only 20 are drawn: with 100, they take 25 times as long as the whole sets.
        """
        costly = max(len(self.real), len(self.fake)) > _COSTLY
        number = min(self.replicates, _FEW_HALVES) if costly else self.replicates
        generator = np.random.default_rng(self.seed)
        found = [
            self._neighbourhoods(*(_half(each, generator) for each in (self.real, self.fake))) for _ in range(number)
        ]
        return {
            name: torch.stack([getattr(each, name).double().mean() for each in found])
            for name in Neighbourhoods._fields
        }

    def _neighbourhoods(self, real: Tensor, fake: Tensor) -> Neighbourhoods:
        smallest = min(len(real), len(fake))
        usable = max(k for k in (self.k, self.density_k) if k < smallest)
        return neighbourhoods(real, fake, min(self.k, usable), min(self.density_k, usable))


def check_features(real: Tensor, fake: Tensor) -> None:
    """Raise a ValueError for features from which no metric can be computed.

    Raises:
        ValueError: if they are not (N, D) and (M, D) with at least two samples each, or a value is not finite.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), received {tuple(real.shape)} and {tuple(fake.shape)}")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"a set needs at least 2 samples: {len(real)} real, {len(fake)} generated")
    for name, features in (("real", real), ("generated", fake)):
        broken = sum(int((~(part.abs() <= _LARGEST)).any(dim=1).sum()) for part in features.split(1024))
        if broken:
            raise ValueError(
                f"features of {broken} of {len(features)} {name} samples are not finite or above {_LARGEST:g}: "
                "the images or the feature extractor's weights are broken"
            )


def _half(features: Tensor, generator: np.random.Generator) -> Tensor:
    chosen = generator.permutation(len(features))[: len(features) // 2]
    return features[torch.from_numpy(np.sort(chosen)).to(features.device)]


def _is_constant(features: Tensor) -> bool:
    return all(bool((part == features[0]).all()) for part in features.split(1024))
