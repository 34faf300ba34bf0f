"""What is compared: each arm changes the recipe of phase two in one respect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

BASELINE = "baseline"
"""The published recipe, which the arms of ``demo.yaml`` are compared with."""
REFERENCE = "v_l2"
"""The recipe of ``small.yaml``, which the arms of real images are compared with."""


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
        dropout: probability of the UNet's dropout, see ``Dropout``.
        augmentation: variants of the training images: ``bundle`` (its ``latent_flips``), ``none``, or ``shifts``.
        contrastive: weight of the distance to another class's target, see ``ContrastiveLoss``.
        alignment: weight of the alignment with features of images, see ``AlignmentHead``.
        autoencoder: ``given``, or ``equivariant``: another file, with latents of its own.
    """

    name: str
    words: str
    schedule: Mapping[str, Any] = {}
    loss: Mapping[str, Any] = {}
    unet: Mapping[str, Any] = {}
    lr_factor: float = 1.0
    against: str = BASELINE
    dropout: float = 0.0
    augmentation: Literal["bundle", "none", "shifts"] = "bundle"
    contrastive: float = 0.0
    alignment: float = 0.0
    autoencoder: Literal["given", "equivariant"] = "given"

    @property
    def recipe(self) -> dict[str, Any]:
        """All that changes what is trained, as plain data: what a study may not change half-way."""
        fields = {**self._asdict(), **{name: dict(getattr(self, name)) for name in ("schedule", "loss", "unet")}}
        return {name: value for name, value in fields.items() if name not in ("name", "words", "against")}


_V: Mapping[str, Any] = {"prediction_type": "v_prediction"}
_L2: Mapping[str, Any] = {"loss": "l2"}
_MIN_SNR: Mapping[str, Any] = {"loss": "l2", "weighting": "min_snr", "gamma": 5.0}
_FLOW: Mapping[str, Any] = {"schedule": "flow", "prediction_type": "velocity"}

ARMS = (
    Arm(BASELINE, "noise prediction, L1, as published"),
    Arm("l2", "noise prediction, L2", loss=_L2),
    Arm("v", "v prediction, L1", schedule=_V),
    Arm("v_l2", "v prediction, L2", schedule=_V, loss=_L2, against="l2"),
    Arm("min_snr", "noise prediction, L2, min-SNR 5", loss=_MIN_SNR, against="l2"),
    Arm("v_min_snr", "v prediction, L2, min-SNR 5", schedule=_V, loss=_MIN_SNR, against="v_l2"),
    Arm("attention", "attention at the lowest resolution", unet={"attention": True}),
    Arm("zero_snr", "v prediction, L2, zero terminal SNR", {**_V, "zero_terminal_snr": True}, _L2, against="v_l2"),
    Arm("flow", "flow matching, L2", _FLOW, _L2, against="v_l2"),
    Arm("lr_x2", "learning rate doubled", lr_factor=2.0),
    Arm("dropout", "v prediction, L2, dropout 0.1", _V, _L2, against="v_l2", dropout=0.1),
    Arm("shifts", "v prediction, L2, images also shifted by 3 pixels", _V, _L2, against="v_l2", augmentation="shifts"),
    Arm("no_flips", "v prediction, L2, without the bundle's flips", _V, _L2, against="v_l2", augmentation="none"),
    Arm("contrastive", "contrastive flow matching 0.05, L2", _FLOW, _L2, against="flow", contrastive=0.05),
    Arm("aligned", "v prediction, L2, aligned with features", _V, _L2, against="v_l2", alignment=0.5),
    Arm("equivariant", "v prediction, L2, equivariant latents", _V, _L2, against="v_l2", autoencoder="equivariant"),
)
OF_DEMO = tuple(arm.name for arm in ARMS[:10])
"""Arms by default with ``demo.yaml``."""
GUIDANCE_SCALES = (1.5, 2.0, 3.0)
"""Beside 1, at which all arms are compared."""


def choose_arms(names: Sequence[str] | None, first: str = BASELINE) -> list[Arm]:
    """Return the arms of these names, with ``first`` before the others even if it is not named; all if None.

    Raises:
        ValueError: for a name that is no arm.
    """
    known = {arm.name: arm for arm in ARMS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"--arms {', '.join(unknown)}: no arm of the study. There are {', '.join(known)}")
    return [known[first], *(arm for arm in ARMS if arm.name != first and (names is None or arm.name in names))]


def why_not(arm: Arm, flips: Sequence[str], has_equivariant: bool) -> str | None:
    """Return why an arm cannot be run with a bundle's ``latent_flips``, or None if it can."""
    if arm.autoencoder == "equivariant" and not has_equivariant:
        return "it needs an autoencoder of its own: --equivariant-autoencoder FILE"
    if arm.augmentation == "none" and not flips:
        return "the bundle has no latent_flips: it would be the reference again"
    if arm.augmentation == "shifts" and flips:
        return f"the bundle has latent_flips ({', '.join(flips)}): shifts are for bundles without"
    return None
