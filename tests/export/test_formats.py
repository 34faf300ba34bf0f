import importlib.util

import numpy as np
import onnx
import pytest
import torch

from medfusion_monai.export import formats
from medfusion_monai.export.formats import FORMATS, format_named
from medfusion_monai.export.parts import Part, Port

LATENTS = Port("latents", ("batch", 2, "height", "width"))
IMAGE = Port("image", ("batch", 3, "height", "width"))


@pytest.fixture
def part():
    """A convolution: the smallest part with weights."""
    return Part("conv", torch.nn.Conv2d(2, 3, 1).eval(), (LATENTS,), (IMAGE,))


@pytest.mark.parametrize("name", list(FORMATS))
def test_file_takes_any_batch_and_size(name, part, tmp_path):
    path = tmp_path / f"conv{FORMATS[name].suffix}"
    FORMATS[name].write(part, part.draw(2, 4, 4), path)
    inputs = part.draw(3, 5, 7)
    (actual,) = FORMATS[name].run(part, path, inputs)
    assert torch.allclose(actual, part.module(*inputs), atol=1e-6)


def test_onnx_file_names_what_goes_in_and_out(part, tmp_path):
    FORMATS["onnx"].write(part, part.draw(2, 4, 4), tmp_path / "conv.onnx")
    graph = onnx.load(tmp_path / "conv.onnx").graph
    for value, port in ((graph.input[0], LATENTS), (graph.output[0], IMAGE)):
        assert value.name == port.name
        sides = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        assert sides == list(port.shape)


def test_weights_too_many_for_one_onnx_file_go_beside_it(part, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "ONE_FILE_BYTES", 0)
    FORMATS["onnx"].write(part, part.draw(2, 4, 4), tmp_path / "conv.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conv.onnx", "conv.onnx.data"]
    inputs = part.draw(1, 4, 4)
    (actual,) = FORMATS["onnx"].run(part, tmp_path / "conv.onnx", inputs)
    assert np.allclose(actual, part.module(*inputs).detach(), atol=1e-6)


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ValueError, match=r"needs onnxscript, .*pip install onnxscript"):
        format_named("onnx")


def test_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="onnx, torchscript, received 'tensorrt'"):
        format_named("tensorrt")
