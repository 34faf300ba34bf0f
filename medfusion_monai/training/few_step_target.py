"""The target of the few-step phase: the end of the path through noisy latents, as seen from a little less noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medfusion_monai.diffusion.denoiser import Denoiser
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.training.prepare_batch import Batch, DiffusionPrepareBatch


class FewStepTarget:
    """Consistency distillation (Song et al. 2023, algorithm 2): a step of deterministic DDIM by the teacher.

    The step takes noisy latents from timestep t to t - gap. What the tuned network estimates there, without a
    gradient, is what it should estimate at t. Below timestep 0 there is no noise left, and the end of the step itself
    is the target: the boundary condition, whatever the network predicts.

    Args:
        teacher: the UNet as phase two left it; frozen.
        schedule: of the noise.
        guidance_scale: of the teacher; becomes part of the tuned network.
        dtype: of the networks' arithmetic.
    """

    def __init__(
        self,
        teacher: nn.Module,
        schedule: NoiseSchedule,
        guidance_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.schedule, self.guidance_scale, self.dtype = schedule, guidance_scale, dtype

    @torch.no_grad()
    def __call__(self, noisy: Tensor, timesteps: Tensor, labels: Tensor, gap: int, student: nn.Module) -> Tensor:
        """Return what the student should predict for noisy latents (B, C, h, w) at timesteps (B,) with labels (B,)."""
        schedule, lower = self.schedule, (timesteps - gap).clamp(min=0)
        teacher = guided_denoiser(self.teacher, labels, self.guidance_scale)
        clean, noise = self._estimate(teacher, noisy, timesteps)
        step = schedule.add_noise(clean, noise, lower)
        end, _ = self._estimate(guided_denoiser(student, labels), step, lower)
        end = torch.where((timesteps < gap)[:, None, None, None], clean, end)
        return schedule.target(end, schedule.noise_in(noisy, end, timesteps), timesteps)

    def _estimate(self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(noisy.device, self.dtype):
            prediction = denoiser(noisy, timesteps)
        return self.schedule.clean_and_noise(prediction, noisy, timesteps)


class FewStepPrepareBatch:
    """Prepares noisy latents, timesteps and labels as in phase two, with the targets of the few-step phase.

    Args:
        prepare: of phase two, without label dropout.
        target: computes the targets.
        student: the network whose estimates at less noise are the targets.
        gap: returns how many timesteps less that is.
    """

    def __init__(
        self, prepare: DiffusionPrepareBatch, target: FewStepTarget, student: nn.Module, gap: Callable[[], int]
    ) -> None:
        self.prepare, self.target, self.student, self.gap = prepare, target, student, gap

    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
        """Turn a batch into (noisy latents, targets, (), keywords of the UNet), see ``DiffusionPrepareBatch``."""
        noisy, _, _, keywords = self.prepare(batch, device, non_blocking)
        target = self.target(noisy, keywords["timesteps"], keywords["class_labels"], self.gap(), self.student)
        return noisy, target, (), keywords
