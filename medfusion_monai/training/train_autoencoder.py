"""Phase one, from top to bottom: trains the autoencoder to compress images.

Data, step (``AutoencoderTrainer``), validation, handlers, and the latent statistics that phase two needs.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.metrics import Loss
from monai.engines.evaluator import SupervisedEvaluator
from torch import Tensor
from torch.utils.data import DataLoader

from medfusion_monai.losses.adversarial import AdversarialLoss
from medfusion_monai.losses.reconstruction import ReconstructionLoss, image_ssim
from medfusion_monai.networks.described import describe
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.values import check_numbers, epochs
from medfusion_monai.training.autoencoder_step import AutoencoderTrainer
from medfusion_monai.training.equivariance import check_equivariance
from medfusion_monai.training.handlers.checkpoint import BestWeights
from medfusion_monai.training.handlers.image_grid import reconstruction_rows
from medfusion_monai.training.handlers.stop_on_signal import StopOnSignal
from medfusion_monai.training.latent_dataset import LatentDataset
from medfusion_monai.training.latent_statistics import measure_latent_statistics
from medfusion_monai.training.learning_rate import Adam
from medfusion_monai.training.preflight.run_checks import is_rehearsal
from medfusion_monai.training.prepare_batch import AutoencoderPrepareBatch
from medfusion_monai.training.pretrained_start import AUTOENCODER, ENCODER
from medfusion_monai.training.run import Phase, TrainingRun
from medfusion_monai.training.training_images import TrainingImages
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import load_weights, save_weights

logger = logging.getLogger(__name__)

PICTURED = 8  # validation images shown with their reconstructions


class AutoencoderTraining(AutoencoderTrainer):
    """Trains the autoencoder of a model and writes ``autoencoder.pt``; ``run`` does everything, or resumes.

    Args:
        run: what both phases share.
        images: the datalist.
        network: the model whose autoencoder is trained.
        dataset: images to train on.
        val_dataset: images to validate on.
        loss: between reconstructions and images.
        adversarial: the discriminators.
        optimizer: of the autoencoder.
        steps: of the training.
        val_interval: steps of an epoch, which ends with a validation.
        batch_size: images per step and process.
        discriminator_lr: learning rate of the discriminators.
        equivariance: share of steps whose latents are scaled or turned before they are decoded.
        train_handlers: further handlers of the trainer, attached before its checkpoints.
    """

    phase = "autoencoder"

    def __init__(
        self,
        run: TrainingRun,
        images: TrainingImages,
        network: Medfusion,
        dataset: LatentDataset,
        val_dataset: LatentDataset,
        loss: ReconstructionLoss,
        adversarial: AdversarialLoss,
        optimizer: Adam,
        steps: int,
        val_interval: int,
        batch_size: int,
        discriminator_lr: float = 1.0e-6,
        equivariance: float = 0.0,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.training_run, self.images, self.dataset, self.val_dataset = run, images, dataset, val_dataset
        self.batch_size = self.at_once = batch_size
        self.autoencoder = network.autoencoder
        check_numbers(discriminator_lr=discriminator_lr)
        check_equivariance(
            equivariance,
            self.autoencoder.latent_shape(images.image_size),
            self.autoencoder.downsampling_factor,
            loss.ssim_window,
        )
        built, self.lr_scheduler = optimizer.build(run.pretrained.trained(self.autoencoder), steps)
        self.best = BestWeights(
            run.ckpt_dir / "autoencoder_best.pt",
            self.autoencoder,
            "autoencoder_val_loss",
            latest_from=_first_sharp_epoch(adversarial, min(val_interval, steps)),
        )
        super().__init__(
            max_epochs=epochs(steps, val_interval),
            epoch_length=min(val_interval, steps),
            train_data_loader=[],  # see _prepare
            optimizer=built,
            loss_function=loss,
            adversarial=adversarial,
            discriminator_optimizer=torch.optim.Adam(adversarial.parameters(), lr=discriminator_lr),
            dtype=torch.float32 if run.dtype is torch.float16 else run.dtype,  # the step does not scale losses
            prepare_batch=AutoencoderPrepareBatch(self.autoencoder, equivariance),
            network=self.autoencoder,
            **run.engine_options,
        )
        measured: dict[str, Any] = {"output_transform": _pred_and_image, "device": run.device}  # or each batch is read
        self.evaluator = SupervisedEvaluator(
            val_data_loader=[],
            key_val_metric={"autoencoder_val_loss": Loss(self._validation_loss, **measured)},
            additional_metrics={"autoencoder_val_ssim": Loss(_mean_ssim, **measured)},
            metric_cmp_fn=operator.lt,
            prepare_batch=AutoencoderPrepareBatch(self.autoencoder),
            network=self.autoencoder,
            **run.engine_options,
        )
        self._stop: StopOnSignal | None = None

    @property
    def is_begun(self) -> bool:
        """Whether the phase continues from a checkpoint."""
        return self.training_run.is_begun(self.phase)

    @property
    def is_needed(self) -> bool:
        """Whether the autoencoder is trained, not kept as it is."""
        return self.training_run.pretrained.frozen != AUTOENCODER

    def run(self) -> None:  # type: ignore[override]  # as MONAI's trainers
        """Train or resume until the last step, then measure the latents and write ``autoencoder.pt``."""
        if is_rehearsal():
            self.training_run.rehearsed.add(self.phase)
            return
        if not self.is_needed:
            with idist.one_rank_first():
                self._write()
            return
        self.train_steps()
        self.finish()

    def train_steps(self) -> None:
        """Train or resume until the last step, without choosing the best weights or writing them."""
        stop = self._prepare()
        self.training_run.train(self, stop, super().run)

    def begin_at(self, step: int) -> None:
        """Continue as after some steps, see ``TrainingRun.begin_at``."""
        self._prepare()
        self.training_run.begin_at(self, self._sampler, self.lr_scheduler, step)

    def to_device(self) -> None:
        """Move everything that a step needs to the device."""
        parts: tuple[Any, ...] = (self.autoencoder, self.loss_function, self.adversarial)
        for part in parts:
            part.to(self.training_run.device)

    def _prepare(self) -> StopOnSignal:
        """Open the data and attach the handlers, once."""
        if self._stop is not None:
            return self._stop
        self.to_device()
        self._sampler = self.training_run.open_images(self)
        self._stop = self.training_run.attach(
            self,
            Phase(
                title="phase one, autoencoder",
                network=self.autoencoder,
                lr_scheduler=self.lr_scheduler,
                log=self._log,
                draw=self._draw,
                picture="reconstructions",
                objects=self._checkpointed(),
                settings=self._settings(),
                changeable=self._changeable(),
                sampler=self._sampler,
                best=self.best,
                handlers=self._arguments["train_handlers"],
            ),
        )
        return self._stop

    def _checkpointed(self) -> dict[str, Any]:
        return {
            "network": self.autoencoder,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "discriminators": self.adversarial,
            "discriminator_optimizer": self.discriminator_optimizer,
            "best": self.best,
        }

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a run must share with the checkpoint it resumes from."""
        return {
            **self.dataset.settings(self.training_run, self.images),
            "random_transforms": self.dataset.random_settings,
            "val_interval": self._arguments["val_interval"],
            "autoencoder": describe(self.autoencoder),
            "loss": describe(self._arguments["loss"]),
            "perceptual_network": getattr(self.loss_function, "perceptual_network", None),
            "adversarial": describe(self.adversarial) if self.adversarial is not None else None,
            **({"equivariance": share} if (share := self._arguments["equivariance"]) else {}),
        }

    def _changeable(self) -> dict[str, Any]:
        changeable = self.training_run.changeable(self._arguments["optimizer"], self._arguments["steps"])
        return changeable | {"discriminator_lr": self._arguments["discriminator_lr"]}

    def finish(self) -> None:
        """Load the best weights, measure the latents of the training images, and write ``autoencoder.pt``.

        An existing file with the same weights is kept, as phase two is bound to its checksum. Of several processes the
        first does the work.

        Raises:
            WeightsError: if no best weights were saved.
        """
        with idist.one_rank_first():
            check_validated(self.best.path)
            load_weights(self.autoencoder, self.best.path)
            self._write()

    def _write(self) -> None:
        """Write the autoencoder with the statistics of its latents, unless the file has the same weights."""
        path, pretrained = self.training_run.autoencoder_file, self.training_run.pretrained
        if not self.is_needed:
            pretrained.refuse_other_latents(self.autoencoder, path)  # of another run, which needs its own
        if path.is_file() and _same_weights(self.autoencoder.state_dict(), path, pretrained.frozen is not None):
            load_weights(self.autoencoder, path)
            return
        if pretrained.frozen is None:  # else those that the UNet of the same weights knows
            once = DataLoader(self.dataset.images, self.batch_size, num_workers=self.training_run.num_workers)
            statistics = measure_latent_statistics(self.autoencoder, once, self.training_run.device)
            self.autoencoder.set_latent_statistics(*statistics)
        save_weights(self.autoencoder, path)
        if pretrained.frozen == ENCODER:  # for the model that this decoder becomes a part of
            training = {"images": self.images.fingerprint, "image_count": len(self.dataset.images)}
            write_model_info(path, {"training": training | pretrained.origin})
        logger.info("phase one is finished: %s; train_diffusion (phase two) continues from it", path)

    def twin(self) -> AutoencoderTraining:
        """Return a trainer of the same step with copies of the networks."""
        own = copy.deepcopy({name: self._arguments[name] for name in ("network", "loss", "adversarial")})
        own["equivariance"] = 0.0  # the steps with whole images are the largest
        twin = AutoencoderTraining(**{**self._arguments, **own})
        twin.to_device()
        twin.state.iteration = (
            own["adversarial"].start_step or 0
        ) + 1  # a step with discriminators, which needs more memory
        return twin

    def noise(self, images: int) -> dict[str, Any]:
        """Return a batch of noise for a trial step."""
        size = (self.autoencoder.in_channels, *self.images.image_size)
        return {"image": torch.rand(images, *size), "seed": list(range(images))}

    def _validation_loss(self, pred: Any, image: Tensor) -> Tensor:
        return self.loss_function(pred, image)["loss"]

    def _log(self, out: Sequence[dict[Any, Any]]) -> dict[str, Any]:
        rate = self.optimizer.param_groups[0]["lr"]
        values = {"loss": out[0]["loss"], "lr": rate, **out[0]["terms"]}
        return {f"autoencoder/{name}": value for name, value in values.items()}

    def _draw(self) -> list[Tensor]:
        images = self.val_dataset.images
        shown = [images[index]["image"] for index in range(min(PICTURED, len(images)))]
        return reconstruction_rows(self.autoencoder, torch.stack(shown))


def check_validated(path: Path) -> None:
    """Raise a WeightsError if a phase has saved no best weights."""
    if not path.is_file():
        raise WeightsError(
            f"{path} was never written: no validation of this training had a finite loss. Check the losses in "
            "TensorBoard and val_interval, then start from scratch with --resume false"
        )


def _first_sharp_epoch(adversarial: AdversarialLoss, epoch_length: int) -> int | None:
    if adversarial.start_step is None or not adversarial.weight:
        return None
    return adversarial.start_step // epoch_length + 1


def _pred_and_image(out: dict[str, Any]) -> tuple[Any, Tensor]:
    return out["pred"], out["image"]


def _mean_ssim(pred: Any, image: Tensor) -> Tensor:
    return image_ssim(pred.reconstruction, image).mean()


def _same_weights(state: dict[str, Tensor], path: Path, with_statistics: bool) -> bool:
    try:
        there = torch.load(path, map_location="cpu", weights_only=True)
        names = [name for name in state if with_statistics or not name.startswith("latent_")]
        return all(torch.equal(there[name], state[name].cpu()) for name in names)
    except Exception:  # an unreadable file was not written by phase one
        return False
