"""Phase two, from top to bottom: trains the UNet to denoise the latents of the autoencoder, given a label.

Data, step (``DiffusionStep``), validation, handlers, and the final weights.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.metrics import Loss
from monai.engines.evaluator import SupervisedEvaluator
from monai.engines.trainer import SupervisedTrainer
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.networks.described import describe
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.distributed import data_parallel
from medfusion_monai.runtime.dtype import MixedPrecisionInferer
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.memory_format import choose_channels_last, compile_network, lay_out, widths
from medfusion_monai.runtime.values import check_optional_counts
from medfusion_monai.training.diffusion_step import DiffusionStep
from medfusion_monai.training.handlers.average_snapshots import AverageSnapshots
from medfusion_monai.training.handlers.checkpoint import BestWeights
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.handlers.image_grid import sample_rows
from medfusion_monai.training.handlers.stop_on_signal import StopOnSignal
from medfusion_monai.training.latent_dataset import LatentDataset
from medfusion_monai.training.learning_rate import AdamW
from medfusion_monai.training.preflight.run_checks import Check, check_all, is_rehearsal
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch
from medfusion_monai.training.run import Phase, TrainingRun
from medfusion_monai.training.train_autoencoder import check_validated
from medfusion_monai.training.training_description import describe_training
from medfusion_monai.training.training_images import TrainingImages
from medfusion_monai.weights.model_info import mark_finished
from medfusion_monai.weights.state_dict import load_weights

logger = logging.getLogger(__name__)

DRAWS = 4  # of noise and timestep per validation image


class DiffusionTraining(SupervisedTrainer):
    """Trains the UNet of a model and writes ``model.pt`` with ``model.json``; ``run`` does everything, or resumes.

    ``run`` first loads ``autoencoder.pt`` of phase one and encodes missing latents. Every caller, including MONAI's
    federated client, which calls nothing else of the run list, thus trains on latents of a trained autoencoder or gets
    an error.

    Args:
        run: what both phases share.
        images: the datalist.
        network: the model whose UNet is trained.
        dataset: latents to train on.
        val_dataset: latents to validate on.
        schedule: of the noise.
        loss: between predictions and targets.
        optimizer: of the UNet.
        inferer: calls the UNet.
        image_inferer: samples the pictures; its settings are saved with the weights.
        max_epochs: of the training.
        steps: of the training, for the decay of the learning rate.
        val_interval: steps of an epoch, which ends with a validation.
        batch_size: images per step and process.
        micro_batch_size: images that pass through the UNet at a time; None for all.
        label_dropout: probability of dropping the label of a sample.
        average_snapshots: the most snapshots of two averages to store in the checkpoints' folder, from which averages
            of other lengths and earlier steps are rebuilt, see ``AverageSnapshots``; None for none.
        train_handlers: further handlers of the trainer, attached before its checkpoints.
        val_handlers: further handlers of the evaluator.
    """

    phase = "diffusion"
    title = "phase two, diffusion"

    def __init__(
        self,
        run: TrainingRun,
        images: TrainingImages,
        network: Medfusion,
        dataset: LatentDataset,
        val_dataset: LatentDataset,
        schedule: NoiseSchedule,
        loss: DiffusionLoss,
        optimizer: AdamW,
        inferer: Inferer,
        image_inferer: LatentDiffusionSampler,
        max_epochs: int,
        steps: int,
        val_interval: int,
        batch_size: int,
        micro_batch_size: int | None = None,
        label_dropout: float = 0.5,
        average_snapshots: int | None = None,
        train_handlers: Sequence[Any] = (),
        val_handlers: Sequence[Any] = (),
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.training_run, self.images, self.dataset, self.val_dataset = run, images, dataset, val_dataset
        self.batch_size, self.at_once = batch_size, min(micro_batch_size or batch_size, batch_size)
        self.unet, self.autoencoder, self.schedule = network.unet, network.autoencoder, schedule
        self.image_inferer = copy.copy(image_inferer)
        self.image_inferer.dtype = run.dtype
        self.step = DiffusionStep(micro_batch_size, run.dtype)
        self.ema = AveragedWeights(self.unet)
        self.averaged_model = Medfusion(self.autoencoder, self.ema.module, network.class_names, network.image_size)
        check_optional_counts(2, average_snapshots=average_snapshots)
        self.snapshots: AverageSnapshots | None = None
        if average_snapshots is not None:
            folder = run.ckpt_dir / "averages"
            self.snapshots = AverageSnapshots(self.unet, folder, average_snapshots, self.autoencoder, self.describe)
        self.metric = f"{self.phase}_val_loss"
        self.best = BestWeights(run.model_file, self.averaged_model, self.metric, info=self.describe)
        built, self.lr_scheduler = optimizer.build(self.unet.parameters(), steps)
        self.label_dropout = label_dropout
        prepare_batch = self._prepare_batch()
        super().__init__(
            max_epochs=max_epochs,
            epoch_length=min(val_interval, steps),
            train_data_loader=[],  # see open
            network=self.unet,
            optimizer=built,
            loss_function=loss,
            inferer=inferer,
            prepare_batch=prepare_batch,
            iteration_update=self.step,
            **run.engine_options,
        )
        self.evaluator = DiffusionEvaluator(
            self,
            val_data_loader=[],
            network=self.ema.module,
            inferer=MixedPrecisionInferer(run.dtype, inferer),
            prepare_batch=prepare_batch,
            key_val_metric={self.metric: Loss(loss, output_transform=_pred_and_target, device=run.device)},
            metric_cmp_fn=operator.lt,
            **run.engine_options,
        )
        self._is_open = False
        self._stop: StopOnSignal | None = None

    @property
    def is_begun(self) -> bool:
        """Whether the phase continues from a checkpoint."""
        return self.training_run.is_begun(self.phase)

    @property
    def picture_rows(self) -> int:
        """Rows of images in a picture, one per class."""
        return len(self.images.class_names)

    @property
    def latent_folders(self) -> list[Path]:
        """Folders of cached latents for training and validation; empty without a cache."""
        return [self.dataset.latents_dir, self.val_dataset.latents_dir] if self.dataset.caches else []

    def run(self) -> None:  # type: ignore[override]  # as MONAI's trainers
        """Train or resume until the last step."""
        if is_rehearsal():
            if "autoencoder" not in self.training_run.rehearsed:
                check_all([Check("networks", "autoencoder_file", self._check_autoencoder)])
            return
        self.open()
        stop = self._attach_handlers()
        self.training_run.train(self, stop, super().run)
        check_validated(self.training_run.model_file)
        if self.training_run.is_first:
            mark_finished(self.training_run.model_file)
        command = "python -m monai.bundle run inference --config_file configs/inference.yaml --model_dir"
        name, folder = self.title.partition(",")[0], self.training_run.model_dir
        logger.info("%s is finished: %s; to sample: %s %s", name, self.training_run.model_file, command, folder)

    def open(self) -> None:
        """Load the autoencoder, encode missing latents, and open the data, once.

        Raises:
            WeightsError: if the trained autoencoder is missing or does not fit.
        """
        if self._is_open:
            return
        run = self.training_run
        self._load_autoencoder()
        self.to_device()
        self.val_dataset.caches = self.dataset.caches
        for dataset in (self.dataset, self.val_dataset):
            dataset.prepare(run.device, self.at_once, run.num_workers)
        self._sampler = run.sampler(self.batch_size)
        self.data_loader = run.loader(self.dataset.stream(run.seed, self.images.shares), self._sampler)
        validation = self.val_dataset.stream(run.seed, shuffle=False)
        run.open_validation(self.evaluator, validation, self.at_once, passes=DRAWS)
        self.network = data_parallel(compile_network(self.unet, run.compile, run.device), run.device)
        self._is_open = True

    def begin_at(self, step: int) -> None:
        """Continue as after some steps, see ``TrainingRun.begin_at``."""
        self.open()
        self.training_run.begin_at(self, self._sampler, self.lr_scheduler, step)

    def to_device(self) -> None:
        """Move everything that a step needs to the device."""
        device, unet = self.training_run.device, self.unet
        channels_last = choose_channels_last(self.training_run.channels_last, device, self.step.dtype, widths(unet))
        for network in self._networks():
            lay_out(network.to(device), channels_last)
        parts: tuple[Any, ...] = (self.autoencoder, self.schedule, self.loss_function)
        for part in parts:
            part.to(device)

    def _networks(self) -> list[nn.Module]:
        """Return the UNet and what has its layers."""
        averages = self.snapshots.modules.values() if self.snapshots is not None else ()
        return [self.unet, self.ema.module, *averages]

    def _attach_handlers(self) -> StopOnSignal:
        if self._stop is None:
            self.ema.attach(self)
            if self.snapshots is not None:
                self.snapshots.attach(self)
            self._stop = self._attach_shared_handlers()
        return self._stop

    def _attach_shared_handlers(self) -> StopOnSignal:
        return self.training_run.attach(
            self,
            Phase(
                title=self.title,
                network=self.unet,
                lr_scheduler=self.lr_scheduler,
                log=self._log,
                draw=self._draw,
                picture="samples",
                objects={
                    "network": self.unet,
                    "optimizer": self.optimizer,
                    "lr_scheduler": self.lr_scheduler,
                    "ema": self.ema,
                    "best": self.best,
                    "step": self.step,
                    **({} if self.snapshots is None else {"snapshots": self.snapshots}),
                },
                settings=self._settings(),
                changeable=self._changeable(),
                sampler=self._sampler,
                best=self.best,
                handlers=self._arguments["train_handlers"],
                val_handlers=self._arguments["val_handlers"],
            ),
        )

    def describe(self) -> dict[str, Any]:
        """Return the contents of ``model.json`` for the current weights."""
        return describe_training(self, self.schedule)

    def twin(self) -> DiffusionTraining:
        """Return a trainer of the same step with copies of the networks."""
        own = copy.deepcopy({name: self._arguments[name] for name in ("network", "schedule", "loss")})
        twin = type(self)(**{**self._arguments, **own})
        twin.to_device()
        return twin

    def noise(self, images: int) -> dict[str, Any]:
        """Return a batch of noise for a trial step: posteriors if latents are cached, else images."""
        key, shape = "image", (self.autoencoder.in_channels, *self.images.image_size)
        if self.dataset.caches:
            channels, *sides = self.averaged_model.latent_shape
            key, shape = "moments", (2 * channels, *sides)
        labels = torch.zeros(images, dtype=torch.long)
        return {key: torch.rand(images, *shape), "label": labels, "seed": list(range(images))}

    def _prepare_batch(self) -> Any:
        """Return what prepares the inputs of a step."""
        return DiffusionPrepareBatch(self.autoencoder, self.schedule, self.label_dropout)

    def _load_autoencoder(self) -> None:
        self.training_run.pretrained.refuse_other_latents(self.autoencoder, self.training_run.autoencoder_file)
        load_weights(
            self.autoencoder,
            self.training_run.autoencoder_file,
            "phase two needs phase one: run train_autoencoder (or training)",
        ).eval()

    def _check_autoencoder(self) -> str:
        self._load_autoencoder()
        return f"{self.training_run.autoencoder_file.name} fits"

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a run must share with the checkpoint it resumes from."""
        return {
            **self.dataset.settings(self.training_run, self.images),
            "random_transforms": None if self.dataset.caches else self.dataset.random_settings,
            "latent_flips": self.dataset.flips,
            "cache_latents": self.dataset.caches,
            "val_interval": self._arguments["val_interval"],
            "unet": describe(self.unet),
            "schedule": describe(self.schedule),
            "loss": describe(self._arguments["loss"]),
            "label_dropout": self.label_dropout,
            "eight_bit_moments": self._arguments["optimizer"].eight_bit_moments,
            **self._settings_of_autoencoder(),
            # These averages begin with the training.
            **({} if self.snapshots is None else {"average_snapshots": True}),
        }

    def _settings_of_autoencoder(self) -> dict[str, Any]:
        # Or phase one could continue, and the UNet would be trained partly on other latents.
        return {"autoencoder": file_sha256(self.training_run.autoencoder_file)}

    def _changeable(self) -> dict[str, Any]:
        changeable = self.training_run.changeable(self._arguments["optimizer"], self._arguments["steps"])
        del changeable["eight_bit_moments"]  # moments of one kind cannot continue as the other
        return changeable | {"micro_batch_size": self._arguments["micro_batch_size"]}

    def _log(self, out: Sequence[dict[Any, Any]]) -> dict[str, Any]:
        return {f"{self.phase}/loss": out[0]["loss"], f"{self.phase}/lr": self.optimizer.param_groups[0]["lr"]}

    def _draw(self) -> list[Tensor]:
        return sample_rows(self.averaged_model, self.image_inferer, len(self.averaged_model.class_names))


class DiffusionEvaluator(SupervisedEvaluator):
    """Validates averaged weights on latents; called on its own, it opens the data first and writes no weights.

    Args:
        training: the phase to validate.
        kwargs: as ``monai.engines.SupervisedEvaluator``.
    """

    def __init__(self, training: DiffusionTraining, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.training = training

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]  # as MONAI's evaluators
        """Validate once."""
        self.training.open()
        super().run(global_epoch)


def _pred_and_target(out: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return out["pred"], out["label"]
