"""The target of the few-step phase: the end of the path through noisy latents, as seen from a little less noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medfusion_monai.diffusion.denoiser import Denoiser
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.training.prepare_batch import Batch, DiffusionPrepareBatch


class FewStepTarget:
    """Consistency distillation (Song et al. 2023, algorithm 2): steps of deterministic DDIM by the teacher.

    The steps take noisy latents from timestep t to t - gap. What the tuned network estimates there, without a
    gradient, is what it should estimate at t. Below timestep 0 there is no noise left, and the end of the steps itself
    is the target: the boundary condition, whatever the network predicts. With a few steps per gap the gaps can be
    long, so that it does not take many of them, each with an error of its own, from pure noise to the end.

    Args:
        teacher: the UNet as phase two left it; frozen.
        schedule: of the noise.
        gap: number of timesteps.
        teacher_steps: steps per gap.
        guidance_scale: of the teacher; becomes part of the tuned network.
        dtype: of the networks' arithmetic.
    """

    def __init__(
        self,
        teacher: nn.Module,
        schedule: NoiseSchedule,
        gap: int = 125,
        teacher_steps: int = 4,
        guidance_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.schedule, self.gap, self.teacher_steps = schedule, gap, teacher_steps
        self.guidance_scale, self.dtype = guidance_scale, dtype

    @torch.no_grad()
    def __call__(self, noisy: Tensor, timesteps: Tensor, labels: Tensor, student: nn.Module) -> Tensor:
        """Return what the student should predict for noisy latents (B, C, h, w) at timesteps (B,) with labels (B,)."""
        lower = timesteps - self.gap
        at_lower = self._steps(noisy, timesteps, labels)
        end, _ = self._estimate(guided_denoiser(student, labels), at_lower, lower.clamp(min=0))
        end = _chosen(lower < 0, at_lower, end)
        return self.schedule.target(end, self.schedule.noise_in(noisy, end, timesteps), timesteps)

    def _steps(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Return the latents after all steps, clean where they end below timestep 0."""
        teacher = guided_denoiser(self.teacher, labels, self.guidance_scale)
        now = timesteps
        for number in range(1, self.teacher_steps + 1):
            following = timesteps - self.gap * number // self.teacher_steps
            clean, noise = self._estimate(teacher, noisy, now.clamp(min=0))
            step = self.schedule.add_noise(clean, noise, following.clamp(min=0))
            noisy = _chosen(now < 0, noisy, _chosen(following < 0, clean, step))
            now = following
        return noisy

    def _estimate(self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(noisy.device, self.dtype):
            prediction = denoiser(noisy, timesteps)
        return self.schedule.clean_and_noise(prediction, noisy, timesteps)


def _chosen(where: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the first latents (B, C, h, w) where (B,) is true, and the second elsewhere."""
    return torch.where(where[:, None, None, None], first, second)


class FewStepPrepareBatch:
    """Prepares noisy latents, timesteps and labels as in phase two, with the targets of the few-step phase.

    Args:
        prepare: of phase two, without label dropout.
        target: computes the targets.
        student: the network whose estimates at less noise are the targets.
    """

    def __init__(self, prepare: DiffusionPrepareBatch, target: FewStepTarget, student: nn.Module) -> None:
        self.prepare, self.target, self.student = prepare, target, student

    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
        """Turn a batch into (noisy latents, targets, (), keywords of the UNet), see ``DiffusionPrepareBatch``."""
        noisy, _, _, keywords = self.prepare(batch, device, non_blocking)
        target = self.target(noisy, keywords["timesteps"], keywords["class_labels"], self.student)
        return noisy, target, (), keywords
