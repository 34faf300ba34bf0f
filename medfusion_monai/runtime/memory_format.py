"""Memory format and compilation of networks; their results and state dicts stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

WIDE = 256
"""Least number of channels at which convolutions on a CPU gain more from channels_last than normalisations lose."""


def choose_channels_last(
    choice: bool | str, device: torch.device | str, dtype: torch.dtype, widths: Sequence[int]
) -> bool:
    """Return whether a network should use the memory format channels_last.

    ``auto`` is true if measured to be faster: in bfloat16 on CPUs, for networks as wide as published.

    Args:
        choice: true, false or ``auto``.
        device: device of the network.
        dtype: from ``choose_precision``.
        widths: channels per level.

    Raises:
        ValueError: for other choices.
    """
    if isinstance(choice, bool):
        return choice
    if choice != "auto":
        raise ValueError(f"channels_last must be true, false or auto, received {choice!r}")
    return torch.device(device).type == "cpu" and dtype is torch.bfloat16 and min(widths) >= WIDE


def widths(network: nn.Module) -> list[int]:
    """Return the output channels of a network's convolutions, except the last, which makes the network's output."""
    return [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)][:-1] or [0]


def lay_out(network: Network, channels_last: bool) -> Network:
    """Convert a network to channels_last if true; convolutions then keep this format for their outputs.

    Call this before creating the optimizer. Weights can be saved and loaded in either format.
    """
    return network.to(memory_format=torch.channels_last) if channels_last else network


def lay_out_autoencoder(network: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Convert the autoencoder of a ``Medfusion`` to channels_last where it decodes faster: in bfloat16 on a CPU.

    There it takes 0.65 to 0.85 times as long, at all widths of the bundles. Others stay as they are: in float32 less is
    gained, and an image would depend more on its batch.
    """
    autoencoder = dict(network.named_children()).get("autoencoder")
    if autoencoder is not None and torch.device(device).type == "cpu" and dtype is torch.bfloat16:
        lay_out(autoencoder, True)


def lay_out_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Convert the averages of a fused optimizer of torch to the memory format of their weights.

    A restart loads averages in the format in which they were saved. Fused optimizers read memory linearly, and would
    silently use the average of one weight for another. Averages of other optimizers stay as they are.
    """
    if not optimizer.defaults.get("fused"):
        return
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_ready(
    network: nn.Module | None,
    device: torch.device | str,
    dtype: torch.dtype,
    channels_last: bool | str = "auto",
    compiled: bool = False,
) -> None:
    """Move a ``Medfusion`` or ``Gan``, or a ``Guide``, to a device and prepare it for sampling.

    Args:
        network: changed in place; None for nothing to do.
        device: target device.
        dtype: type in which it will run.
        channels_last: as for ``choose_channels_last``, which decides for its largest network, ``main``; the autoencoder
            follows it, or with ``auto`` is as in ``lay_out_autoencoder``.
        compiled: whether to compile its largest network, ``main``.
    """
    if network is None:
        return
    main: Any = network.main
    lay_out(network.to(device), choose_channels_last(channels_last, device, dtype, widths(main)))
    if channels_last == "auto":
        lay_out_autoencoder(network, device, dtype)
    compile_network(main, compiled, device)


def compile_network(
    network: Network, enabled: bool, device: torch.device | str = "cpu", backend: str | Callable[..., Any] = "inductor"
) -> Network:
    """Compile a network on its first call, once per input size; its state dict keeps its names.

    Args:
        network: changed in place.
        enabled: false leaves it unchanged.
        device: device of the network.
        backend: backend of ``torch.compile``.

    Raises:
        ValueError: if a small function cannot be compiled, e.g. for lack of a compiler.
    """
    if enabled:
        check_compile(device, backend)
        network.compile(dynamic=False, backend=backend)
    return network


def check_compile(device: torch.device | str = "cpu", backend: str | Callable[..., Any] = "inductor") -> None:
    """Raise a ValueError if a small function cannot be compiled, e.g. for lack of a compiler."""
    try:
        torch.compile(_probe, dynamic=False, backend=backend)(torch.ones(2, device=device))
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0].strip() if lines else type(error).__name__
        raise ValueError(
            f"compile does not work on {torch.device(device)} here ({reason}): it needs a C++ compiler on a CPU, and "
            "Triton with a C compiler on a GPU; install them, or leave compile at false"
        ) from error


def _probe(values: Tensor) -> Tensor:
    return values * 2.0 + 1.0
