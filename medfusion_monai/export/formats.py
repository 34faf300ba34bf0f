"""The export formats: writing a part to a file, and running that file."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medfusion_monai.export.parts import Part, Port, multiple

OPSET = 18
ONE_FILE_BYTES = 1_900_000_000
"""Weights above this go into a second file beside the ONNX file, which is limited to 2 GiB."""


def write_onnx(part: Part, example: tuple[Tensor, ...], path: Path) -> None:
    """Write a part as ONNX, with dynamic batch, height and width."""
    import onnx_ir

    sides = {name: torch.export.Dim(name) for name in ("batch", "height", "width")}
    with _quiet():
        program = torch.onnx.export(
            part.module,
            example,
            input_names=[port.name for port in part.inputs],
            output_names=[port.name for port in part.outputs],
            dynamic_shapes=tuple(_dynamic(port, sides) for port in part.inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise AssertionError("unreachable: without a file name the exporter returns a program")
    for value, port in zip(program.model.graph.outputs, part.outputs, strict=True):
        value.shape = onnx_ir.Shape(port.shape)  # the exporter names the outputs' dimensions by formulas
    weights = sum(tensor.nbytes for tensor in part.module.state_dict().values())
    program.save(path, external_data=weights > ONE_FILE_BYTES)


def run_onnx(part: Part, path: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Run an ONNX file on the CPU with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    named = {port.name: value.numpy() for port, value in zip(part.inputs, inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run([port.name for port in part.outputs], named)]


def write_torchscript(part: Part, example: tuple[Tensor, ...], path: Path) -> None:
    """Write a part as a trace, frozen so that no tensor stays on the CPU when it is loaded to another device."""
    with _quiet():
        traced = torch.jit.trace(part.module, example, check_trace=False)
        torch.jit.freeze(traced).save(str(path))


def run_torchscript(part: Part, path: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Run a TorchScript file on the CPU."""
    with _quiet():
        outputs = torch.jit.load(str(path), map_location="cpu")(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


class Format(NamedTuple):
    """How files of a format are named, written and run, and the packages that this needs besides PyTorch."""

    suffix: str
    write: Callable[[Part, tuple[Tensor, ...], Path], None]
    run: Callable[[Part, Path, tuple[Tensor, ...]], list[Tensor]]
    packages: tuple[str, ...]


FORMATS = {
    "onnx": Format(".onnx", write_onnx, run_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Format(".ts", write_torchscript, run_torchscript, ()),
}


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        ValueError: for an unknown name, or if a required package is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, received {name!r}")
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"export to {name} needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}"
        )
    return FORMATS[name]


def _dynamic(port: Port, sides: dict[str, Any]) -> dict[int, Any]:
    free = {axis: multiple(side) for axis, side in enumerate(port.shape) if isinstance(side, str)}
    return {axis: factor * sides[name] if factor > 1 else sides[name] for axis, (factor, name) in free.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of exporters; the file is checked by running it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
