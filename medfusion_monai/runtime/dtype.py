"""In which floating-point type networks run; their weights, averages, losses and samplers stay float32."""

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
"""Instructions that multiply bfloat16, as Linux names them. Without one a CPU takes longer than in float32."""


def choose_precision(precision: str, device: torch.device | str) -> torch.dtype:
    """Give the type in which networks run on a device.

    ``auto`` is bfloat16 where the device multiplies it (NVIDIA from compute capability 8.0, CPUs with AVX512-BF16 or
    AMX), float16 on older NVIDIA GPUs, otherwise float32.

    Args:
        precision: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: where the networks run.

    Raises:
        ValueError: for another word, or a type that the device does not have.
    """
    if precision != "auto" and precision not in DTYPES:
        raise ValueError(f"precision must be auto or one of {', '.join(DTYPES)}, received {precision!r}")
    device = torch.device(device)
    possible = _possible(device)
    if precision == "auto":
        return possible[0]
    if DTYPES[precision] not in possible:
        names = " or ".join(precision_name(dtype) for dtype in possible)
        raise ValueError(f"precision {precision} is not to be had on {_described(device)}: choose auto or {names}")
    return DTYPES[precision]


def precision_name(dtype: torch.dtype) -> str:
    """Give the word for a type, as ``choose_precision`` takes it."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device | str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Run what is inside in a type where that is safe; weights stay as they are. Nothing changes for float32."""
    return torch.autocast(torch.device(device).type, dtype) if dtype in HALF else nullcontext()


def full_precision(values: Tensor) -> Tensor:
    """Give float32 in place of the half precisions; other types stay."""
    return values.float() if values.dtype in HALF else values


class MixedPrecisionInferer(SimpleInferer):
    """Runs a network in a lower precision and gives its output in float32.

    Args:
        dtype: of ``choose_precision``.
        inferer: calls the network; None calls it as it is.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.dtype, self.inferer = dtype, inferer or SimpleInferer()

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Call ``network(inputs, *args, **kwargs)``, whose output is one tensor."""
        with autocast(inputs.device, self.dtype):
            return full_precision(self.inferer(inputs, network, *args, **kwargs))


def _possible(device: torch.device) -> list[torch.dtype]:
    """Types that a device has, the best first."""
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
    listed = Path("/proc/cpuinfo")  # the probes are private to PyTorch and may go
    return listed.is_file() and bool(CPU_FLAGS & set(listed.read_text().split()))


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"this {device.type.upper()}" if device.type in ("cpu", "mps") else str(device)
