"""Building blocks of autoencoder and UNet: residual block, attention, and resampling between levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters of a module to zero, so that its branch initially adds nothing, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class SubBlock(nn.Module):
    """Convolution, group norm, SiLU, plus a skip around all three.

    The skip is the identity, or a 1x1 convolution if the channels differ.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        norm_groups: groups of the normalisation; must divide ``out_channels``.
        zero_start: start the convolution at zero.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int = 8, zero_start: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(norm_groups, out_channels)
        self.act = nn.SiLU()
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        if zero_start:
            zero_init(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.act(self.norm(self.conv(x))) + self.skip(x)


class ResidualBlock(nn.Module):
    """Two sub-blocks; an embedding, if given, is added between them.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        norm_groups: groups of the normalisations.
        embedding_channels: size of the conditioning vector, or None for an unconditional block.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm_groups: int = 8, embedding_channels: int | None = None
    ) -> None:
        super().__init__()
        self.first = SubBlock(in_channels, out_channels, norm_groups)
        self.second = SubBlock(out_channels, out_channels, norm_groups, zero_start=True)
        self.embed = None
        if embedding_channels is not None:
            self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, out_channels))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map (B, in_channels, H, W), and an embedding (B, E) if built for one, to (B, out_channels, H, W)."""
        x = self.first(x)
        if self.embed is not None and embedding is not None:
            x = x + self.embed(embedding)[:, :, None, None]
        return self.second(x)


class SelfAttention(nn.Module):
    """Self-attention over the positions of a feature map (Vaswani et al. 2017, section 3.2), with a skip connection.

    The output projection starts at zero: a new network computes the same with and without attention.

    Args:
        channels: channels of input and output; heads have the largest width up to 64 that divides them.
        norm_groups: groups of the preceding normalisation; must divide ``channels``.
    """

    def __init__(self, channels: int, norm_groups: int = 8) -> None:
        super().__init__()
        self.head_channels = next(width for width in range(min(64, channels), 0, -1) if channels % width == 0)
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(batch, 3, -1, self.head_channels, height * width)
        query, key, value = qkv.transpose(3, 4).unbind(1)  # (B, heads, H*W, head_channels) each
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.to_out(attended.transpose(2, 3).reshape(batch, channels, height, width))


class Downsample(nn.Conv2d):
    """Halve height and width by a strided 3x3 convolution that may change the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2, padding=1)


class Upsample(nn.Module):
    """Double height and width by nearest neighbours, then a 3x3 convolution that may change the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, 2H, 2W)."""
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def timestep_embedding(timesteps: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of the timestep, sines first (Vaswani et al. 2017, section 3.5).

    Args:
        timesteps: (B,), integers or floats.
        channels: even number of values per timestep, at least 4.
        max_period: longest wavelength over 2 pi.

    Returns:
        (B, channels), float32.
    """
    half = channels // 2
    exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / (half - 1)
    angles = timesteps.float()[:, None] * torch.pow(max_period, -exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
