"""What is compared: each arm changes the recipe of phase two in one respect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

BASELINE = "baseline"


class Arm(NamedTuple):
    """A recipe of phase two.

    Args:
        name: in tables and files.
        words: what it changes.
        schedule: keywords of ``NoiseSchedule`` beside the defaults.
        loss: keywords of ``DiffusionLoss``.
        unet: keywords of ``UNet`` beside the bundle's.
        lr_factor: times the bundle's learning rate.
        against: the arm that it differs from in one respect alone.
    """

    name: str
    words: str
    schedule: Mapping[str, Any] = {}
    loss: Mapping[str, Any] = {}
    unet: Mapping[str, Any] = {}
    lr_factor: float = 1.0
    against: str = BASELINE


_V: Mapping[str, Any] = {"prediction_type": "v_prediction"}
_L2: Mapping[str, Any] = {"loss": "l2"}
_MIN_SNR: Mapping[str, Any] = {"loss": "l2", "weighting": "min_snr", "gamma": 5.0}

ARMS = (
    Arm(BASELINE, "noise prediction, L1, as published"),
    Arm("l2", "noise prediction, L2", loss=_L2),
    Arm("v", "v prediction, L1", schedule=_V),
    Arm("v_l2", "v prediction, L2", schedule=_V, loss=_L2, against="l2"),
    Arm("min_snr", "noise prediction, L2, min-SNR 5", loss=_MIN_SNR, against="l2"),
    Arm("v_min_snr", "v prediction, L2, min-SNR 5", schedule=_V, loss=_MIN_SNR, against="v_l2"),
    Arm("attention", "attention at the lowest resolution", unet={"attention": True}),
    Arm("zero_snr", "v prediction, L2, zero terminal SNR", {**_V, "zero_terminal_snr": True}, _L2, against="v_l2"),
    Arm("flow", "flow matching, L2", {"schedule": "flow", "prediction_type": "velocity"}, _L2, against="v_l2"),
    Arm("lr_x2", "learning rate doubled", lr_factor=2.0),
)
GUIDANCE_SCALES = (1.5, 2.0, 3.0)
"""Beside 1, at which all arms are compared."""


def choose_arms(names: list[str] | None) -> list[Arm]:
    """Return the arms of these names, the baseline always first; all if None.

    Raises:
        ValueError: for a name that is no arm.
    """
    known = {arm.name: arm for arm in ARMS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"--arms {', '.join(unknown)}: no arm of the study. There are {', '.join(known)}")
    return [arm for arm in ARMS if names is None or arm.name in {BASELINE, *names}]
