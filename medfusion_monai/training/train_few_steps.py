"""Phase three: tunes the UNet of a finished model so that it samples in 1, 2 or 4 steps instead of 20 or more.

The UNet learns that its estimates of the clean latents agree along each path of deterministic DDIM
(``FewStepTarget``); all else, from the data to the final weights, is phase two's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from medfusion_monai.runtime.values import is_whole
from medfusion_monai.training.few_step_target import FewStepPrepareBatch, FewStepTarget
from medfusion_monai.training.preflight.disk import ADAM, COPIES, num_bytes
from medfusion_monai.training.train_diffusion import DiffusionTraining


class FewStepTraining(DiffusionTraining):
    """Tunes the UNet of the run's ``pretrained`` weights and writes ``model.pt`` with ``model.json``.

    The weights that it writes are the averaged ones of the latest validation: the loss compares the network with
    itself and does not say which weights are best.

    Args:
        segments: in how many parts the timesteps are divided, at the beginning and at the end of the training; their
            number doubles in between, each for an equally long time. With few and long ones the clean latents are
            soon known at every noise level, with many and short ones the steps of the teacher are exact.
        arguments: as ``DiffusionTraining``, except ``label_dropout`` and ``average_snapshots``. ``network`` is filled
            with the pretrained weights, and the guidance scale of ``image_inferer`` is learned.

    Raises:
        WeightsError: if the weights are missing or do not fit.
        ValueError: for segments that are not two rising powers of two, at most as many as there are timesteps.
    """

    phase = "tuning"
    title = "phase three, few steps"
    latest_from = 1

    def __init__(self, *, segments: Sequence[int] = (8, 64), **arguments: Any) -> None:
        run, network, schedule = (arguments[name] for name in ("run", "network", "schedule"))
        self.segments = _checked_segments(segments, schedule.num_train_timesteps)
        run.pretrained.fill(network, schedule)  # in place of the run list, so that every caller gets trained weights
        scale = arguments["image_inferer"].guidance_scale
        self.target = FewStepTarget(copy.deepcopy(network.unet), schedule, scale, run.dtype)
        super().__init__(label_dropout=0.0, **arguments)
        del self._arguments["label_dropout"]
        self._arguments["segments"] = segments

    @property
    def gap(self) -> int:
        """Timesteps of a step of the teacher at the present step of the training."""
        first, last = self.segments
        doublings = (last // first).bit_length() - 1
        done = max(0, self.state.iteration - 1) / self._arguments["steps"]
        return self._gap_of(first * 2 ** min(doublings, int(done * (doublings + 1))))

    def to_device(self) -> None:
        """Move everything that a step needs to the device."""
        super().to_device()
        self.target.teacher.to(self.training_run.device)

    def files(self) -> dict[Any, int]:
        """Return the bytes that the training writes, by file: checkpoints and weights."""
        run, unet = self.training_run, num_bytes(self.unet)
        return {
            run.checkpoint_file(self.phase): COPIES * (1 + ADAM + 1) * unet,
            run.model_file: 2 * num_bytes(self.averaged_model),
        }

    def _gap_of(self, segments: int) -> int:
        return max(1, round(self.schedule.num_train_timesteps / segments))

    def _prepare_batch(self, network: nn.Module) -> FewStepPrepareBatch:
        prepare = super()._prepare_batch(network)
        if network is self.unet:
            return FewStepPrepareBatch(prepare, self.target, network, lambda: self.gap)
        shortest = self._gap_of(self.segments[1])  # so that all validations measure the same
        return FewStepPrepareBatch(prepare, self.target, network, lambda: shortest)

    def _load_autoencoder(self) -> None:
        self.autoencoder.eval()  # filled with the UNet

    def _check_autoencoder(self) -> str:
        return "that of pretrained_model"

    def _settings_of_autoencoder(self) -> dict[str, Any]:
        return {}  # pretrained_model is among the settings

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        return {**settings, "segments": list(self.segments), "guidance_scale": self.target.guidance_scale}


def _checked_segments(segments: Sequence[int], timesteps: int) -> tuple[int, int]:
    numbers = list(segments) if isinstance(segments, list | tuple) else []
    if len(numbers) == 2 and all(map(is_whole, numbers)) and 1 <= numbers[0] <= numbers[1] <= timesteps:
        first, last = numbers
        if last % first == 0 and (last // first).bit_count() == 1:
            return first, last
    raise ValueError(
        f"tuning_segments must be two numbers from 1 to {timesteps}, the second the first or its double, fourfold and "
        f"so on, e.g. [8, 64], received {segments!r}"
    )
