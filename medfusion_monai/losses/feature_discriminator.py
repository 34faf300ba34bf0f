"""Discriminator on the features of a trained network, for the adversarial phase."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.networks.blocks import zero_init
from medfusion_monai.networks.described import Described, describable
from medfusion_monai.weights.efficientnet_lite import load_efficientnet_lite_stages

STAGES = {0: 16, 1: 24, 2: 40, 4: 112, 6: 320}
"""Channels of the stages of EfficientNet-Lite0 that are judged, by number: the last of each height and width."""


@describable
class FeatureDiscriminator(Described, nn.Module):
    """Judges images by features of EfficientNet-Lite0, which knows natural images (Sauer et al. 2021, Projected GANs).

    Five stages reduce height and width 2 to 32 times; small trained heads say where each looks real, and all stages
    count the same. The network itself is frozen; gradients reach the images. Of the paper's random projections and
    augmentation there are none: a decoder imitates one image at a time, so it cannot lose modes, and its discriminator
    sees the original of each reconstruction.

    Args:
        width: most channels of a head; divisible by 8.

    Raises:
        WeightsError: if the weights of EfficientNet-Lite0 are missing.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = load_efficientnet_lite_stages()
        self.heads = nn.ModuleDict({str(stage): _head(channels, width) for stage, channels in STAGES.items()})

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 5, H/2, W/2), high where a stage looks real, for images (B, 1 or 3, H, W) in [-1, 1]."""
        image = image.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        logits: list[Tensor] = []
        for number, stage in enumerate(self.features):
            image = stage(image)
            if number in STAGES:
                logits.append(self.heads[str(number)](image))
        return torch.cat([F.interpolate(each, size=logits[0].shape[-2:]) for each in logits], dim=1)

    def train(self, mode: bool = True) -> FeatureDiscriminator:
        """Set the mode of the heads; the features stay in evaluation mode."""
        super().train(mode)
        self.features.train(False)
        return self


def _head(channels: int, width: int) -> nn.Sequential:
    width = min(width, 2 * channels)
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.GroupNorm(8, width),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GroupNorm(8, width),
        nn.SiLU(),
        zero_init(nn.Conv2d(width, 1, 1)),
    )
