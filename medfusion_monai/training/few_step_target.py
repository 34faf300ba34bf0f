"""The target of the few-step phase: where several steps of the teacher end, to be reached in one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from medfusion_monai.diffusion.denoiser import Denoiser
from medfusion_monai.diffusion.few_steps import few_step_timesteps
from medfusion_monai.diffusion.guidance import Guide, autoguided_denoiser, check_guide_scale, guided_denoiser
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import LEAST_SIGNAL, Spacing
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.training.prepare_batch import Batch, DiffusionPrepareBatch


class FewStepTarget(nn.Module):
    """Distillation onto the timesteps of a sampler with few steps (after Salimans and Ho 2022, algorithm 2).

    From noisy latents at one of these timesteps, the teacher takes several steps of DPM-Solver++ of second order to
    the next one, or to clean latents from the last. Where it arrives, the tuned network should arrive by one step of
    DDIM. End and start determine each other, so that the network does not average over several ends.

    Args:
        teacher: the UNet as phase two left it; frozen.
        schedule: of the noise.
        num_inference_steps: of the tuned network.
        teacher_steps: steps of the teacher for each of these, even in the log of the signal-to-noise ratio.
        guidance_scale: of the teacher; becomes part of the tuned network.
        spacing: of the tuned network's steps, see ``few_step_timesteps``.
        dtype: of the teacher's arithmetic.
        guide: in place of the teacher's prediction without a label; frozen.
    """

    paths: (
        Tensor  # (steps, teacher_steps + 1): the teacher's timesteps, those of the schedule's length for clean latents
    )
    step_at: Tensor  # (timesteps,): the step that starts there
    signal: Tensor  # (timesteps + 1,), as the next two
    sigma: Tensor
    log_ratio: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        schedule: NoiseSchedule,
        num_inference_steps: int = 4,
        teacher_steps: int = 4,
        guidance_scale: float = 1.0,
        spacing: Spacing = "logsnr",
        dtype: torch.dtype = torch.float32,
        guide: Guide | None = None,
    ) -> None:
        super().__init__()
        if guide is not None:
            check_guide_scale(guidance_scale)
        self.teacher = teacher.eval().requires_grad_(False)
        self.guide = None if guide is None else guide.eval().requires_grad_(False)
        self.schedule, self.guidance_scale, self.dtype = schedule, guidance_scale, dtype
        self.starts = few_step_timesteps(schedule, num_inference_steps, spacing)
        signal, sigma = [*schedule.exact_signal, 1.0], [*schedule.exact_sigma, 0.0]
        self.register_buffer("signal", torch.tensor(signal), persistent=False)
        self.register_buffer("sigma", torch.tensor(sigma), persistent=False)
        ratio = self.signal.clamp(min=LEAST_SIGNAL) / self.sigma.clamp(min=1e-8)
        self.register_buffer("log_ratio", ratio.log(), persistent=False)
        self.clean = schedule.num_train_timesteps
        paths = [self._path(start, end, teacher_steps) for start, end in pairwise([*self.starts, self.clean])]
        self.register_buffer("paths", torch.tensor(paths), persistent=False)
        step_at = torch.zeros(self.clean, dtype=torch.long)
        step_at[self.starts] = torch.arange(len(paths))
        self.register_buffer("step_at", step_at, persistent=False)

    @torch.no_grad()
    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Return what the tuned network should predict for noisy latents (B, C, h, w).

        Args:
            noisy: (B, C, h, w).
            timesteps: (B,), of ``starts``.
            labels: (B,).
        """
        path = self.paths[self.step_at[timesteps]]
        end = self._follow(path, noisy, labels)
        kept, share = self._ddim(timesteps, path[:, -1])
        clean = (end - kept * noisy) / share
        return self.schedule.target(clean, self.schedule.noise_in(noisy, clean, timesteps), timesteps)

    def _follow(self, path: Tensor, noisy: Tensor, labels: Tensor) -> Tensor:
        """Return where the teacher arrives along paths (B, steps + 1) (Lu et al. 2022, DPM-Solver++, algorithm 2)."""
        teacher = self._guided(labels)
        lengths = self.log_ratio[path].diff(dim=1).clamp(min=1e-6)
        before: Tensor | None = None
        for number, (now, following) in enumerate(pairwise(path.unbind(1))):
            clean = self._estimate(teacher, noisy, now)
            direction = clean
            if before is not None:  # extrapolated to the middle of the step, which has none on the way to clean latents
                factor = lengths[:, number] / (2.0 * lengths[:, number - 1])
                factor = torch.where(following == self.clean, 0.0, factor)
                direction = clean + _wide(factor) * (clean - before)
            kept, share = self._ddim(now, following)
            noisy, before = kept * noisy + share * direction, clean
        return noisy

    def _guided(self, labels: Tensor) -> Denoiser:
        if self.guide is None:
            return guided_denoiser(self.teacher, labels, self.guidance_scale)
        return autoguided_denoiser(self.teacher, self.guide.unet, labels, self.guidance_scale)

    def _ddim(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of noisy and of clean latents in a step of DDIM between timesteps (B,)."""
        kept = self.sigma[end] / self.sigma[start]
        return _wide(kept), _wide(self.signal[end] - kept * self.signal[start])

    def _estimate(self, denoiser: Denoiser, noisy: Tensor, timesteps: Tensor) -> Tensor:
        with autocast(noisy.device, self.dtype):
            prediction = denoiser(noisy, timesteps)
        return self.schedule.clean_and_noise(prediction.float(), noisy, timesteps)[0]

    def _path(self, start: int, end: int, steps: int) -> list[int]:
        levels = self.log_ratio[: self.clean]
        last = levels[0 if end == self.clean else end]
        wanted = levels[start] + (last - levels[start]) * torch.arange(1, steps) / steps
        between = (levels[None] - wanted[:, None]).abs().argmin(dim=1)
        return [start, *between.tolist(), end]


def _wide(values: Tensor) -> Tensor:
    """Return values (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


class FewStepPrepareBatch:
    """Prepares noisy latents, timesteps and labels as in phase two, with the targets of the few-step phase.

    Args:
        prepare: of phase two, without label dropout, for the starts of the target.
        target: computes the targets.
    """

    def __init__(self, prepare: DiffusionPrepareBatch, target: FewStepTarget) -> None:
        self.prepare, self.target = prepare, target

    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
        """Turn a batch into (noisy latents, targets, (), keywords of the UNet), see ``DiffusionPrepareBatch``."""
        noisy, _, _, keywords = self.prepare(batch, device, non_blocking)
        return noisy, self.target(noisy, keywords["timesteps"], keywords["class_labels"]), (), keywords
