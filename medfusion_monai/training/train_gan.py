"""The phase ``train_gan``, from top to bottom: trains a GAN on the images of a training of the diffusion model.

Data, step (``GanTrainer``), validation, handlers.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from ignite.metrics import Loss
from monai.engines.evaluator import SupervisedEvaluator
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from medfusion_monai.baselines.augmentation import Augmentation
from medfusion_monai.baselines.gan import Gan
from medfusion_monai.baselines.gan_sampler import GanSampler
from medfusion_monai.baselines.relativistic import RelativisticLoss
from medfusion_monai.networks.described import describe
from medfusion_monai.training.gan_step import GanTrainer
from medfusion_monai.training.handlers.checkpoint import BestWeights
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.handlers.image_grid import sample_rows
from medfusion_monai.training.handlers.stop_on_signal import StopOnSignal
from medfusion_monai.training.latent_dataset import LatentDataset
from medfusion_monai.training.learning_rate import GanAdam
from medfusion_monai.training.preflight.disk import ADAM, COPIES, num_bytes
from medfusion_monai.training.preflight.run_checks import is_rehearsal
from medfusion_monai.training.prepare_batch import GanPrepareBatch
from medfusion_monai.training.run import Phase, TrainingRun
from medfusion_monai.training.train_autoencoder import check_validated
from medfusion_monai.training.training_description import describe_training
from medfusion_monai.training.training_images import TrainingImages
from medfusion_monai.weights.model_info import mark_finished

logger = logging.getLogger(__name__)


class GanTraining(GanTrainer):
    """Trains a GAN and writes ``model.pt`` with ``model.json``; ``run`` does everything, or resumes.

    The weights that it writes are the averaged ones of the latest validation: no value that a GAN could be validated
    by at little cost says which weights are best.

    Args:
        run: what all phases share.
        images: the datalist.
        network: the GAN, whose generator is trained.
        discriminator: against which.
        dataset: images to train on.
        val_dataset: images to validate on.
        loss: of both networks.
        augmentation: of the images that the discriminator sees.
        optimizer: of both networks.
        inferer: calls the generator.
        image_inferer: samples the pictures.
        max_epochs: of the training.
        steps: of the training.
        val_interval: steps of an epoch, which ends with a validation.
        batch_size: images per step and process.
        train_handlers: further handlers of the trainer, attached before its checkpoints.
        val_handlers: further handlers of the evaluator.
    """

    phase = "gan"
    latent_folders: Sequence[Path] = ()

    def __init__(
        self,
        run: TrainingRun,
        images: TrainingImages,
        network: Gan,
        discriminator: nn.Module,
        dataset: LatentDataset,
        val_dataset: LatentDataset,
        loss: RelativisticLoss,
        augmentation: Augmentation,
        optimizer: GanAdam,
        inferer: Inferer,
        image_inferer: GanSampler,
        max_epochs: int,
        steps: int,
        val_interval: int,
        batch_size: int,
        train_handlers: Sequence[Any] = (),
        val_handlers: Sequence[Any] = (),
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.training_run, self.images, self.dataset, self.val_dataset = run, images, dataset, val_dataset
        self.batch_size = self.at_once = batch_size
        self.networks = nn.ModuleDict({"generator": network.generator, "discriminator": discriminator})
        self.image_inferer = image_inferer
        self.ema = AveragedWeights(network.generator)
        self.averaged_model = Gan(self.ema.module, network.class_names, network.image_size)
        self.best = BestWeights(run.model_file, self.averaged_model, "gan_val_loss", latest_from=1, info=self.describe)
        built, self.lr_scheduler = optimizer.build(self.networks.parameters(), steps)
        super().__init__(
            discriminator=discriminator,
            augmentation=augmentation,
            ramp=optimizer,
            max_epochs=max_epochs,
            epoch_length=min(val_interval, steps),
            train_data_loader=[],  # see _prepare
            network=network.generator,
            optimizer=built,
            loss_function=loss,
            inferer=inferer,
            prepare_batch=GanPrepareBatch(network.generator.noise_channels),
            **run.engine_options,
        )
        self.evaluator = GanEvaluator(
            discriminator,
            val_data_loader=[],
            network=self.ema.module,
            inferer=inferer,
            prepare_batch=GanPrepareBatch(network.generator.noise_channels),
            key_val_metric={"gan_val_loss": Loss(_pairing_loss, output_transform=_logits)},
            metric_cmp_fn=operator.lt,
            **run.engine_options,
        )
        self._stop: StopOnSignal | None = None

    @property
    def is_begun(self) -> bool:
        """Whether the phase continues from a checkpoint."""
        return self.training_run.is_begun(self.phase)

    def run(self) -> None:  # type: ignore[override]  # as MONAI's trainers
        """Train or resume until the last step."""
        if is_rehearsal():
            return
        stop = self._prepare()
        self.training_run.train(self, stop, super().run)
        check_validated(self.training_run.model_file)
        if self.training_run.is_first:
            mark_finished(self.training_run.model_file)
        command = "python -m monai.bundle run inference --config_file configs/inference.yaml --model_dir"
        folder = self.training_run.model_dir
        logger.info("the GAN is finished: %s; to sample: %s %s", self.training_run.model_file, command, folder)

    def to_device(self) -> None:
        """Move everything that a step needs to the device."""
        parts: tuple[Any, ...] = (self.networks, self.ema.module, self.loss_function, self.augmentation)
        for part in parts:
            part.to(self.training_run.device)

    def _prepare(self) -> StopOnSignal:
        """Open the data and attach the handlers, once."""
        if self._stop is not None:
            return self._stop
        self.to_device()
        run = self.training_run
        sampler = run.open_images(self)
        self.ema.attach(self)
        self._stop = run.attach(
            self,
            Phase(
                title="GAN",
                network=self.networks,
                lr_scheduler=self.lr_scheduler,
                log=self._log,
                draw=self._draw,
                picture="samples",
                objects={
                    "networks": self.networks,
                    "optimizer": self.optimizer,
                    "lr_scheduler": self.lr_scheduler,
                    "ema": self.ema,
                    "best": self.best,
                },
                settings=self._settings(),
                changeable=run.changeable(self._arguments["optimizer"], self._arguments["steps"]),
                sampler=sampler,
                best=self.best,
                handlers=self._arguments["train_handlers"],
                val_handlers=self._arguments["val_handlers"],
            ),
        )
        return self._stop

    def describe(self) -> dict[str, Any]:
        """Return the contents of ``model.json`` for the current weights."""
        return describe_training(self, None)

    @property
    def picture_rows(self) -> int:
        """Rows of a picture: one per class."""
        return len(self.averaged_model.class_names)

    def files(self) -> dict[Path, int]:
        """Return the bytes that the training writes, by file: checkpoints and weights."""
        run, average = self.training_run, num_bytes(self.ema.module)
        return {
            run.checkpoint_file(self.phase): COPIES * ((1 + ADAM) * num_bytes(self.networks) + average),
            run.model_file: 2 * average,
        }

    def twin(self) -> GanTraining:
        """Return a trainer of the same step with copies of the networks."""
        own = copy.deepcopy({name: self._arguments[name] for name in ("network", "discriminator", "loss")})
        twin = GanTraining(**{**self._arguments, **own})
        twin.to_device()
        twin.state.iteration = self.ramp.ramp_steps  # with all of the augmentation
        return twin

    def noise(self, images: int) -> dict[str, Any]:
        """Return a batch of noise for a trial step."""
        shape = (self.averaged_model.image_channels, *self.images.image_size)
        labels = torch.zeros(images, dtype=torch.long)
        return {"image": torch.rand(images, *shape), "label": labels, "seed": list(range(images))}

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a run must share with the checkpoint it resumes from."""
        return {
            **self.dataset.settings(self.training_run, self.images),
            "random_transforms": self.dataset.random_settings,
            "val_interval": self._arguments["val_interval"],
            **{name: describe(network) for name, network in self.networks.items()},
            "loss": describe(self._arguments["loss"]),
            "augmentation": describe(self.augmentation),
        }

    def _log(self, out: Sequence[dict[Any, Any]]) -> dict[str, Any]:
        rate = self.optimizer.param_groups[0]["lr"]
        values = {"loss": out[0]["loss"], "lr": rate, **out[0]["terms"]}
        return {f"gan/{name}": value for name, value in values.items()}

    def _draw(self) -> list[Tensor]:
        return sample_rows(self.averaged_model, self.image_inferer, len(self.averaged_model.class_names))


class GanEvaluator(SupervisedEvaluator):
    """Compares held-out images with generated ones of the same classes, by the discriminator.

    The loss falls where the discriminator takes generated images for real ones, and falls too where it does not know
    held-out images: it shows a collapse, but two trainings cannot be compared by it.

    Args:
        discriminator: of the training.
        kwargs: as ``monai.engines.SupervisedEvaluator``; ``network`` is the averaged generator.
    """

    def __init__(self, discriminator: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.discriminator = discriminator

    @torch.no_grad()
    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        noise, real, _, keywords = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        fake, labels = engine.inferer(noise, engine.network, **keywords), keywords["class_labels"]
        engine.state.output = {
            "real_logits": self.discriminator(real, labels),
            "fake_logits": self.discriminator(fake, labels),
        }
        return engine.state.output


def refuse_phase(name: str, overlay: str = "gan.yaml", trained: str = "a GAN", run_id: str = "train_gan") -> NoReturn:
    """Raise a ValueError for a phase that the training of an overlay does not have."""
    raise ValueError(f"{overlay} trains {trained}, which has no {name}: run {run_id}, or leave {overlay} out")


def _logits(out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return out["fake_logits"], out["real_logits"]


def _pairing_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Return the generator's loss (softplus, see ``RelativisticLoss``) of pairs."""
    return nn.functional.softplus(real - fake).mean()
