"""Handlers that attach to the trainers."""

from medfusion_monai.training.handlers.average_snapshots import AverageSnapshots
from medfusion_monai.training.handlers.checkpoint import BestWeights, TrainingCheckpoint
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.handlers.image_grid import (
    ImageGrid,
    grid_of_rows,
    reconstruction_rows,
    sample_rows,
    save_picture,
)
from medfusion_monai.training.handlers.non_finite_loss import StopOnNonFiniteLoss
from medfusion_monai.training.handlers.progress import ProgressBar
from medfusion_monai.training.handlers.stop_on_signal import StopOnSignal, StoppedBySignal, leave_on_signals

__all__ = [
    "AverageSnapshots",
    "AveragedWeights",
    "BestWeights",
    "ImageGrid",
    "ProgressBar",
    "StopOnNonFiniteLoss",
    "StopOnSignal",
    "StoppedBySignal",
    "TrainingCheckpoint",
    "grid_of_rows",
    "leave_on_signals",
    "reconstruction_rows",
    "sample_rows",
    "save_picture",
]
