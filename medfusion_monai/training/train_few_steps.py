"""Phase three: tunes the UNet of a finished model so that it samples in 1, 2 or 4 steps instead of 20 or more.

The UNet learns to reach in one step of DDIM what it reached in several (``FewStepTarget``); all else, from the data to
the final weights, is phase two's.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.runtime.memory_format import compile_network
from medfusion_monai.runtime.values import check_counts
from medfusion_monai.training.few_step_target import FewStepPrepareBatch, FewStepTarget
from medfusion_monai.training.preflight.disk import ADAM, COPIES, num_bytes
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch
from medfusion_monai.training.train_diffusion import DiffusionTraining


class FewStepTraining(DiffusionTraining):
    """Tunes the UNet of the run's ``pretrained`` weights and writes ``model.pt`` with ``model.json``.

    The weights sample in the number of steps that ``image_inferer`` takes, and in no other.

    Args:
        teacher_steps: steps of the weights to start from, for each step of the tuned ones.
        arguments: as ``DiffusionTraining``, except ``label_dropout`` and ``average_snapshots``. ``network`` is filled
            with the pretrained weights. The guidance scale of ``image_inferer`` is learned, with the guide that the
            weights name if they do.

    Raises:
        WeightsError: if the weights are missing or do not fit.
        ValueError: for steps that are not a whole number above 0, or a sampler that is not for tuned weights.
    """

    phase = "tuning"
    title = "phase three, few steps"

    def __init__(self, *, teacher_steps: int = 4, **arguments: Any) -> None:
        run, network, schedule = (arguments[name] for name in ("run", "network", "schedule"))
        check_counts(tuning_teacher_steps=teacher_steps)
        inferer = arguments["image_inferer"]
        if not SAMPLERS[inferer.sampler].tuned:
            raise ValueError(f"sampler {inferer.sampler}: train_few_steps tunes for distilled; leave sampler out")
        run.pretrained.fill(network, schedule)  # in place of the run list, so that every caller gets trained weights
        self.target = FewStepTarget(
            copy.deepcopy(network.unet),
            schedule,
            inferer.num_inference_steps,
            teacher_steps,
            inferer.guidance_scale,
            inferer.spacing,
            run.dtype,
            None if inferer.guidance_scale == 1.0 else run.pretrained.load_guide(network.autoencoder),
        )
        super().__init__(label_dropout=0.0, **arguments)
        del self._arguments["label_dropout"]
        self._arguments["teacher_steps"] = teacher_steps

    def open(self) -> None:
        """Do as phase two, and compile the teacher where the run compiles networks."""
        if not self._is_open:
            super().open()
            run = self.training_run
            self.target.teacher = compile_network(self.target.teacher, run.compile, run.device)
            if self.target.guide is not None:
                self.target.guide.unet = compile_network(self.target.guide.unet, run.compile, run.device)

    def files(self) -> dict[Path, int]:
        """Return the bytes that the training writes, by file: checkpoints and weights."""
        run, unet = self.training_run, num_bytes(self.unet)
        return {
            run.checkpoint_file(self.phase): COPIES * (1 + ADAM + 1) * unet,
            run.model_file: 2 * num_bytes(self.averaged_model),
        }

    def _networks(self) -> list[nn.Module]:
        return [*super()._networks(), self.target]

    def _prepare_batch(self) -> FewStepPrepareBatch:
        starts = DiffusionPrepareBatch(self.autoencoder, self.schedule, 0.0, timesteps=self.target.starts)
        return FewStepPrepareBatch(starts, self.target)

    def _load_autoencoder(self) -> None:
        self.autoencoder.eval()  # filled with the UNet

    def _check_autoencoder(self) -> str:
        return "that of pretrained_model"

    def _settings_of_autoencoder(self) -> dict[str, Any]:
        return {}  # pretrained_model is among the settings

    def _settings(self) -> dict[str, Any]:
        own = {name: getattr(self.image_inferer, name) for name in ("num_inference_steps", "spacing", "guidance_scale")}
        own["guide"] = None if self.target.guide is None else self.target.guide.sha256
        return {**super()._settings(), **own, "teacher_steps": self._arguments["teacher_steps"]}
