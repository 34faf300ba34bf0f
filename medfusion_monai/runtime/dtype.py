"""Floating-point type in which networks run; weights, averages, losses and samplers stay float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from monai.inferers.inferer import Inferer, SimpleInferer
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALF = (torch.bfloat16, torch.float16)
CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Linux' names of instructions that multiply bfloat16. Without them bfloat16 is slower than float32 on a CPU."""


def choose_precision(precision: str, device: torch.device | str) -> torch.dtype:
    """Return the type in which networks run on a device.

    ``auto`` is bfloat16 if the device multiplies it (NVIDIA from compute capability 8.0, CPUs with AVX512-BF16 or
    AMX), float16 on older NVIDIA GPUs, otherwise float32.

    Args:
        precision: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: device of the networks.

    Raises:
        ValueError: for other values, and for a type that the device does not support.
    """
    if precision != "auto" and precision not in DTYPES:
        raise ValueError(f"precision must be auto or one of {', '.join(DTYPES)}, received {precision!r}")
    device = torch.device(device)
    possible = _possible(device)
    if precision == "auto":
        return possible[0]
    if DTYPES[precision] not in possible:
        names = " or ".join(precision_name(dtype) for dtype in possible)
        raise ValueError(f"precision {precision} is unavailable on {_described(device)}: choose auto or {names}")
    return DTYPES[precision]


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of a type, as accepted by ``choose_precision``."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device | str, dtype: torch.dtype, cached: bool = True) -> AbstractContextManager[Any]:
    """Autocast to a half precision; without effect for float32.

    Args:
        device: device of the networks.
        dtype: type of the computation.
        cached: whether weights that were cast are kept until the end, for a network that uses them more than once.
    """
    return torch.autocast(torch.device(device).type, dtype, cache_enabled=cached) if dtype in HALF else nullcontext()


def full_precision(values: Tensor) -> Tensor:
    """Return half precisions as float32, other types unchanged."""
    return values.float() if values.dtype in HALF else values


class MixedPrecisionInferer(SimpleInferer):
    """Runs a network in a lower precision and returns its output in float32.

    Args:
        dtype: from ``choose_precision``.
        inferer: calls the network; None uses ``SimpleInferer``.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.dtype, self.inferer = dtype, inferer or SimpleInferer()

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Call ``network(inputs, *args, **kwargs)``, whose output is one tensor."""
        with autocast(inputs.device, self.dtype):
            return full_precision(self.inferer(inputs, network, *args, **kwargs))


def _possible(device: torch.device) -> list[torch.dtype]:
    """Return the types that a device supports, the best first."""
    if device.type == "cuda":
        modern = torch.cuda.get_device_capability(device) >= (8, 0)
        half = list(HALF) if modern else [torch.float16]
        return [*half, torch.float32]
    if device.type == "cpu" and _cpu_has_bfloat16():
        return [torch.bfloat16, torch.float32]
    return [torch.float32]


def _cpu_has_bfloat16() -> bool:
    probes = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    if None not in probes:
        return any(probe() for probe in probes if probe is not None)
    listed = Path("/proc/cpuinfo")  # the probes are private to PyTorch and may disappear
    return listed.is_file() and bool(CPU_FLAGS & set(listed.read_text().split()))


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"this {device.type.upper()}" if device.type in ("cpu", "mps") else str(device)
