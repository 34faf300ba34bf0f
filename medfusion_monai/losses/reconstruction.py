"""The loss of phase one: how far reconstructions are from images, and latents from a unit Gaussian."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.losses.perceptual import StageDistance, load_perceptual_loss
from medfusion_monai.networks.autoencoder import AutoencoderOutput
from medfusion_monai.networks.described import Described, describable
from medfusion_monai.runtime.values import check_counts, check_numbers
from medfusion_monai.weights import efficientnet_lite

logger = logging.getLogger(__name__)


@describable
class ReconstructionLoss(Described, nn.Module):
    """Pixel, perceptual and structural distance at full and at half resolution, plus KL, as published.

    The published loss adds the per-image perceptual and structural distances to every pixel's distance, sums over
    pixels and divides by the batch size; ``reduction="sum"`` returns that number. ``"mean"`` divides it, KL
    included, by the number of values per image, so that gradients do not grow with image size; Adam's steps are the
    same.

    Args:
        pixel_loss: ``l1`` (published for fundus and histology) or ``mse`` (published for chest).
        pixel_weight: weight of the pixel loss.
        perceptual_weight: weight of LPIPS (Zhang et al. 2018) without linear calibration; 0 leaves it out.
        ssim_weight: weight of 1 - SSIM (Wang et al. 2004) of images in [0, 1].
        kl_weight: weight of the posterior's divergence from a unit Gaussian.
        low_weight: weight of the half-resolution output.
        ssim_window: side of the Gaussian window of SSIM; must fit into the half-resolution image.
        perceptual_weights_file: torchvision's VGG-16 weights, as published, see ``load_perceptual_loss``; None compares
            by the first stages of EfficientNet-Lite0, see ``StageDistance``.
        reduction: ``mean`` or ``sum``, see above.

    Raises:
        ValueError: for an unknown pixel loss or reduction, or a weights file that is missing, does not fit or is not
            used.
    """

    not_described = ("perceptual_weights_file",)  # its place does not matter: another file is refused

    def __init__(
        self,
        pixel_loss: Literal["l1", "mse"] = "l1",
        pixel_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        ssim_weight: float = 1.0,
        kl_weight: float = 1.0e-6,
        low_weight: float = 1.0,
        ssim_window: int = 11,
        perceptual_weights_file: str | Path | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        if pixel_loss not in ("l1", "mse"):
            raise ValueError(f"pixel_loss must be 'l1' or 'mse', received {pixel_loss!r}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', received {reduction!r}")
        check_numbers(pixel_weight=pixel_weight, perceptual_weight=perceptual_weight, ssim_weight=ssim_weight)
        check_numbers(kl_weight=kl_weight, low_weight=low_weight)
        check_counts(ssim_window=ssim_window)
        self.pixel_loss = {"l1": F.l1_loss, "mse": F.mse_loss}[pixel_loss]
        self.weights = {"pixel": pixel_weight, "perceptual": perceptual_weight, "ssim": ssim_weight}
        self.kl_weight, self.low_weight = kl_weight, low_weight
        self.ssim_window, self.reduction = ssim_window, reduction
        self.perceptual: nn.Module | None = None
        self.perceptual_network: str | None = None
        """Of the perceptual term, for the description of a training."""
        if perceptual_weights_file is not None and not perceptual_weight:
            raise ValueError(
                f"perceptual_weights_file is {perceptual_weights_file}, but perceptual_weight is 0 (as in demo.yaml): "
                "set it to 1.0, or leave the file out"
            )
        if perceptual_weight:
            vgg = perceptual_weights_file
            self.perceptual = StageDistance() if vgg is None else load_perceptual_loss(vgg)
            self.perceptual_network = efficientnet_lite.NAME if vgg is None else "vgg16"
            logger.info("perceptual term of phase one: %s", self.perceptual_network)

    def forward(self, output: AutoencoderOutput, image: Tensor) -> dict[str, Tensor]:
        """Compare the autoencoder's output with images (B, C, H, W) in [-1, 1].

        Returns:
            Scalars: ``loss`` (the weighted sum) and each weighted term by its name, those of the half
            resolution with the suffix ``_low``.
        """
        batch_size = image.shape[0]
        terms = self._distances(output.reconstruction, image)
        if output.reconstruction_low is not None:
            low_size = output.reconstruction_low.shape[-2:]
            low_image = F.interpolate(image, size=low_size, mode="nearest-exact")
            low_terms = self._distances(output.reconstruction_low, low_image)
            terms |= {f"{name}_low": self.low_weight * value for name, value in low_terms.items()}
        terms = {name: value / batch_size for name, value in terms.items()}
        if output.posterior is not None:
            terms["kl"] = self.kl_weight * output.posterior.kl()
        terms = {name: value / self.scale(image) for name, value in terms.items()}
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def scale(self, image: Tensor) -> float:
        """Return the divisor of the loss of images (B, C, H, W) after summing over pixels."""
        return float(image[0].numel()) if self.reduction == "mean" else 1.0

    def _distances(self, prediction: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Weighted distances, summed over the pixels of all images."""
        size = image[0].numel()
        terms = {"pixel": self.weights["pixel"] * self.pixel_loss(prediction, image, reduction="sum")}
        if self.weights["ssim"]:
            similarity = image_ssim(prediction, image, self.ssim_window)
            terms["ssim"] = self.weights["ssim"] * size * (1.0 - similarity).sum()
        if self.perceptual is not None:
            rgb = (3 // image.shape[1], 1, 1)  # a gray image is repeated
            distance = self.perceptual(prediction.repeat(1, *rgb), image.repeat(1, *rgb))
            terms["perceptual"] = self.weights["perceptual"] * size * distance.sum()
        return terms


def to_unit(image: Tensor) -> Tensor:
    """Map images from about [-1, 1] to [0, 1], clipping values outside."""
    return (image * 0.5 + 0.5).clamp(0.0, 1.0)


def structural_similarity(prediction: Tensor, image: Tensor, window: int = 11) -> Tensor:
    """SSIM of images (B, C, H, W) in [0, 1], one value per image (B,), with a Gaussian window of sigma 1.5.

    Negative values of a channel count as 0, as in the published loss.

    Raises:
        ValueError: if the window is larger than the images.
    """
    if window > min(image.shape[-2:]):
        raise ValueError(f"an SSIM window of {window} does not fit into images of {tuple(image.shape[-2:])} pixels")
    similarity, _ = compute_ssim_and_cs(prediction, image, 2, [window] * 2, [1.5] * 2)
    return similarity.flatten(2).mean(dim=2).clamp(min=0.0).mean(dim=1)


def image_ssim(prediction: Tensor, image: Tensor, window: int = 11) -> Tensor:
    """SSIM (B,) of images (B, C, H, W) in about [-1, 1]."""
    return structural_similarity(to_unit(prediction), to_unit(image), window)
