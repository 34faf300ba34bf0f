"""What attaches to the trainers."""

from medfusion_monai.handlers.checkpoint import BestWeights, TrainingCheckpoint
from medfusion_monai.handlers.ema import AveragedWeights
from medfusion_monai.handlers.guards import StopOnNonFiniteLoss
from medfusion_monai.handlers.image_grid import ImageGrid, grid_of_rows, reconstruction_rows, sample_rows, save_picture
from medfusion_monai.handlers.progress import ProgressBar
from medfusion_monai.handlers.sample_writer import SampleWriter, sample_settings, suffix_of
from medfusion_monai.handlers.stop_on_signal import StopOnSignal, StoppedBySignal, leave_on_signals

__all__ = [
    "AveragedWeights",
    "BestWeights",
    "ImageGrid",
    "ProgressBar",
    "SampleWriter",
    "StopOnNonFiniteLoss",
    "StopOnSignal",
    "StoppedBySignal",
    "TrainingCheckpoint",
    "grid_of_rows",
    "leave_on_signals",
    "reconstruction_rows",
    "sample_rows",
    "sample_settings",
    "save_picture",
    "suffix_of",
]
