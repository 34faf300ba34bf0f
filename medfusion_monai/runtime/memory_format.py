"""How networks are computed: memory format and compilation. What they compute, and their state dicts, stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

WIDE = 256
"""Narrowest level from which convolutions on a CPU gain more from channels_last than normalisations lose."""


def choose_channels_last(
    choice: bool | str, device: torch.device | str, dtype: torch.dtype, widths: Sequence[int]
) -> bool:
    """Whether a network's values should lie in memory with their channels together.

    ``auto`` is yes where that was measured to be faster: in bfloat16 on CPUs, in networks as wide as published.

    Args:
        choice: true, false or ``auto``.
        device: where the network runs.
        dtype: of ``choose_precision``.
        widths: channels per level.

    Raises:
        ValueError: for another choice.
    """
    if isinstance(choice, bool):
        return choice
    if choice != "auto":
        raise ValueError(f"channels_last must be true, false or auto, received {choice!r}")
    return torch.device(device).type == "cpu" and dtype is torch.bfloat16 and min(widths) >= WIDE


def widths(network: nn.Module) -> list[int]:
    """Return the output channels of a network's convolutions, but for the last, whose are those of its output."""
    return [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)][:-1] or [0]


def lay_out(network: Network, channels_last: bool) -> Network:
    """Have the weights lie with their channels together, if wished; convolutions then keep their outputs so.

    Do this before the optimizer is made. Weights are saved and loaded with either layout.
    """
    return network.to(memory_format=torch.channels_last) if channels_last else network


def lay_out_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimizer's averages lie in memory as their weights do.

    A restart brings averages as they lay when they were saved. Fused optimizers go through memory from end to end, and
    would take the average of one weight for that of another without an error.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_ready(
    network: nn.Module,
    device: torch.device | str,
    dtype: torch.dtype,
    channels_last: bool | str = "auto",
    compiled: bool = False,
) -> None:
    """Bring a ``Medfusion`` to where and how it will be sampled.

    Args:
        network: changed in place.
        device: where to.
        dtype: in which it will compute.
        channels_last: of ``choose_channels_last``.
        compiled: whether its UNet is compiled.
    """
    unet: Any = network.unet
    lay_out(network.to(device), choose_channels_last(channels_last, device, dtype, widths(unet)))
    compile_network(unet, compiled, device)


def compile_network(
    network: Network, enabled: bool, device: torch.device | str = "cpu", backend: str | Callable[..., Any] = "inductor"
) -> Network:
    """Have a network compiled when it is first called, for each size of input anew; its state dict keeps its names.

    Args:
        network: changed in place.
        enabled: false leaves it as it is.
        device: where it runs.
        backend: of ``torch.compile``.

    Raises:
        ValueError: if a small function cannot be compiled, as where there is no compiler.
    """
    if enabled:
        check_compile(device, backend)
        network.compile(dynamic=False, backend=backend)
    return network


def check_compile(device: torch.device | str = "cpu", backend: str | Callable[..., Any] = "inductor") -> None:
    """Raise a ValueError if a small function cannot be compiled, as where there is no compiler."""
    try:
        torch.compile(_probe, dynamic=False, backend=backend)(torch.ones(2, device=device))
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0].strip() if lines else type(error).__name__
        raise ValueError(
            f"compile does not work on {torch.device(device)} here ({reason}): it takes a C++ compiler on a CPU and "
            "Triton with a C compiler on a GPU; install them, or leave compile at false"
        ) from error


def _probe(values: Tensor) -> Tensor:
    return values * 2.0 + 1.0
