"""This project's training and sampling, as its bundles put them together."""

from __future__ import annotations

import torch
from common import Size
from monai.engines.trainer import SupervisedTrainer
from torch import Tensor
from torch.profiler import record_function

from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.small_decoder import SmallDecoder
from medfusion_monai.runtime.dtype import autocast, choose_precision, precision_name
from medfusion_monai.runtime.memory_format import choose_channels_last, lay_out, lay_out_autoencoder
from medfusion_monai.training.diffusion_step import DiffusionStep
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.handlers.non_finite_loss import StopOnNonFiniteLoss
from medfusion_monai.training.learning_rate import AdamW
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch


def laid_out(size: Size, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the configs have channels lie together."""
    return choose_channels_last(size.settings["channels_last"], device, dtype, size.settings["unet_channels"])


class OurTraining:
    """A step of phase two by MONAI's trainer with this project's parts, as ``train.yaml`` wires them.

    Args:
        network: both networks; the UNet is trained.
        size: whose settings hold where none are given here.
        device: where to compute.
        precision: ``auto`` or a type.
        micro_batch: images at a time.
        averages: keep averaged weights, which the published runs did not.
        eight_bit_moments: of AdamW.
    """

    def __init__(
        self,
        network: Medfusion,
        size: Size,
        device: torch.device,
        precision: str | None = None,
        micro_batch: int | None = None,
        averages: bool = True,
        eight_bit_moments: bool = False,
    ) -> None:
        settings = size.settings
        dtype = choose_precision(precision or settings["precision"], device)
        self.network, self.precision = network, precision_name(dtype)
        self.micro_batch = micro_batch or settings.get("micro_batch_size")
        unet = lay_out(network.unet, laid_out(size, device, dtype))
        schedule = NoiseSchedule(prediction_type=settings["prediction_type"]).to(device)
        self.step = DiffusionStep(self.micro_batch, dtype)
        self.average = AveragedWeights(unet) if averages else None
        optimizer = AdamW(lr=settings["diffusion_lr"], warmup_steps=0, eight_bit_moments=eight_bit_moments)
        self.trainer = SupervisedTrainer(
            device=device,
            max_epochs=1,
            train_data_loader=[],
            network=unet,
            optimizer=optimizer.build(unet.parameters(), total_steps=1)[0],
            loss_function=DiffusionLoss(schedule, settings["diffusion_loss"], settings["loss_weighting"]),
            prepare_batch=DiffusionPrepareBatch(network.autoencoder, schedule),
            iteration_update=self.step,
            decollate=False,
            non_blocking=True,
            train_handlers=[StopOnNonFiniteLoss(unet, settings["max_grad_norm"], wait=device.type != "cuda")],
        )

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Take a step on ``moments`` (B, 2C, h, w), ``label`` and ``seed``, and give the loss."""
        self.trainer.state.iteration += 1
        self.trainer.state.output = self.step(self.trainer, batch)
        if self.average is not None:
            with record_function("averaged weights"):
                self.average.update()
        return self.trainer.state.output["loss"]


class OurSampling:
    """Sampling by the bundles' inferer, with its settings.

    Args:
        network: both networks.
        size: whose settings hold where none are given here.
        count: images B at a time.
        device: where to compute.
        precision: ``auto`` or a type.
        num_inference_steps: steps.
        distilled: as weights that are tuned for few steps, whose guidance takes no second call.
        small_decoder: as with ``--decoder small``.
    """

    def __init__(
        self,
        network: Medfusion,
        size: Size,
        count: int,
        device: torch.device,
        precision: str | None = None,
        num_inference_steps: int | None = None,
        distilled: bool = False,
        small_decoder: bool = False,
    ) -> None:
        settings = size.settings
        self.dtype = choose_precision(precision or settings["precision"], device)
        self.precision = precision_name(self.dtype)
        self.latent_shape, self.device = size.latent_shape, device
        self.sampler, self.spacing = settings["sampler"], settings["spacing"]
        if distilled:
            self.sampler, self.spacing = "distilled", "logsnr"
        self.decoder: SmallDecoder | None = None
        if small_decoder:
            channels = network.autoencoder.latent_channels, network.autoencoder.in_channels
            self.decoder = lay_out(SmallDecoder(*channels), True).to(device).eval()
        wanted = num_inference_steps or settings["num_inference_steps"]
        self.num_inference_steps = self._inferer(1.0, wanted).num_inference_steps
        self.network = lay_out(network, laid_out(size, device, self.dtype))
        lay_out_autoencoder(self.network, device, self.dtype)
        self.class_labels, self.seeds = torch.arange(count, device=device) % 2, list(range(count))
        self.noise = torch.randn(count, *size.latent_shape, device=device)

    def _inferer(self, guidance_scale: float, num_inference_steps: int | None) -> LatentDiffusionSampler:
        return LatentDiffusionSampler(
            NoiseSchedule(),
            self.latent_shape,
            num_inference_steps,
            guidance_scale,
            sampler=self.sampler,
            spacing=self.spacing,
            dtype=self.dtype,
            decoder=self.decoder,
        )

    def latents(self, guidance_scale: float, num_inference_steps: int) -> Tensor:
        """Sample latents (B, C, h, w)."""
        inferer = self._inferer(guidance_scale, num_inference_steps)
        return inferer.sample_latents(self.class_labels, self.network, self.seeds)

    @torch.no_grad()
    def images(self) -> Tensor:
        """Decode noise to images (B, C, H, W) in [0, 1] on the host."""
        decode = self.decoder or self.network.autoencoder.decode_stage_2_outputs
        with autocast(self.device, self.dtype):
            images = decode(self.noise)
        return (images.float() * 0.5 + 0.5).clamp(0.0, 1.0).cpu()

    def __call__(self, guidance_scale: float) -> Tensor:
        """Sample images (B, C, H, W) in [0, 1] on the host."""
        inferer = self._inferer(guidance_scale, self.num_inference_steps)
        return inferer(self.class_labels, self.network, self.seeds).cpu()
