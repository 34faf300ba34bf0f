"""What is compared, how a network is trained, and the rule by which an arm helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

MARGIN = 0.01
JUDGE_LEAST = 0.6
TUNING = 0.2
HIDDEN, DROPOUT = 64, 0.5
"""Of a head: width of its hidden layer, and share of the inputs of both layers that is dropped in training."""
FEWEST = 10
"""Images of each class that every set needs: with fewer, chance decides."""

RULE = (
    f"An arm helps if the 95% interval of its paired difference in test AUC to real images only, at the same share of "
    f"the training patients, lies above 0 and the mean difference is at least +{MARGIN:g}; it harms if the interval "
    f"lies below 0 and the mean is at most -{MARGIN:g}; otherwise no difference is shown. An arm that was refused in "
    f"any split has no verdict. A judge, the classifier of the same real images, filters samples only if its AUC on "
    f"the tuning patients is at least {JUDGE_LEAST:g} with a 95% interval above 0.5."
)
REAL, SYNTHETIC, MIXED, PRETRAINED = "real", "synthetic", "mixed", "pretrained"
HEAD, WHOLE = "head", "whole"
"""What is trained: a head on the features of a fixed network, or the whole network."""


class Arm(NamedTuple):
    """A training set, or two in turn.

    Attributes:
        kind: ``real`` images only; ``synthetic`` ones only; ``mixed``, both at once; ``pretrained``, first synthetic
            ones, then real ones.
        ratio: samples of each class for one real image of the class.
        filtered: whether samples are left out that the judge calls the other class.
        network: ``head`` or ``whole``.
    """

    kind: str
    ratio: int = 0
    filtered: bool = False
    network: str = HEAD

    @property
    def name(self) -> str:
        """In names of files."""
        parts = [self.network, self.kind, f"{100 * self.ratio}" if self.ratio else "", "filtered" * self.filtered]
        return "_".join(part for part in parts if part)

    @property
    def words(self) -> str:
        """In tables."""
        amount = f"{100 * self.ratio}%"
        words = {
            REAL: "real only",
            SYNTHETIC: f"synthetic only, {amount}",
            MIXED: f"real and {amount} synthetic",
            PRETRAINED: f"pre-trained on {amount} synthetic, then real",
        }[self.kind]
        return words + ", filtered" * self.filtered


class Recipe(NamedTuple):
    """A training with early stopping.

    Attributes:
        steps: at most.
        every: steps between measurements on the tuning patients; the best of them is kept.
        patience: measurements without a better one after which a training ends.
        batch_size: images of a step, half of each class.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    steps: int
    every: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float


_WITH_SAMPLES = [*((SYNTHETIC, ratio) for ratio in (2, 5, 10)), (MIXED, 1), (MIXED, 5), (PRETRAINED, 5)]
ARMS = (Arm(REAL), *(Arm(*each, filtered) for each in _WITH_SAMPLES for filtered in (False, True)))
WHOLE_ARMS = tuple(Arm(kind, ratio, network=WHOLE) for kind, ratio in ((REAL, 0), (MIXED, 1), (PRETRAINED, 5)))
"""Of the largest share of the patients alone."""


class Protocol(NamedTuple):
    """All that was chosen before the first result; tests choose less of it.

    Attributes:
        seeds: one split of the training patients each.
        fractions: shares of the real training patients of a split.
        arms: of heads.
        head: how a head is trained.
        whole: how the whole network is trained.
        replicates: resampled sets of test patients.
    """

    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    fractions: Sequence[float] = (0.25, 0.5, 1.0)
    arms: Sequence[Arm] = ARMS
    head: Recipe = Recipe(1500, 25, 8, 128, 3e-4, 1e-2)
    whole: Recipe = Recipe(300, 50, 3, 32, 3e-4, 1e-2)
    replicates: int = 1000

    def describe(self) -> dict[str, Any]:
        """Return the protocol for the file that a study is recognised by."""
        return {
            "rule": RULE,
            **self._asdict(),
            "arms": [arm.name for arm in self.arms],
            "head": self.head._asdict(),
            "whole": self.whole._asdict(),
            "tuning": TUNING,
            "hidden": HIDDEN,
            "dropout": DROPOUT,
        }

    def parts(self) -> list[tuple[int, float]]:
        """Return seed and share of the patients of each training set of real images."""
        return [(seed, fraction) for seed in self.seeds for fraction in self.fractions]
