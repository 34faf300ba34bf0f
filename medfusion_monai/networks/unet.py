"""The second stage: a UNet that estimates the noise in latents, given the timestep and a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfusion_monai.networks.autoencoder import check_widths
from medfusion_monai.networks.blocks import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    timestep_embedding,
    zero_init,
)
from medfusion_monai.networks.described import Described, describable
from medfusion_monai.runtime.values import check_bool

NO_LABEL = -1
"""The label of a sample whose label is dropped or unknown: nothing is added to its time embedding."""


@describable
class UNet(Described, nn.Module):
    """Denoising UNet of Medfusion; 194.35 M weights and no attention as published.

    Called like MONAI's ``DiffusionModelUNet``.

    Args:
        in_channels: channels of the latents.
        out_channels: channels of the estimate; ``in_channels`` if None.
        channels: width of the input convolution, then of each level; each level after the first halves
            height and width.
        num_res_blocks: residual blocks per level on the way down; the way up has one more.
        num_classes: number of labels, or None for an unconditional network.
        embedding_channels: size of the vector that carries timestep and label.
        time_channels: number of sinusoids of the timestep, even; None for a quarter of ``embedding_channels``.
        norm_groups: groups of the normalisations.
        attention: self-attention at the lowest resolution, between the two middle blocks.
        gradient_checkpointing: in training, keep only the inputs of residual blocks and recompute the rest in the
            backward pass: less memory for about a third more time, the same gradients.

    Raises:
        ValueError: if ``norm_groups`` does not divide a width, ``embedding_channels`` is not a multiple of 8,
            ``time_channels`` is odd or below 4, or a switch is not true or false.
    """

    not_described = ("gradient_checkpointing",)

    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int | None = None,
        channels: Sequence[int] = (256, 256, 512, 1024),
        num_res_blocks: int = 2,
        num_classes: int | None = 2,
        embedding_channels: int = 1024,
        time_channels: int | None = None,
        norm_groups: int = 32,
        attention: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_widths(channels, norm_groups)
        if embedding_channels < 16 or embedding_channels % 8:
            raise ValueError(f"embedding_channels must be a multiple of 8, at least 16, received {embedding_channels}")
        check_bool(attention=attention, gradient_checkpointing=gradient_checkpointing)
        self.num_classes, self.gradient_checkpointing = num_classes, gradient_checkpointing
        self.time_channels = embedding_channels // 4 if time_channels is None else time_channels
        if self.time_channels < 4 or self.time_channels % 2:
            raise ValueError(f"time_channels must be an even number, at least 4, received {time_channels}")
        self.time_embedding = nn.Sequential(
            nn.Linear(self.time_channels, embedding_channels),
            nn.SiLU(),
            nn.Linear(embedding_channels, embedding_channels),
        )
        self.class_embedding = nn.Embedding(num_classes, embedding_channels) if num_classes else None

        def block(a: int, b: int) -> ResidualBlock:
            return ResidualBlock(a, b, norm_groups, embedding_channels)

        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        skips, width, num_levels = [channels[0]], channels[0], len(channels) - 1
        self.down_blocks = nn.ModuleList()
        for level in range(1, num_levels + 1):
            for _ in range(num_res_blocks):
                self.down_blocks.append(block(width, channels[level]))
                width = channels[level]
                skips.append(width)
            if level < num_levels:
                self.down_blocks.append(Downsample(width, width))
                skips.append(width)
        self.middle = nn.ModuleList([block(width, width), block(width, width)])
        self.up_blocks = nn.ModuleList()
        for level in range(num_levels, 0, -1):
            for index in range(num_res_blocks + 1):
                last = index == num_res_blocks
                next_width = channels[level - 1] if last else channels[level]
                self.up_blocks.append(block(width + skips.pop(), next_width))
                width = next_width
            if level > 1:
                self.up_blocks.append(Upsample(width, width))
        self.conv_out = zero_init(nn.Conv2d(width, out_channels or in_channels, 1))
        # Created last, so that a seed initialises all other weights alike with and without it.
        self.attention = SelfAttention(channels[-1], norm_groups) if attention else None

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in noisy latents, or whatever the schedule's prediction type is.

        Args:
            x: noisy latents (B, in_channels, h, w).
            timesteps: (B,).
            context: unsupported, for MONAI's order of arguments; must be None.
            class_labels: (B,) integers, ``NO_LABEL`` (or any negative) for a sample without one; None for no labels.

        Returns:
            (B, out_channels, h, w).

        Raises:
            ValueError: if a context is given, or labels to a network without classes.
        """
        if context is not None:
            raise ValueError("UNet has no cross-attention: pass class_labels and leave context None")
        embedding = self.embed(timesteps, class_labels)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = self._run(block, x, embedding) if isinstance(block, ResidualBlock) else block(x)
            skips.append(x)
        x = self._run(self.middle[0], x, embedding)
        if self.attention is not None:
            x = self._run(self.attention, x)
        x = self._run(self.middle[1], x, embedding)
        for block in self.up_blocks:
            if isinstance(block, ResidualBlock):
                x = self._run(block, torch.cat([x, skips.pop()], dim=1), embedding)
            else:  # odd sizes were rounded up on the way down
                height, width = skips[-1].shape[-2:]
                x = block(x)[..., :height, :width]
        return self.conv_out(x)

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            output: Any = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            return output
        return block(*inputs)

    def embed(self, timesteps: Tensor, class_labels: Tensor | None) -> Tensor:
        """Return the conditioning vectors (B, embedding_channels) of timesteps (B,) and labels (B,)."""
        sinusoids = timestep_embedding(timesteps, self.time_channels)
        embedding = self.time_embedding(sinusoids.to(self.conv_in.weight.dtype))
        if class_labels is None:
            return embedding
        if self.class_embedding is None:
            raise ValueError("class_labels were given to a UNet that was built with num_classes=None")
        known = (class_labels >= 0)[:, None]
        return embedding + self.class_embedding(class_labels.clamp(min=0)) * known
