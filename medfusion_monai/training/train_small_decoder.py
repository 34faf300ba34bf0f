"""The phase ``train_small_decoder``, from top to bottom: a small decoder learns to imitate that of trained weights.

Data, step (that of phase one, with another network), validation, handlers, and the file beside the weights.
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
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from medfusion_monai.losses.reconstruction import ReconstructionLoss, image_ssim, to_unit
from medfusion_monai.networks.autoencoder import AutoencoderOutput
from medfusion_monai.networks.described import describe
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.small_decoder import SmallDecoder
from medfusion_monai.runtime.distributed import world_size
from medfusion_monai.runtime.memory_format import lay_out, lay_out_autoencoder
from medfusion_monai.training.autoencoder_step import AutoencoderTrainer
from medfusion_monai.training.handlers.checkpoint import BestWeights
from medfusion_monai.training.handlers.image_grid import evaluation_mode
from medfusion_monai.training.handlers.stop_on_signal import StopOnSignal
from medfusion_monai.training.latent_dataset import LatentDataset
from medfusion_monai.training.learning_rate import Adam
from medfusion_monai.training.preflight.disk import ADAM, COPIES, num_bytes
from medfusion_monai.training.preflight.run_checks import is_rehearsal
from medfusion_monai.training.prepare_batch import DistillationPrepareBatch
from medfusion_monai.training.run import Phase, TrainingRun
from medfusion_monai.training.train_autoencoder import PICTURED, check_validated
from medfusion_monai.training.training_images import TrainingImages
from medfusion_monai.weights.decoder_file import NAME, save_small_decoder
from medfusion_monai.weights.state_dict import load_weights

logger = logging.getLogger(__name__)


class SmallDecoderTraining(AutoencoderTrainer):
    """Trains a small decoder and writes ``small_decoder.safetensors``; ``run`` does everything, or resumes.

    Inputs are latents drawn as phase two draws them, targets what the autoencoder decodes them to: unlike the original
    image, that is a function of the latents.

    Args:
        run: what all phases share.
        images: the datalist.
        network: the model whose decoder is imitated, with its weights.
        decoder: learns from it.
        dataset: images to train on.
        val_dataset: images to validate on.
        loss: between the images of both decoders.
        optimizer: of the small decoder.
        max_epochs: of the training.
        steps: of the training.
        val_interval: steps of an epoch, which ends with a validation.
        batch_size: images per step and process.
        train_handlers: further handlers of the trainer, attached before its checkpoints.
        val_handlers: further handlers of the evaluator.

    Raises:
        ValueError: if the decoder does not fit the autoencoder's latents and images.
    """

    phase = "small_decoder"
    picture_rows = 3
    latent_folders: Sequence[Path] = ()

    def __init__(
        self,
        run: TrainingRun,
        images: TrainingImages,
        network: Medfusion,
        decoder: SmallDecoder,
        dataset: LatentDataset,
        val_dataset: LatentDataset,
        loss: ReconstructionLoss,
        optimizer: Adam,
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
        self.autoencoder = network.autoencoder.requires_grad_(False)
        self.decoder = lay_out(decoder, True)  # faster on CPUs at any width, as it has no normalisation
        _refuse_other_factor(decoder, network)
        built, self.lr_scheduler = optimizer.build(decoder.parameters(), steps)
        self.best = BestWeights(run.ckpt_dir / "small_decoder_best.pt", decoder, "small_decoder_val_loss")
        dtype = torch.float32 if run.dtype is torch.float16 else run.dtype  # the step does not scale losses
        super().__init__(
            max_epochs=max_epochs,
            epoch_length=min(val_interval, steps),
            train_data_loader=[],  # see _prepare
            network=decoder,
            optimizer=built,
            loss_function=loss,
            dtype=dtype,
            inferer=DecoderInferer(),
            prepare_batch=DistillationPrepareBatch(self.autoencoder, dtype),
            **run.engine_options,
        )
        measured: dict[str, Any] = {"output_transform": _pred_and_target, "device": run.device}
        self.evaluator = SupervisedEvaluator(
            val_data_loader=[],
            key_val_metric={"small_decoder_val_loss": Loss(self._validation_loss, **measured)},
            additional_metrics={"small_decoder_val_ssim": Loss(_mean_ssim, **measured)},
            metric_cmp_fn=operator.lt,
            inferer=DecoderInferer(),
            prepare_batch=DistillationPrepareBatch(self.autoencoder),
            network=decoder,
            **run.engine_options,
        )
        self._stop: StopOnSignal | None = None

    @property
    def is_begun(self) -> bool:
        """Whether the phase continues from a checkpoint."""
        return self.training_run.is_begun(self.phase)

    @property
    def decoder_file(self) -> Path:
        """Where the trained decoder goes."""
        return self.training_run.model_dir / NAME

    def run(self) -> None:  # type: ignore[override]  # as MONAI's trainers
        """Train or resume until the last step, then write the best weights."""
        if is_rehearsal():
            return
        stop = self._prepare()
        self.training_run.train(self, stop, super().run)
        check_validated(self.best.path)
        if self.training_run.is_first:
            self._write()

    def to_device(self) -> None:
        """Move everything that a step needs to the device."""
        parts: tuple[Any, ...] = (self.autoencoder, self.decoder, self.loss_function)
        for part in parts:
            part.to(self.training_run.device)
        lay_out_autoencoder(self._arguments["network"], self.training_run.device, self.dtype)

    def _prepare(self) -> StopOnSignal:
        """Open the data and attach the handlers, once."""
        if self._stop is not None:
            return self._stop
        self.to_device()
        run = self.training_run
        sampler = run.open_images(self)
        self._stop = run.attach(
            self,
            Phase(
                title="small decoder",
                network=self.decoder,
                lr_scheduler=self.lr_scheduler,
                log=self._log,
                draw=self._draw,
                picture="decoded",
                objects={
                    "network": self.decoder,
                    "optimizer": self.optimizer,
                    "lr_scheduler": self.lr_scheduler,
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

    def files(self) -> dict[Path, int]:
        """Return the bytes that the training writes, by file: checkpoints and weights."""
        size = num_bytes(self.decoder)
        return {
            self.training_run.checkpoint_file(self.phase): COPIES * (1 + ADAM) * size,
            self.best.path: 2 * size,
            self.decoder_file: 2 * size,
        }

    def twin(self) -> SmallDecoderTraining:
        """Return a trainer of the same step with a copy of the decoder."""
        own = copy.deepcopy({name: self._arguments[name] for name in ("decoder", "loss")})
        twin = SmallDecoderTraining(**{**self._arguments, **own})
        twin.to_device()
        return twin

    def noise(self, images: int) -> dict[str, Any]:
        """Return a batch of noise for a trial step."""
        shape = (self.autoencoder.in_channels, *self.images.image_size)
        return {"image": torch.rand(images, *shape), "seed": list(range(images))}

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a run must share with the checkpoint it resumes from."""
        return {
            **self.dataset.settings(self.training_run, self.images),
            "random_transforms": self.dataset.random_settings,
            "val_interval": self._arguments["val_interval"],
            "decoder": describe(self.decoder),
            "loss": describe(self._arguments["loss"]),
            "perceptual_network": self._arguments["loss"].perceptual_network,
        }

    def _write(self) -> None:
        load_weights(self.decoder, self.best.path)
        training = {
            "images": self.images.fingerprint,
            "image_count": len(self.dataset.images),
            "steps": self.state.iteration,
            "images_per_step": self.batch_size * world_size(),
            **self.training_run.pretrained.origin,
        }
        save_small_decoder(self.decoder, self.decoder_file, self.autoencoder, training)
        command = "python -m monai.bundle run inference --config_file configs/inference.yaml --decoder"
        logger.info("the small decoder is finished: %s; to sample with it: %s small", self.decoder_file, command)

    def _validation_loss(self, pred: Any, target: Tensor) -> Tensor:
        return self.loss_function(pred, target)["loss"]

    def _log(self, out: Sequence[dict[Any, Any]]) -> dict[str, Any]:
        values = {"loss": out[0]["loss"], "lr": self.optimizer.param_groups[0]["lr"], **out[0]["terms"]}
        return {f"small_decoder/{name}": value for name, value in values.items()}

    @torch.no_grad()
    def _draw(self) -> list[Tensor]:
        """Return images of the full decoder, of the small one, and their absolute differences times four."""
        device, images = self.training_run.device, self.val_dataset.images
        shown = torch.stack([images[index]["image"] for index in range(min(PICTURED, len(images)))])
        latents = self.autoencoder.eval().encode(shown.to(device) * 2.0 - 1.0).mode()
        with evaluation_mode(self.decoder):
            small = to_unit(self.decoder(self.autoencoder.normalize(latents))).cpu()
        full = to_unit(self.autoencoder.decode(latents)).cpu()
        return [full, small, (4.0 * (small - full).abs()).clamp(max=1.0)]


class DecoderInferer(Inferer):
    """Calls a decoder and gives its images the form of an autoencoder's output, for trainer and losses of phase one."""

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> AutoencoderOutput:  # type: ignore[override]
        """Decode latents (B, L, h, w)."""
        return AutoencoderOutput(network(inputs), None, None)


def _refuse_other_factor(decoder: SmallDecoder, network: Medfusion) -> None:
    own, other = decoder.downsampling_factor, network.autoencoder.downsampling_factor
    if own != other:
        raise ValueError(
            f"small_decoder_channels has {len(decoder.blocks)} levels, which enlarge latents {own} times, but the "
            f"autoencoder reduces images {other} times: name one level per factor of 2"
        )


def _pred_and_target(out: dict[str, Any]) -> tuple[Any, Tensor]:
    return out["pred"], out["label"]


def _mean_ssim(pred: Any, image: Tensor) -> Tensor:
    return image_ssim(pred.reconstruction, image).mean()
