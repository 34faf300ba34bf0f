"""Compare ways to run one call of the UNet and one decoding on a CPU, by turns, with their error against float32.

PyTorch eager in float32 and bfloat16, contiguous and channels_last; ``torch.compile`` of both types; ONNX Runtime in
float32 and with convolutions in int8; OpenVINO in float32 and bfloat16. A way whose package is missing or that fails is
named and left out. Weights are random, or those of ``--model-file``, which then defines the size.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import build, interleaved, machine, medians, parser, print_machine, read_size, write_json
from torch import Tensor, nn

import medfusion_monai as mf
from medfusion_monai.export.formats import write_onnx
from medfusion_monai.export.parts import Part, parts_of
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.dtype import autocast

CPU = torch.device("cpu")
BATCH = 4
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
BASE = "eager float32"
Way = Callable[[], Tensor]


def main() -> None:
    """Measure and print a table for the UNet and one for the decoder."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=7, help="measurements of each that count; one more warms up")
    options.add_argument("--model-file", type=Path, help="trained weights, whose errors mean more than random ones")
    options.add_argument("--parts", nargs="+", choices=["unet", "decoder"], default=["unet", "decoder"])
    options.add_argument("--ways", nargs="+", default=[""], help="beginnings of their names, e.g. eager OpenVINO")
    arguments = options.parse_args()
    result: dict[str, Any] = {"machine": machine(CPU), "batch": arguments.batch or BATCH, "parts": {}}
    print_machine(result["machine"])
    network, latent_shape = networks(arguments.model_file, arguments.size)
    for part in parts_of(network, 2, 1000):
        if part.name in arguments.parts:
            wanted = (BASE, *arguments.ways)
            result["parts"][part.name] = measure(part, latent_shape, result["batch"], arguments.repeats, wanted)
            print_table(part.name, result["parts"][part.name])
    write_json(arguments.json, result)


def networks(model_file: Path | None, size_name: str) -> tuple[Medfusion, tuple[int, ...]]:
    """Return both networks and the shape of latents, of trained weights or of a size."""
    if model_file is not None:
        network = mf.load(model_file, "cpu").network
        return network, network.latent_shape
    size = read_size(size_name)
    return build(size, CPU).eval(), size.latent_shape


def measure(
    part: Part, latent_shape: tuple[int, ...], batch: int, repeats: int, wanted: tuple[str, ...]
) -> dict[str, Any]:
    """Alternate all ways that are wanted and work, on the same inputs."""
    part.module.eval().requires_grad_(False)
    inputs = part.draw(batch, *latent_shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        ways, failed = prepared(part, inputs, Path(folder), wanted)
        expected = ways[BASE]()
        errors = {name: float((way() - expected).abs().max() / expected.abs().max()) for name, way in ways.items()}
        seconds = medians(interleaved(ways, repeats, CPU))
    rows = {
        name: {"seconds": seconds[name], "ratio": seconds[BASE] / seconds[name], "error": errors[name]} for name in ways
    }
    return {"rows": rows, "failed": failed}


def prepared(
    part: Part, inputs: tuple[Tensor, ...], folder: Path, wanted: tuple[str, ...]
) -> tuple[dict[str, Way], dict[str, str]]:
    """Return the ways that work, each warmed up, and why others do not."""
    builders: dict[str, Callable[[], Way]] = {}
    for name, dtype in (("float32", FLOAT32), ("bfloat16", BFLOAT16)):
        builders[f"eager {name}"] = partial(eager, part, inputs, dtype)
        builders[f"eager {name} channels_last"] = partial(eager, part, inputs, dtype, channels_last=True)
        builders[f"compile {name}"] = partial(compiled, part, inputs, dtype)
        builders[f"compile {name} channels_last"] = partial(compiled, part, inputs, dtype, channels_last=True)
    builders["ONNX Runtime float32"] = partial(onnx_runtime, part, inputs, folder)
    builders["ONNX Runtime int8"] = partial(onnx_runtime, part, inputs, folder, int8=True)
    for name in ("f32", "bf16"):
        builders[f"OpenVINO {name}"] = partial(openvino, part, inputs, folder, name)
    ways: dict[str, Way] = {}
    failed: dict[str, str] = {}
    for name, make in builders.items():
        if not name.startswith(wanted):
            continue
        try:
            ways[name] = make()
            ways[name]()
        except Exception as error:
            ways.pop(name, None)
            failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"left out: {name} ({failed[name]})")
    return ways, failed


def eager(part: Part, inputs: tuple[Tensor, ...], dtype: torch.dtype, channels_last: bool = False) -> Way:
    """Run the module as it is."""
    return _caller(_laid_out(part.module, channels_last), inputs, dtype)


def compiled(part: Part, inputs: tuple[Tensor, ...], dtype: torch.dtype, channels_last: bool = False) -> Way:
    """Compile a copy of the module, as ``compile: true`` does."""
    module = _laid_out(part.module, channels_last)
    module.compile(dynamic=False)
    return _caller(module, inputs, dtype)


def _laid_out(module: nn.Module, channels_last: bool) -> nn.Module:
    own = copy.deepcopy(module)
    return own.to(memory_format=torch.channels_last) if channels_last else own


def _caller(module: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Way:
    @torch.no_grad()
    def run() -> Tensor:
        with autocast(CPU, dtype):
            return module(*inputs).float()

    return run


def onnx_runtime(part: Part, inputs: tuple[Tensor, ...], folder: Path, int8: bool = False) -> Way:
    """Run the exported file by ONNX Runtime, with convolutions in int8 (static, calibrated on the inputs) if wanted."""
    import onnxruntime

    path = _exported(part, inputs, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if int8:
        path = _quantized(part, inputs, path)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    named = {port.name: value.numpy() for port, value in zip(part.inputs, inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, named)[0])


def openvino(part: Part, inputs: tuple[Tensor, ...], folder: Path, precision: str) -> Way:
    """Run the exported file by OpenVINO."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().read_model(str(_exported(part, inputs, folder)))
    model.reshape({port.name: list(value.shape) for port, value in zip(part.inputs, inputs, strict=True)})
    program = openvino.compile_model(model, "CPU", settings)
    named = {port.name: value.numpy() for port, value in zip(part.inputs, inputs, strict=True)}
    return lambda: torch.from_numpy(program(named)[0].copy())


def _exported(part: Part, inputs: tuple[Tensor, ...], folder: Path) -> Path:
    path = folder / f"{part.name}.onnx"
    if not path.is_file():
        write_onnx(part, inputs, path)
    return path


def _quantized(part: Part, inputs: tuple[Tensor, ...], path: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            named = {port.name: value.numpy() for port, value in zip(part.inputs, inputs, strict=True)}
            self.left = [named]

        def get_next(self) -> Mapping[str, Any] | None:
            return self.left.pop() if self.left else None

    ready, small = path.with_suffix(".ready.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_static(str(ready), str(small), Reader(), QuantFormat.QDQ, per_channel=True, op_types_to_quantize=["Conv"])
    return small


def print_table(name: str, result: Mapping[str, Any]) -> None:
    """Print seconds, ratios to eager float32, and the largest error relative to the largest value."""
    print(f"\n| {name} | ms | times as fast as {BASE} | largest error |\n|---|---|---|---|")
    for way, row in result["rows"].items():
        print(f"| {way} | {1000 * row['seconds']:.1f} | {row['ratio']:.2f} | {row['error']:.1e} |")


if __name__ == "__main__":
    main()
