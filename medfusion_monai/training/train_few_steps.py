"""Phase three: tunes the UNet of a finished model so that it samples in 1, 2 or 4 steps instead of 20 or more.

The UNet learns that its estimates of the clean latents agree along each path of deterministic DDIM
(``FewStepTarget``); all else, from the data to the final weights, is phase two's.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from medfusion_monai.runtime.values import check_counts
from medfusion_monai.training.few_step_target import FewStepPrepareBatch, FewStepTarget
from medfusion_monai.training.preflight.disk import ADAM, COPIES, num_bytes
from medfusion_monai.training.train_diffusion import DiffusionTraining


class FewStepTraining(DiffusionTraining):
    """Tunes the UNet of the run's ``pretrained`` weights and writes ``model.pt`` with ``model.json``.

    The weights that it writes are the averaged ones of the latest validation: the loss compares the network with
    itself and does not say which weights are best.

    Args:
        segments: in how many parts the timesteps are divided; a part is the gap of ``FewStepTarget``.
        teacher_steps: steps of DDIM per part, each with a call of the teacher.
        arguments: as ``DiffusionTraining``, except ``label_dropout`` and ``average_snapshots``. ``network`` is filled
            with the pretrained weights, and the guidance scale of ``image_inferer`` is learned.

    Raises:
        WeightsError: if the weights are missing or do not fit.
        ValueError: for segments or steps that are not whole numbers, or together more than the timesteps.
    """

    phase = "tuning"
    title = "phase three, few steps"
    latest_from = 1

    def __init__(self, *, segments: int = 8, teacher_steps: int = 4, **arguments: Any) -> None:
        run, network, schedule = (arguments[name] for name in ("run", "network", "schedule"))
        gap = _gap(segments, teacher_steps, schedule.num_train_timesteps)
        run.pretrained.fill(network, schedule)  # in place of the run list, so that every caller gets trained weights
        scale = arguments["image_inferer"].guidance_scale
        self.target = FewStepTarget(copy.deepcopy(network.unet), schedule, gap, teacher_steps, scale, run.dtype)
        super().__init__(label_dropout=0.0, **arguments)
        del self._arguments["label_dropout"]
        self._arguments |= {"segments": segments, "teacher_steps": teacher_steps}

    def files(self) -> dict[Path, int]:
        """Return the bytes that the training writes, by file: checkpoints and weights."""
        run, unet = self.training_run, num_bytes(self.unet)
        return {
            run.checkpoint_file(self.phase): COPIES * (1 + ADAM + 1) * unet,
            run.model_file: 2 * num_bytes(self.averaged_model),
        }

    def _networks(self) -> list[nn.Module]:
        return [*super()._networks(), self.target.teacher]

    def _prepare_batch(self, network: nn.Module) -> FewStepPrepareBatch:
        return FewStepPrepareBatch(super()._prepare_batch(network), self.target, network)

    def _load_autoencoder(self) -> None:
        self.autoencoder.eval()  # filled with the UNet

    def _check_autoencoder(self) -> str:
        return "that of pretrained_model"

    def _settings_of_autoencoder(self) -> dict[str, Any]:
        return {}  # pretrained_model is among the settings

    def _settings(self) -> dict[str, Any]:
        own = {name: self._arguments[name] for name in ("segments", "teacher_steps")}
        return {**super()._settings(), **own, "guidance_scale": self.target.guidance_scale}


def _gap(segments: int, teacher_steps: int, timesteps: int) -> int:
    check_counts(tuning_segments=segments, tuning_teacher_steps=teacher_steps)
    if segments * teacher_steps > timesteps:
        raise ValueError(
            f"tuning_segments {segments} of tuning_teacher_steps {teacher_steps} are more than the {timesteps} "
            "timesteps: lower one of them"
        )
    return round(timesteps / segments)
