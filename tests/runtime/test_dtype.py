import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn

from medfusion_monai.runtime import dtype as precision
from medfusion_monai.runtime.dtype import (
    MixedPrecisionInferer,
    autocast,
    choose_precision,
    full_precision,
    precision_name,
)


@pytest.fixture
def cpu_with(monkeypatch):
    def claim(avx512, amx):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)

    return claim


@pytest.fixture
def gpu_with(monkeypatch):
    def claim(*capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")

    return claim


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_cpu_runs_in_bfloat16_where_it_multiplies_it(cpu_with, avx512, amx, expected):
    cpu_with(avx512, amx)
    assert choose_precision("auto", "cpu") is expected


@pytest.mark.parametrize(
    ("flags", "expected"), [("fma avx512_bf16", True), ("amx_bf16 x", True), ("fma avx512f", False)]
)
def test_cpu_is_asked_of_the_system_where_pytorch_does_not_say(monkeypatch, tmp_path, flags, expected):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(precision, "Path", lambda name: tmp_path / "cpuinfo")
    assert choose_precision("auto", "cpu") is (torch.bfloat16 if expected else torch.float32)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float16)],
)
def test_gpu_runs_in_bfloat16_from_capability_8_and_in_float16_before(gpu_with, capability, expected):
    gpu_with(*capability)
    assert choose_precision("auto", "cuda:0") is expected


def test_other_devices_run_in_float32():
    assert choose_precision("auto", "mps") is torch.float32


@pytest.mark.parametrize("word", ["float32", "bfloat16"])
def test_precision_that_is_named_is_taken(cpu_with, word):
    cpu_with(True, False)
    assert choose_precision(word, "cpu") is getattr(torch, word)
    assert precision_name(choose_precision(word, "cpu")) == word


def test_bfloat16_is_refused_where_the_cpu_has_none(cpu_with):
    cpu_with(False, False)
    with pytest.raises(ValueError, match="bfloat16 is unavailable on this CPU: choose auto or float32"):
        choose_precision("bfloat16", "cpu")


def test_float16_is_refused_on_a_cpu(cpu_with):
    cpu_with(True, True)
    with pytest.raises(ValueError, match="float16 is unavailable on this CPU: choose auto or bfloat16 or float32"):
        choose_precision("float16", "cpu")


def test_bfloat16_is_refused_by_an_old_gpu_with_its_name(gpu_with):
    gpu_with(7, 0)
    with pytest.raises(ValueError, match=r"on cuda:0 \(Tesla V100\): choose auto or float16 or float32"):
        choose_precision("bfloat16", "cuda:0")


@pytest.mark.parametrize("word", ["bf16", "half", "", None, 16])
def test_unknown_precision_is_refused_with_the_choices(word):
    with pytest.raises(ValueError, match="precision must be auto or one of float32, bfloat16, float16"):
        choose_precision(word, "cpu")


def test_nothing_is_cast_for_float32():
    with autocast("cpu", torch.float32):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_cast_inside_the_context_only(dtype):
    layer = nn.Linear(2, 2)
    with autocast("cpu", dtype):
        assert layer(torch.ones(1, 2)).dtype is dtype
    assert layer(torch.ones(1, 2)).dtype is torch.float32
    assert layer.weight.dtype is torch.float32


@pytest.mark.parametrize("cached", [True, False])
def test_casts_of_weights_are_kept_for_networks_that_use_them_again(cached):
    with autocast("cpu", torch.bfloat16, cached):
        assert torch.is_autocast_cache_enabled() is cached


def test_types_above_the_half_ones_stay():
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    expected = [torch.float64, torch.float32, torch.float32, torch.float32]
    assert [full_precision(torch.ones(1, dtype=kind)).dtype for kind in kinds] == expected


def test_inferer_gives_float32_of_a_network_in_bfloat16():
    torch.manual_seed(0)
    network, inside = nn.Linear(64, 64), []
    network.register_forward_hook(lambda module, inputs, output: inside.append(output))
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=[{"image": torch.randn(4, 64), "label": torch.zeros(4, 64)}],
        network=network,
        inferer=MixedPrecisionInferer(torch.bfloat16),
        decollate=False,
    )
    evaluator.run()
    prediction = evaluator.state.output["pred"]
    assert inside[0].dtype is torch.bfloat16
    assert prediction.dtype is torch.float32
    assert torch.equal(prediction, inside[0].float())


def test_inferer_passes_all_arguments_on():
    network = nn.Bilinear(2, 2, 1)
    first, second = torch.randn(3, 2), torch.randn(3, 2)
    inferer = MixedPrecisionInferer()
    assert torch.equal(inferer(first, network, second), network(first, second))
    assert torch.equal(inferer(first, network, input2=second), network(first, second))
