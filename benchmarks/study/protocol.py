"""How a study goes, by the overlay of the bundle that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from study.arms import BASELINE, GUIDANCE_SCALES, OF_DEMO, REFERENCE, Arm
from study.evaluation import CHECK, FAST, SHIPPED, SMALL
from study.rule import RULE
from study.summary import RULE as RULE_OF_DEMO

CALLS = {FAST: 20, CHECK: 50, SHIPPED: 30, SMALL: 30}
"""Of the UNet, for each image, by sampler."""


class Protocol(NamedTuple):
    """How a study goes.

    Args:
        reference: name of the arm that the others are compared with.
        arms: names of the arms by default.
        seeds: by default.
        seconds: of a training, by default.
        lengths: shares of the steps after which a training is measured.
        sampler: by which arms are judged.
        rule: that decides.
        with_checks: other samplers, raw weights and guidance as well.
    """

    reference: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    lengths: tuple[float, ...]
    sampler: str
    rule: Any
    with_checks: bool

    def unet_calls(self, arms: Sequence[Arm], seeds: Sequence[int]) -> list[int]:
        """Return the calls of the UNet for each image, of every evaluation of a study."""
        calls = [CALLS[self.sampler] for _ in arms for _ in seeds for _ in self.lengths]
        if self.with_checks:
            of_seed = [CALLS[FAST], *(CALLS[SHIPPED] for _ in arms), *(2 * CALLS[FAST] for _ in 2 * GUIDANCE_SCALES)]
            calls += of_seed * len(seeds) + [CALLS[CHECK] for _ in arms]
        return calls


DECIDING = (REFERENCE, *RULE["deciding"])
PROTOCOLS = {
    "demo.yaml": Protocol(BASELINE, OF_DEMO, (0, 1), 120.0, (1.0,), FAST, RULE_OF_DEMO, True),
    "small.yaml": Protocol(REFERENCE, DECIDING, (0, 1, 2, 3), 600.0, tuple(RULE["lengths"]), SMALL, RULE, False),
}
