"""What all phases share: device, precision, seed, processes, folders, checkpoints, TensorBoard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from monai.handlers.lr_schedule_handler import LrScheduleHandler
from monai.handlers.tensorboard_handlers import TensorBoardStatsHandler
from monai.handlers.validation_handler import ValidationHandler
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from medfusion_monai.data.training.readable import ReadableDataset, check_readable
from medfusion_monai.data.training.stream import SeededDataset, StreamSampler
from medfusion_monai.runtime import distributed
from medfusion_monai.runtime.dtype import choose_precision, precision_name
from medfusion_monai.runtime.locks import leave_folders, use_folders
from medfusion_monai.training.handlers.checkpoint import BestWeights, Stateful, TrainingCheckpoint
from medfusion_monai.training.handlers.image_grid import ImageGrid
from medfusion_monai.training.handlers.non_finite_loss import StopOnNonFiniteLoss
from medfusion_monai.training.handlers.progress import ProgressBar
from medfusion_monai.training.handlers.stop_on_signal import StopOnSignal
from medfusion_monai.training.learning_rate import Adam, GanAdam, WarmupDecay
from medfusion_monai.training.preflight.run_checks import is_rehearsal
from medfusion_monai.training.pretrained_start import PretrainedStart
from medfusion_monai.training.training_images import TrainingImages


@dataclasses.dataclass(frozen=True)
class Phase:
    """What ``TrainingRun.attach`` needs of a phase besides its trainer.

    Attributes:
        title: shown in front of the progress bar.
        network: the network being trained.
        lr_scheduler: steps once per step of the training.
        log: returns TensorBoard values for a step's output, see ``per_image``.
        draw: returns the rows of a picture.
        picture: name of the picture.
        objects: saved in checkpoints, by name.
        settings: settings that a run must share with the checkpoint it resumes from.
        changeable: settings that may differ; changes are logged.
        sampler: of the batches.
        best: keeps the best weights.
        handlers: further handlers for the trainer.
        val_handlers: further handlers for the evaluator.
    """

    title: str
    network: nn.Module
    lr_scheduler: Any
    log: Callable[[Sequence[dict[Any, Any]]], dict[str, Any]]
    draw: Callable[[], Sequence[Tensor]]
    picture: str
    objects: Mapping[str, Stateful]
    settings: Mapping[str, Any]
    changeable: Mapping[str, Any]
    sampler: StreamSampler
    best: BestWeights
    handlers: Sequence[Any] = ()
    val_handlers: Sequence[Any] = ()


class TrainingRun:
    """The settings of a run, shared by its phases.

    It does nothing until ``start``, which lets all settings be checked together first.

    Args:
        output_dir: folder of checkpoints, latents, pictures and TensorBoard files.
        model_dir: folder of the weights, ``autoencoder.pt`` and ``model.pt``.
        ckpt_dir: folder of the checkpoints; None for ``output_dir/checkpoints``.
        latents_dir: folder of cached latents; None for ``output_dir/latents``.
        device: where to train.
        seed: of initial weights, order of images and all noise.
        resume: whether to continue from existing checkpoints.
        precision: of the forward passes: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        channels_last: memory format of the UNet: ``auto``, true or false.
        compile: whether to compile the UNet.
        num_workers: processes that read images; ``auto``: 4 on a GPU, 0 on a CPU.
        max_grad_norm: gradients with a larger norm are scaled down to it; None disables clipping.
        log_interval: steps between values in TensorBoard.
        val_interval: epochs between validations; an epoch ends after ``val_interval`` steps of its phase.
        checkpoint_interval: steps between checkpoints within epochs; None for none.
        trial_step: whether to try a step of each phase before training.
        pretrained: the weights that it starts from; None for random ones.
    """

    def __init__(
        self,
        output_dir: str | Path,
        model_dir: str | Path,
        ckpt_dir: str | Path | None = None,
        latents_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        resume: bool = True,
        precision: str = "auto",
        channels_last: bool | str = "auto",
        compile: bool = False,
        num_workers: int | str = "auto",
        max_grad_norm: float | None = 1.0,
        log_interval: int = 50,
        val_interval: int = 1,
        checkpoint_interval: int | None = None,
        trial_step: bool = True,
        pretrained: PretrainedStart | None = None,
    ) -> None:
        self.output_dir, self.model_dir = Path(output_dir), Path(model_dir)
        self.ckpt_dir = self.output_dir / "checkpoints" if ckpt_dir is None else Path(ckpt_dir)
        self.latents_dir = self.output_dir / "latents" if latents_dir is None else Path(latents_dir)
        self.device, self.seed, self.resume, self.precision = device, seed, resume, precision
        self.channels_last, self.compile, self.workers = channels_last, compile, num_workers
        self.max_grad_norm, self.log_interval, self.val_interval = max_grad_norm, log_interval, val_interval
        self.checkpoint_interval, self.trial_step = checkpoint_interval, trial_step
        self.pretrained = PretrainedStart() if pretrained is None else pretrained
        self.rehearsed: set[str] = set()

    @property
    def autoencoder_file(self) -> Path:
        """Weights of phase one."""
        return self.model_dir / "autoencoder.pt"

    @property
    def model_file(self) -> Path:
        """Weights of both phases."""
        return self.model_dir / "model.pt"

    @property
    def folders(self) -> list[Path]:
        """Where the run writes."""
        return [self.output_dir, self.ckpt_dir, self.model_dir]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which networks run.

        Raises:
            ValueError: for a precision that the device does not support.
        """
        return choose_precision(self.precision, self.device)

    @property
    def on_cuda(self) -> bool:
        """Whether the run is on a GPU."""
        return torch.device(self.device).type == "cuda"

    @property
    def engine_options(self) -> dict[str, Any]:
        """Arguments shared by the trainers and evaluators of both phases."""
        return {"device": torch.device(self.device), "non_blocking": self.on_cuda, "decollate": False}

    @property
    def num_workers(self) -> int:
        """Number of processes that read images."""
        return self.workers if isinstance(self.workers, int) else 4 * self.on_cuda

    @property
    def is_first(self) -> bool:
        """Whether this is the first process of the run, which writes and logs."""
        return distributed.rank() == 0

    @cached_property
    def tensorboard(self) -> SummaryWriter | None:
        """The TensorBoard writer; None in all processes but the first."""
        return SummaryWriter(str(self.output_dir / "tensorboard")) if self.is_first else None

    def start(self, images: TrainingImages, *read: ReadableDataset) -> None:
        """Connect the processes, lock the folders, and read every image once.

        Args:
            images: defines whether to read them.
            read: datasets of training and validation.

        Raises:
            ValueError: if a folder cannot be written or is in use, or images cannot be read.
        """
        if is_rehearsal():
            return
        distributed.start(self.device)
        use_folders(self.folders)
        if images.check_files:
            check_readable(read, images.class_names, distributed.from_first)
        images.identify()

    def finish(self) -> None:
        """Close everything that ``start`` and the phases opened."""
        if self.__dict__.get("tensorboard") is not None:
            self.tensorboard.close()  # type: ignore[union-attr]
        distributed.finish()
        leave_folders()

    def sampler(self, batch_size: int) -> StreamSampler:
        """Return the sampler of this process's items of a stream."""
        return StreamSampler(batch_size, distributed.rank(), distributed.world_size())

    def loader(self, stream: SeededDataset, sampler: StreamSampler) -> DataLoader:
        """Return a loader of endless training batches of a stream."""
        return DataLoader(stream, batch_sampler=sampler, num_workers=self.num_workers, pin_memory=self.on_cuda)

    def open_validation(self, evaluator: Any, stream: SeededDataset, batch_size: int, passes: int = 1) -> None:
        """Open the data loader of an evaluator for this process's share of a stream.

        Args:
            evaluator: of a phase.
            stream: of the validation images, in order.
            batch_size: items per batch.
            passes: over the items, each with different noise.
        """
        share = distributed.share(passes * len(stream), distributed.rank(), distributed.world_size())
        evaluator.data_loader = DataLoader(
            stream, batch_size, sampler=share, num_workers=self.num_workers, pin_memory=self.on_cuda
        )
        evaluator.state.epoch_length = len(evaluator.data_loader)

    def open_images(self, trainer: Any) -> StreamSampler:
        """Open the data loaders of a phase that trains on images, and return the sampler of its batches.

        Args:
            trainer: with ``images``, ``dataset``, ``val_dataset``, ``batch_size`` and ``evaluator``.
        """
        if self.num_workers:  # else each worker would read the images again
            trainer.dataset.images.keep()
            trainer.val_dataset.images.keep()
        sampler = self.sampler(trainer.batch_size)
        trainer.data_loader = self.loader(trainer.dataset.image_stream(self.seed, trainer.images.shares), sampler)
        validation = trainer.val_dataset.image_stream(self.seed, shuffle=False)
        self.open_validation(trainer.evaluator, validation, trainer.batch_size)
        return sampler

    def attach(self, trainer: Any, phase: Phase) -> StopOnSignal:
        """Attach the handlers that all phases share, in this order; checkpoint and signals come last.

        Args:
            trainer: with ``phase``, ``batch_size`` and ``evaluator``, whose metrics also go to TensorBoard.
            phase: what differs between the phases.

        Returns:
            The handler that stops on signals.
        """
        checkpoint = TrainingCheckpoint(
            path=self.checkpoint_file(trainer.phase),
            objects=phase.objects,
            sampler=phase.sampler,
            settings=phase.settings,
            changeable=phase.changeable,
            resume=self.resume,
            every_steps=self.checkpoint_interval,
            writer=self.tensorboard,
        )
        stop = StopOnSignal(checkpoint, trainer.evaluator)
        guard = StopOnNonFiniteLoss(phase.network, self.max_grad_norm, str(self.ckpt_dir), wait=not self.on_cuda)
        trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, per_image)
        phase.best.attach(trainer.evaluator)  # only now: an evaluator called on its own must not write weights
        handlers: list[Any] = [guard]
        if self.is_first:
            handlers += self._loggers(trainer, phase)
        handlers.append(LrScheduleHandler(phase.lr_scheduler, print_lr=False, epoch_level=False))
        handlers.append(ValidationHandler(self.val_interval, trainer.evaluator))
        if self.is_first:
            pictures = self.output_dir / "pictures"
            handlers.append(ImageGrid(phase.draw, pictures, phase.picture, writer=self.tensorboard))
        for handler in [*handlers, *phase.handlers, checkpoint, stop]:
            handler.attach(trainer)
        for handler in phase.val_handlers:
            handler.attach(trainer.evaluator)
        return stop

    def _loggers(self, trainer: Any, phase: Phase) -> list[Any]:
        """Return progress bar and TensorBoard logger of the trainer; attach the logger of its evaluator, by step."""
        steps = partial(_times, trainer.state.epoch_length)
        by_step: dict[str, Any] = {"iteration_log": False, "global_epoch_transform": steps}
        TensorBoardStatsHandler(self.tensorboard, **by_step).attach(trainer.evaluator)
        every: dict[str, Any] = {"iteration_log": self.log_interval, "epoch_log": False}
        return [
            ProgressBar(phase.title, trainer.batch_size * distributed.world_size()),
            TensorBoardStatsHandler(self.tensorboard, output_transform=phase.log, **every),
        ]

    def train(self, trainer: Any, stop: StopOnSignal, steps: Callable[[], Any]) -> None:
        """Run the remaining steps while listening to signals.

        Args:
            trainer: of a phase.
            stop: returned by ``attach``.
            steps: runs the trainer; not called if no step remains, as a trainer would then start from the first.
        """
        done, wanted = trainer.state.iteration, (trainer.state.max_epochs or 0) * (trainer.state.epoch_length or 0)
        if done == 0 or done < wanted:
            with stop.listening():
                steps()

    def begin_at(self, trainer: Any, sampler: StreamSampler, lr_scheduler: WarmupDecay, step: int) -> None:
        """Have a trainer continue as after some steps, for a site that joins a federated training late.

        Order of images, noise and learning rate follow from the step; weights are those that the trainer has.

        Args:
            trainer: of a phase, before its next run.
            sampler: of its batches.
            lr_scheduler: of its optimizer.
            step: number of steps, of whole epochs.
        """
        trainer.state.iteration = sampler.start_iteration = step
        trainer.state.epoch = step // trainer.state.epoch_length
        lr_scheduler.load_state_dict({"last_epoch": step, "_step_count": step + 1})

    def changeable(self, optimizer: Adam | GanAdam, steps: int) -> dict[str, Any]:
        """Return the settings of a phase that a run may change when it resumes.

        Args:
            optimizer: of the phase.
            steps: of the phase.
        """
        return {
            **dataclasses.asdict(optimizer),
            "steps": steps,
            "max_grad_norm": self.max_grad_norm,
            "precision": precision_name(self.dtype),
        }

    def checkpoint_file(self, phase: str) -> Path:
        """Return the path of a phase's checkpoint."""
        return self.ckpt_dir / f"{phase}_training.pt"

    def is_begun(self, phase: str) -> bool:
        """Whether a phase continues from a checkpoint."""
        return self.resume and self.checkpoint_file(phase).is_file()


def per_image(engine: Any) -> None:
    """Split a step's output into one dictionary per image, as MONAI's trainers leave it.

    ``from_engine(["loss"], first=True)``, which MONAI's own handlers use, takes nothing else. MONAI's ``decollate``
    also copies the loss to the host, for which a GPU would wait at every step; here it stays a tensor.
    """
    output = dict(engine.state.output)
    shared = {key: output.pop(key) for key in (Keys.LOSS, "terms") if key in output}
    engine.state.output = [
        {**dict(zip(output, values, strict=True)), **shared} for values in zip(*output.values(), strict=True)
    ]


def _times(steps: int, epoch: int) -> int:
    return steps * epoch
