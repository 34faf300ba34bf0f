import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import save
from tiny_models import tiny as tiny_model

from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.weights.decoder_file import NAME, save_small_decoder

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")
TINY = {
    "image_channels": 1,
    "image_size": [16, 16],
    "latent_channels": 2,
    "autoencoder_channels": [8, 8],
    "unet_channels": [8, 8, 16],
    "unet_embedding_channels": 16,
    "unet_norm_groups": 4,
    "diffusion_batch_size": 4,
    "diffusion_lr": 1e-2,
    "prediction_type": "v_prediction",
    "diffusion_loss": "l1",
    "loss_weighting": "none",
    "max_grad_norm": 1.0,
    "batch_size": 2,
    "sampler": "dpm_solver",
    "spacing": None,
    "precision": "auto",
    "channels_last": "auto",
    "num_inference_steps": 4,
}


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch):
    """Benchmarks import what lies beside them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def tiny(_beside_each_other):
    return import_module("common").Size("tiny", TINY)


@pytest.fixture
def run(monkeypatch, tmp_path, tiny):
    """Run a benchmark's command on tiny networks and read the figures it writes."""

    def command(name, *arguments):
        module, path = import_module(name), tmp_path / "figures.json"
        monkeypatch.setattr(module, "read_size", lambda name: tiny)
        monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", "--json", str(path), *arguments])
        module.main()
        return json.loads(path.read_text())

    return command


def median(values):
    return sorted(values)[len(values) // 2]


# What is computed from measurements


def test_procedures_take_turns_and_warm_ups_are_not_counted():
    calls = []
    procedures = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = import_module("common").interleaved(procedures, repeats=3, device=CPU, warm_ups=1)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_training_ratio_is_that_of_median_steps():
    result = import_module("training_speed").summary({"published": [9.0, 4.0, 5.0], "ours": [1.0, 2.0, 8.0]}, 20)
    assert result["images_a_second"] == {"published": 4.0, "ours": 10.0}
    assert result["ratio"] == 2.5


def test_sampling_takes_all_its_steps_and_one_decoding():
    module = import_module("sampling_speed")
    seconds = {"published steps": 4.0, "published decoding": 10.0, "ours steps": 1.0, "ours decoding": 5.0}
    whole = module.sampling_seconds(seconds, {"published": 150, "ours": 20}, short=2)
    assert whole == {"published": 310.0, "ours": 15.0}
    assert module.summary(whole, 4)["ratio"] == pytest.approx(310 / 15)


def test_operations_of_the_published_sizes_are_the_known_ones():
    work = import_module("floor").count_work(import_module("common").read_size("full"))
    assert work.unet == pytest.approx(51.2, abs=0.05)
    assert work.encode == pytest.approx(41.5, abs=0.3)  # gray; the first layer of RGB has three times the operations
    assert work.decode == pytest.approx(62.9, abs=0.05)
    assert work.weights == pytest.approx(194.35e6, rel=1e-4)


def test_distances_of_known_images():
    images = torch.linspace(0, 1, 64).expand(3, 1, 64, 64)
    same, darker = import_module("decoders").distances(images, images), images * 0.5
    assert same == {
        "count": 3,
        "ms_ssim": pytest.approx(1.0),
        "ssim": pytest.approx(1.0),
        "mean_absolute_difference": 0,
    }
    assert import_module("decoders").distances(darker, images)["mean_absolute_difference"] == pytest.approx(0.25)


def test_training_floor_of_round_numbers():
    floor = import_module("floor")
    work = floor.Work(unet=10.0, encode=7.0, decode=1.0, weights=1_000_000_000, activations=500_000_000)
    rates = floor.Rates({"float32": 1.0, "bfloat16": 3.0}, {}, bandwidth=2.0)
    published = floor.training_floor(work, rates, "float32", batch=4, encodes=True, averages=False)
    ours = floor.training_floor(work, rates, "bfloat16", batch=4, encodes=False, averages=True)
    assert published == {"operations": 37.0, "bytes": (28 / 4 + 12) / 2}
    assert ours == {"operations": 10.0, "bytes": (52 / 4 + 6) / 2}


def test_sampling_floor_of_round_numbers():
    floor = import_module("floor")
    work = floor.Work(unet=10.0, encode=7.0, decode=5.0, weights=1_000_000_000, activations=500_000_000)
    rates = floor.Rates({"float32": 1.0}, {}, bandwidth=2.0)
    least = floor.sampling_floor(work, rates, "float32", batch=4, calls=2, calls_together=2)
    assert least == {"operations": 25.0, "bytes": 2 * (1 + 0.125) * 4 / 2}


def test_an_operation_belongs_to_its_outermost_known_caller():
    kind = import_module("profile_shares")._kind
    step = SimpleNamespace(name="Optimizer.step#AdamW.step", cpu_parent=None)
    assert kind(SimpleNamespace(name="aten::copy_", cpu_parent=step)) == "optimizer"
    assert kind(SimpleNamespace(name="aten::mkldnn_convolution", cpu_parent=None)) == "convolution"
    assert kind(SimpleNamespace(name="aten::native_group_norm", cpu_parent=None)) == "normalisation"
    assert kind(SimpleNamespace(name="aten::add_", cpu_parent=None)) == "other"


# What is measured is what it says


def test_no_weight_of_the_measured_networks_is_left_at_zero(tiny):
    assert all(weight.any() for weight in import_module("common").build(tiny, CPU).parameters())


def test_the_demo_is_measured_at_the_sizes_of_its_config():
    size = import_module("common").read_size("demo")
    assert size.settings["unet_channels"] == [64, 64, 96, 128]
    assert size.latent_shape == (8, 8, 8)
    assert size.image_shape == (1, 64, 64)


@pytest.mark.parametrize("name", ["full", "demo"])
def test_sampling_is_measured_with_the_sampler_that_trained_weights_ask_for(name):
    settings = import_module("common").read_size(name).settings
    wanted = ("sampler", "num_inference_steps", "spacing", "guidance_scale", "precision", "channels_last")
    sampler = {"full": ["unipc", 20], "demo": ["ddim", 30]}[name]
    assert [settings[key] for key in wanted] == [*sampler, "logsnr", 1.0, "auto", "auto"]
    assert settings["batch_size"] == 16


def test_two_calls_of_published_guidance_predict_what_one_does(tiny):
    unet = import_module("common").build(tiny, CPU).unet
    latents, timesteps, labels = torch.randn(3, *tiny.latent_shape), torch.tensor([5, 500, 999]), torch.arange(3) % 2
    with torch.no_grad():
        two = import_module("published_procedure").two_call_denoiser(unet, labels, 1.7)(latents, timesteps)
        one = guided_denoiser(unet, labels, 1.7)(latents, timesteps)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_published_noising_one_by_one_gives_the_schedules_noisy_latents(tiny):
    common, published = import_module("common"), import_module("published_procedure")
    training = published.PublishedTraining(common.build(tiny, CPU), CPU)
    latents, noise, timesteps = torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8), torch.tensor([0, 400, 999])
    noisy = torch.stack([training._noisy(*sample) for sample in zip(latents, noise, timesteps, strict=True)])
    torch.testing.assert_close(noisy, NoiseSchedule().add_noise(latents, noise, timesteps))


@pytest.mark.parametrize("ours", [False, True])
def test_both_training_procedures_learn_the_batch(tiny, ours):
    common = import_module("common")
    network = common.build(tiny, CPU)
    if ours:
        step = import_module("our_procedure").OurTraining(network, tiny, CPU, "float32", 2)
    else:
        step = import_module("published_procedure").PublishedTraining(network, CPU)
        step.optimizer.param_groups[0]["lr"] = TINY["diffusion_lr"]
    batch = common.random_batch(tiny, 4, CPU, stored=ours)
    losses = [float(step(batch)) for _ in range(20)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_our_training_averages_weights(tiny):
    common = import_module("common")
    step = import_module("our_procedure").OurTraining(common.build(tiny, CPU), tiny, CPU, "float32")
    step(common.random_batch(tiny, 2, CPU, stored=True))
    assert step.average.num_updates == 1
    trained = step.network.unet.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in step.average.module.state_dict().items())


# The commands


def test_training_speed_writes_the_ratio_of_its_own_seconds(run):
    figures = run("training_speed", "--repeats", "3", "--precision", "float32", "--micro-batch", "2")
    assert figures["batch"] == 4
    assert figures["micro_batch"] == 2
    seconds = figures["seconds"]
    assert figures["ratio"] == pytest.approx(median(seconds["published"]) / median(seconds["ours"]))
    assert {"processor", "cores", "threads", "memory_gib", "load_average", "torch"} <= set(figures["machine"])


def test_sampling_speed_writes_ratios_with_and_without_guidance(run):
    figures = run("sampling_speed", "--repeats", "1", "--precision", "float32", "--guidance", "2")
    assert [row["guidance"] for row in figures["rows"]] == [2.0, 1.0]
    assert figures["ratio"] == figures["rows"][0]["ratio"]
    assert (figures["published_steps"], figures["our_steps"]) == (150, 4)
    row = figures["rows"][1]
    seconds = {name: values[0] for name, values in row["seconds"].items()}
    published = seconds["published steps"] / 2 * 150 + seconds["published decoding"]
    assert row["images_a_second"]["published"] == pytest.approx(2 / published)


def test_sampling_speed_of_tuned_weights_is_measured_with_the_small_decoder(run, monkeypatch):
    module, calls = import_module("our_procedure"), []
    decoded = module.SmallDecoder.forward
    monkeypatch.setattr(module.SmallDecoder, "forward", lambda own, x: calls.append(len(x)) or decoded(own, x))
    options = ["--repeats", "1", "--precision", "float32", "--guidance", "2", "--steps", "2"]
    figures = run("sampling_speed", *options, "--distilled", "--small-decoder")
    assert (figures["sampler"], figures["our_steps"], figures["small_decoder"]) == ("distilled", 2, True)
    assert calls


def test_decoders_are_compared_by_time_and_by_images(run, tmp_path):
    network = tiny_model(image_size=(48, 48))
    weights = save(network, tmp_path / "models" / "model.pt")
    decoder = import_module("decoders").SmallDecoder(8, 1, [4], [1])
    save_small_decoder(decoder, weights.with_name(NAME), network.autoencoder, {})
    options = ["--repeats", "1", "--precision", "float32", "--model-file", str(weights), "--count", "2"]
    figures = run("decoders", *options)
    speed = figures["speed"]
    assert speed["ratio"] == pytest.approx(speed["images_a_second"]["small"] / speed["images_a_second"]["full"])
    assert list(figures["images"]) == ["small and full, sampled latents"]
    assert 0.0 < figures["images"]["small and full, sampled latents"]["mean_absolute_difference"] < 1.0


def test_ways_of_execution_are_compared_and_those_that_fail_named(run, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("not here\nat all")

    for name in ("compiled", "onnx_runtime", "openvino"):
        monkeypatch.setattr(import_module("cpu_execution"), name, refuse)
    part = run("cpu_execution", "--repeats", "1", "--parts", "decoder")["parts"]["decoder"]
    assert list(part["rows"]) == [
        f"eager {dtype}{form}" for dtype in ("float32", "bfloat16") for form in ("", " channels_last")
    ]
    assert part["failed"]["OpenVINO f32"] == "ValueError: not here"
    assert part["rows"]["eager float32"]["ratio"] == 1.0
    assert part["rows"]["eager float32"]["error"] == 0.0
    assert 0.0 < part["rows"]["eager bfloat16"]["error"] < 0.1


def test_training_memory_writes_ratios_to_the_published_peak(run, monkeypatch):
    module = import_module("training_memory")
    peaks = iter([1.0, 9.0, 1.0, 6.0, 1.0, 3.0, 1.0, 1.8])
    monkeypatch.setattr(module, "peak", lambda device: next(peaks) * module.GIBIBYTE)
    monkeypatch.setattr(module, "in_own_process", lambda case: module.measure(**case))
    figures = run("training_memory", "--precision", "float32", "--micro-batches", "2", "4")
    assert [row["ratio"] for row in figures["rows"]] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.2])
    assert [row["ratio_without_baseline"] for row in figures["rows"]] == pytest.approx([1.0, 0.625, 0.25, 0.1])
    assert [row["micro_batch"] for row in figures["rows"]] == [4, 2, 4, 2]
    assert [row["averages"] for row in figures["rows"]] == [False, True, True, False]
    assert figures["ratio"] == pytest.approx(1 / 3)  # the lowest with averaged weights, which ours come with
    assert figures["best"] == figures["rows"][2]


def test_state_of_the_published_network_is_sixteen_bytes_a_weight_and_four_more_averaged(monkeypatch, tiny):
    module = import_module("training_memory")
    monkeypatch.setattr(module, "read_size", lambda name: tiny)
    case = {"size": "tiny", "batch": 2, "device": "cpu", "precision": "float32"}
    weights = sum(weight.numel() for weight in import_module("common").build(tiny, CPU).unet.parameters())
    for name, averages, a_weight in (("published", True, 16), ("ours", True, 20), ("ours", False, 16)):
        row = module.measure(name, **case, averages=averages)
        assert row["state_gib"] * module.GIBIBYTE == pytest.approx(a_weight * weights)
    row = module.measure("ours", **case, eight_bit_moments=True)
    assert row["state_gib"] * module.GIBIBYTE == pytest.approx(14 * weights)
    assert "moments of 8 bits" in row["variant"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training_speed", "sampling_speed"])
def test_floor_and_profile_are_written_beside_what_was_measured(run, monkeypatch, name):
    rates = import_module("floor").Rates({"float32": 50.0}, {}, bandwidth=10.0)
    monkeypatch.setattr(import_module(name), "measure_rates", lambda device: rates)
    figures = run(name, "--repeats", "1", "--precision", "float32", "--floor", "--profile")
    images = figures.get("images_a_second") or figures["rows"][0]["images_a_second"]
    floor = figures["floor"]
    assert floor["measured"]["ours"] == pytest.approx(1 / images["ours"])
    assert all(0 < least < floor["measured"]["ours"] for least in floor["seconds_an_image"]["ours"].values())
    assert sum(figures["profile"]["ours"].values()) == pytest.approx(1.0)
    assert {"convolution", "normalisation", "activation"} <= set(figures["profile"]["ours"])


@pytest.mark.slow
def test_each_memory_is_that_of_a_process_of_its_own():
    module = import_module("training_memory")
    case = {"name": "published", "size": "demo", "batch": 2, "device": "cpu"}
    held = torch.ones(2**29)  # 2 GiB, in this process alone
    assert module.in_own_process(case)["peak_gib"] < 2.0
    del held
