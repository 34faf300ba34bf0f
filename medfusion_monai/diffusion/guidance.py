"""Classifier-free guidance (Ho and Salimans 2022): dropped labels in training, two predictions in sampling.

Also guidance by a worse version of the network (Karras et al. 2024), and either on an interval of noise levels
(Kynkäänniemi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medfusion_monai.diffusion.denoiser import Denoiser, DenoiserByTimestep
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.runtime.values import is_number


def drop_labels(
    labels: Tensor, sources: Sequence[np.random.Generator], probability: float, null_label: int = NO_LABEL
) -> Tensor:
    """Replace each sample's label by the null label with a given probability (Ho and Salimans 2022, algorithm 1).

    The UNet thus also learns the prediction without a label, which ``guided_denoiser`` needs.

    Args:
        labels: (B,) integers, on the CPU.
        sources: one generator per sample.
        probability: of dropping a label.
        null_label: stands for 'no label'.
    """
    keep = torch.tensor([source.random() for source in sources]) >= probability
    return torch.where(keep, labels, null_label)


def guided_denoiser(
    unet: Callable[..., Tensor],
    class_labels: Tensor,
    guidance_scale: float = 1.0,
    negative_label: int | Sequence[int] | None = None,
    null_label: int = NO_LABEL,
) -> Denoiser:
    """Bind labels to a UNet, with classifier-free guidance in one batched call (Ho and Salimans 2022, equation 6).

    The prediction is ``negative + guidance_scale * (positive - negative)``, computed in the latents' dtype,
    whatever dtype the UNet returns.

    Args:
        unet: called as ``unet(x, timesteps=..., class_labels=...)``.
        class_labels: (B,) integers.
        guidance_scale: 1 for the plain conditional prediction (the batch is not doubled).
        negative_label: label to steer away from, one for all or one per label, e.g. ``[1, 0]`` for the other of two
            classes; None for the unconditional prediction.
        null_label: label that stands for 'no label' in the UNet's training.
    """
    if isinstance(negative_label, Sequence):
        negative = torch.tensor(negative_label, device=class_labels.device)[class_labels].to(class_labels.dtype)
    else:
        negative = torch.full_like(class_labels, null_label if negative_label is None else negative_label)

    def plain(latents: Tensor, timesteps: Tensor) -> Tensor:
        return unet(latents, timesteps=timesteps, class_labels=class_labels).to(latents.dtype)

    def guided(latents: Tensor, timesteps: Tensor) -> Tensor:
        both = unet(
            torch.cat([latents, latents]),
            timesteps=torch.cat([timesteps, timesteps]),
            class_labels=torch.cat([class_labels, negative]),
        )
        positive_prediction, negative_prediction = both.to(latents.dtype).chunk(2)
        return negative_prediction + guidance_scale * (positive_prediction - negative_prediction)

    return plain if guidance_scale == 1.0 else guided


class Guide(nn.Module):
    """A UNet that guides another one, which is better trained or larger.

    Args:
        unet: called as the UNet that it guides, on the same latents.
        sha256: of its weights file, for manifests.
    """

    def __init__(self, unet: nn.Module, sha256: str) -> None:
        super().__init__()
        self.unet, self.sha256 = unet, sha256

    @property
    def main(self) -> nn.Module:
        """The network that takes most of the time, as that of ``Medfusion``."""
        return self.unet


def check_guide_scale(guidance_scale: Any) -> None:
    """Raise a ValueError for a scale at which a guide has no effect, or pulls samples towards what it predicts."""
    if not is_number(guidance_scale) or guidance_scale <= 1.0:
        raise ValueError(f"guidance_scale must be a number above 1 with a guide, received {guidance_scale!r}")


def autoguided_denoiser(
    unet: Callable[..., Tensor], worse: Callable[..., Tensor], class_labels: Tensor, guidance_scale: float
) -> Denoiser:
    """Guide a UNet by a worse version of itself with the same labels (Karras et al. 2024).

    The prediction is ``worse + guidance_scale * (better - worse)``: away from the errors that the worse one makes more
    of, not towards the label, so that samples stay diverse. Computed in the latents' dtype.

    Args:
        unet: called as ``unet(x, timesteps=..., class_labels=...)``.
        worse: called likewise.
        class_labels: (B,) integers.
        guidance_scale: 1 for the UNet alone.
    """
    better = guided_denoiser(unet, class_labels)
    weaker = guided_denoiser(worse, class_labels)

    def guided(latents: Tensor, timesteps: Tensor) -> Tensor:
        start = weaker(latents, timesteps)
        return start + guidance_scale * (better(latents, timesteps) - start)

    return guided


def checked_interval(interval: Any) -> list[float] | None:
    """Return an interval of noise levels as two floats, or None for all noise levels.

    Raises:
        ValueError: for anything but two finite numbers, the first not negative and smaller than the second.
    """
    if interval is None:
        return None
    numbers = list(interval) if isinstance(interval, list | tuple) else []
    if len(numbers) != 2 or not all(map(is_number, numbers)) or not 0 <= numbers[0] < numbers[1]:
        raise ValueError(
            "guidance_interval must be two noise levels (sigma / signal), 0 <= low < high, e.g. [0.3, 3], or null for "
            f"all noise levels, received {interval!r}"
        )
    return [float(number) for number in numbers]


def within_interval(
    guided: Denoiser, plain: Denoiser, schedule: NoiseSchedule, interval: Sequence[float] | None
) -> Denoiser:
    """Guide only at noise levels above ``low`` and up to ``high`` (Kynkäänniemi et al. 2024).

    They found guidance harmful at high noise levels and largely unnecessary at low ones. Outside the interval only the
    plain prediction is computed.

    Args:
        guided: used in the interval.
        plain: used outside.
        schedule: of the timesteps.
        interval: ``low`` and ``high`` as sigma / signal, see ``NoiseSchedule.noise_to_signal``; None for ``guided``
            everywhere.
    """
    if interval is None:
        return guided
    low, high = interval

    def chosen(timestep: int) -> Denoiser:
        return guided if low < schedule.noise_to_signal(timestep) <= high else plain

    return DenoiserByTimestep(chosen)
