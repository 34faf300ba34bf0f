"""The least that a step can take: its operations and bytes over what the machine measures for each.

Operations count a multiplication and an addition as two. They are those of convolutions and matrix products; the
bytes are those of weights, gradients and optimizer, and of each activation written once and read once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from common import Size, build, synchronize
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

GIGA = 1e9
OPTIMIZER_BYTES = 28
"""AdamW in one pass reads weight, gradient and two moments and writes three of them, 4 bytes each."""
AVERAGE_BYTES = 12
"""Averaged weights: two are read and one written."""
CLIPPING_BYTES = 12
"""Gradient clipping: gradients are read for their norm, then read and written."""


@dataclass(frozen=True)
class Work:
    """What an image costs.

    Attributes:
        unet: operations of one call of the UNet, in 10^9.
        encode: of encoding an image.
        decode: of decoding one.
        weights: weights of the UNet.
        activations: values that layers of the UNet write in one call.
    """

    unet: float
    encode: float
    decode: float
    weights: int
    activations: int


def count_work(size: Size) -> Work:
    """Count operations and values of one image by running the networks without data."""
    with torch.device("meta"):
        network = build(size, torch.device("meta"), randomize=False)
        latents, image = torch.zeros(1, *size.latent_shape), torch.zeros(1, *size.image_shape)
        index = torch.zeros(1, dtype=torch.long)
        values = 0

        def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal values
            values += output.numel()

        for module in network.unet.modules():
            if not list(module.children()):
                module.register_forward_hook(add)
        unet = _operations(lambda: network.unet(latents, timesteps=index, class_labels=index))
        encode = _operations(lambda: network.autoencoder.encode(image))
        decode = _operations(lambda: network.autoencoder.decode(latents))
    return Work(unet, encode, decode, sum(weight.numel() for weight in network.unet.parameters()), values)


def _operations(procedure: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        procedure()
    return counter.get_total_flops() / GIGA


@dataclass(frozen=True)
class Rates:
    """What the machine reaches.

    Attributes:
        operations: 10^9 operations a second by type, the better of a matrix product and a convolution.
        details: the rates of both by type.
        bandwidth: 10^9 bytes a second, read and written together.
    """

    operations: Mapping[str, float]
    details: Mapping[str, float]
    bandwidth: float


def measure_rates(device: torch.device, types: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> Rates:
    """Measure operations and bytes a second, each the best of several calls."""
    details: dict[str, float] = {}
    operations: dict[str, float] = {}
    for dtype in types:
        name = str(dtype).removeprefix("torch.")
        products = _rate(*_matrix_product(device, dtype), device)
        convolutions = _rate(*_convolution(device, dtype), device)
        details |= {f"{name} matrix product": products, f"{name} convolution": convolutions}
        operations[name] = max(products, convolutions)
    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    bandwidth = _rate(lambda: target.copy_(source), 2 * source.numel() * source.element_size() / GIGA, device)
    return Rates(operations, details, bandwidth)


def _matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    side = 8192 if device.type == "cuda" else 1536
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return lambda: matrix @ matrix, 2 * side**3 / GIGA


def _convolution(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Return one of the UNet's own shapes: 3x3, 512 channels of 16x16."""
    count, channels, side = (256 if device.type == "cuda" else 4), 512, 16
    layer = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype).to(
        memory_format=torch.channels_last
    )
    x = torch.randn(count, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return torch.no_grad()(lambda: layer(x)), 2 * count * channels**2 * 9 * side**2 / GIGA


def _rate(procedure: Callable[[], object], amount: float, device: torch.device, tries: int = 8) -> float:
    best = float("inf")
    for _ in range(tries + 1):  # the first warms up
        synchronize(device)
        start = time.perf_counter()
        procedure()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return amount / best


def training_floor(work: Work, rates: Rates, dtype: str, batch: int, encodes: bool, averages: bool) -> dict[str, float]:
    """Least seconds an image of training: by operations and by bytes, the backward pass costing two forward ones.

    Args:
        work: of an image.
        rates: of the machine.
        dtype: that the UNet computes in.
        batch: images a step.
        encodes: whether every image is encoded at every step, in float32.
        averages: whether gradients are clipped and averaged weights kept.
    """
    operations = 3 * work.unet / rates.operations[dtype]
    operations += work.encode / rates.operations["float32"] if encodes else 0.0
    a_step = work.weights * (OPTIMIZER_BYTES + (AVERAGE_BYTES + CLIPPING_BYTES if averages else 0))
    an_image = 3 * 2 * work.activations * (4 if dtype == "float32" else 2)
    return {"operations": operations, "bytes": (a_step / batch + an_image) / GIGA / rates.bandwidth}


def sampling_floor(
    work: Work, rates: Rates, dtype: str, batch: int, calls: int, calls_together: int
) -> dict[str, float]:
    """Least seconds an image of sampling.

    Args:
        work: of an image.
        rates: of the machine.
        dtype: that networks compute in.
        batch: images sampled together.
        calls: of the UNet for each image.
        calls_together: of them in one batch, which read the weights once.
    """
    width = 4 if dtype == "float32" else 2
    operations = (calls * work.unet + work.decode) / rates.operations[dtype]
    values = calls * (2 * work.activations + work.weights / (batch * calls_together))
    return {"operations": operations, "bytes": values * width / GIGA / rates.bandwidth}


def print_floors(floor: dict[str, Any]) -> None:
    """Print what the machine does and what is least."""
    work, rates = floor["work"], floor["rates"]
    print(
        f"operations (10^9, an addition and a multiplication are two): UNet {work['unet']:.1f}, "
        f"encode {work['encode']:.1f}, decode {work['decode']:.1f}"
    )
    rows = [f"{name} {rate:.0f}" for name, rate in rates["details"].items()]
    print(f"machine, 10^9 a second: {', '.join(rows)}, bytes {rates['bandwidth']:.0f}")
    for name, least in floor["seconds_an_image"].items():
        print(
            f"{name}: least {least['operations']:.4f} s an image by operations, {least['bytes']:.4f} by bytes; "
            f"measured {floor['measured'][name]:.4f}"
        )
