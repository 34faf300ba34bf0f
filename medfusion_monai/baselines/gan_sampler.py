"""The inferer of a GAN: labels and seeds in, images out, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor

from medfusion_monai.baselines.gan import Gan
from medfusion_monai.networks.described import description_digest
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.runtime.seeds import generators, randn


class GanSampler(Inferer):
    """Samples images from a ``Gan``; an image depends only on weights, label and seed.

    Args:
        dtype: of the network's convolutions and matrix products, by autocast.
    """

    guide = None

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def settings(self) -> dict[str, Any]:
        """Return the settings of a sample as plain data."""
        return {"sampler": "gan", "num_inference_steps": 1}

    def identity(self, network: Gan) -> dict[str, Any]:
        """Return what identifies the networks of a sample, as plain data."""
        return {"networks": description_digest(network.generator)}

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: Gan, seeds: Sequence[int] | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Sample images (B, C, H, W) in [0, 1], float32.

        Args:
            inputs: labels (B,), integers.
            network: with its weights.
            seeds: one per sample; drawn from the global random state if None.
            args: ignored, for the interface of MONAI's inferers.
            kwargs: ignored likewise.

        Raises:
            ValueError: for anything but integers of shape (B,).
        """
        if inputs.ndim != 1 or inputs.is_floating_point():
            raise ValueError(
                f"a GAN samples images from labels, integers of shape (B,), but received {inputs.dtype} of shape "
                f"{tuple(inputs.shape)}: it reconstructs no images"
            )
        if seeds is None:
            seeds = [int(seed) for seed in torch.randint(2**62, inputs.shape[:1])]
        noise = randn((network.generator.noise_channels,), generators(seeds), inputs.device)
        with autocast(inputs.device, self.dtype):
            images = network(noise, class_labels=inputs).float()
        return (images * 0.5 + 0.5).clamp(0.0, 1.0)
