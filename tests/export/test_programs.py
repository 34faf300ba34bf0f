import functools
import json
import math
import shutil
from itertools import combinations, zip_longest

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_models import save, tiny

from medfusion_monai.cli import main
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.export.formats import FORMATS, Format
from medfusion_monai.export.programs import export_programs, sampling_facts
from medfusion_monai.model import load
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.weights.assembled import write_guided


@functools.cache
def session_of(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # its threads would spin against PyTorch's
    return onnxruntime.InferenceSession(str(path), options)


def sample_without_pytorch(folder, facts, label, seed):
    """Sample one image from what an export wrote, as docs/sharing.md says, by NumPy and ONNX Runtime alone."""

    def run(name, **inputs):
        return session_of(folder / facts["networks"][name]["file"]).run(None, inputs)[0]

    latents = np.random.default_rng(seed).standard_normal((1, *facts["latent_shape"]), dtype=np.float32)
    negative = facts["no_label"] if facts["negative_label"] is None else facts["negative_label"]
    points = list(zip(facts["timesteps"], facts["signal"], facts["sigma"], strict=True))
    started, ratio, gain, cleans, widths = latents, 0.0, 0.0, [], []
    for (timestep, signal, sigma), following in zip_longest(points, points[1:]):
        both = run(
            "unet",
            noisy_latents=np.concatenate([latents, latents]).astype(np.float32),
            timesteps=np.array([timestep, timestep]),
            class_labels=np.array([label, negative]),
        )
        low, high = facts["guidance_interval"] or (0.0, math.inf)
        scale = facts["guidance_scale"] if low < sigma / max(signal, 1e-300) <= high else 1.0
        prediction = both[1:] + scale * (both[:1] - both[1:])
        clean = clean_from(prediction, latents, signal, sigma, facts["prediction_type"])
        if following is None:
            return run("decoder", latents=clean.astype(np.float32))
        if facts["sampler"] == "unipc" and widths:
            latents = ratio * started + gain * (cleans[-1] + correction(widths, cleans, clean))
        _, next_signal, next_sigma = following
        ratio = next_sigma / sigma
        gain, width = next_signal - ratio * signal, log_snr(next_signal, next_sigma) - log_snr(signal, sigma)
        ahead = clean
        if facts["sampler"] != "ddim" and widths:
            ahead = clean + width / (2 * widths[-1]) * (clean - cleans[-1])
        started, latents = latents, ratio * latents + gain * ahead
        cleans, widths = [*cleans, clean], [*widths, width]
    raise AssertionError("the last timestep returns")


def clean_from(prediction, latents, signal, sigma, prediction_type):
    if prediction_type == "epsilon":
        return (latents - sigma * prediction) / signal
    if prediction_type == "sample":
        return prediction
    if prediction_type == "velocity":
        return latents - sigma * prediction
    return signal * latents - sigma * prediction


def log_snr(signal, sigma):
    return math.log(signal / sigma) if signal else -math.inf


def correction(widths, cleans, clean):
    """Return what UniPC adds to the clean latents of a step that it takes again."""
    if len(widths) == 1:
        return (clean - cleans[-1]) / 2
    before, h = widths[-2:]
    e1 = math.exp(-h) - 1
    e2 = -e1 / h - 1
    e3 = -e2 / h - 1 / 2
    r = before / h
    rho = (e2 / e1 - 2 * e3 / e1) / (1 + r)
    return (e2 / e1 - rho) * (clean - cleans[-1]) + rho / r * (cleans[-1] - cleans[-2])


def facts_of(folder):
    return json.loads((folder / "sampler.json").read_text())


SCHEDULES = {
    "epsilon": {},
    "sample": {"prediction_type": "sample", "schedule": "cosine"},
    "no signal at first": {"prediction_type": "v_prediction", "zero_terminal_snr": True},
    "flow": {"prediction_type": "velocity", "schedule": "flow"},
}
INTERVALS = {"sample": [0.5, 20.0], "no signal at first": [0.3, 1e6]}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_onnx_files_and_facts_sample_the_bundle_s_images_without_pytorch(schedule, sampler, exported, network):
    tuned = SAMPLERS[sampler].tuned
    inferer = LatentDiffusionSampler(
        NoiseSchedule(**SCHEDULES[schedule]),
        (8, 8, 12),
        num_inference_steps=4 if tuned else 5,
        guidance_scale=2.0,
        guidance_interval=None if tuned else INTERVALS.get(schedule),
        eta=0.0,
        sampler=sampler,
    )
    facts = facts_of(exported("onnx")) | json.loads(json.dumps(sampling_facts(inferer)))
    expected = inferer(torch.tensor([1]), network, seeds=[7]).numpy()
    actual = sample_without_pytorch(exported("onnx"), facts, label=1, seed=7)
    assert actual.shape == expected.shape == (1, 1, 16, 24)
    assert expected.std() > 0.01  # an image with contrast
    assert np.abs(actual - expected).max() < 1e-3


def test_samplers_differ_by_more_than_the_tolerance_of_the_test_before(network):
    """Else that test would pass for the wrong one."""
    images = [
        LatentDiffusionSampler(NoiseSchedule(), (8, 8, 12), 5, 2.0, 0.0, sampler=name, spacing="linspace")(
            torch.tensor([1]), network, seeds=[7]
        )
        for name, sampler in SAMPLERS.items()
        if not sampler.tuned
    ]
    for one, other in combinations(images, 2):
        assert (one - other).abs().max() > 5e-3


@pytest.mark.parametrize("file_format", list(FORMATS))
def test_each_file_reproduces_pytorch_s_values(file_format, exported):
    networks = facts_of(exported(file_format))["networks"]
    assert list(networks) == ["encoder", "decoder", "unet"]
    for facts in networks.values():
        assert facts["difference_from_pytorch"] < 1e-4
        assert facts["sha256"] == file_sha256(exported(file_format) / facts["file"])


def test_facts_are_those_of_the_model_and_its_weights(exported, sampler, model_file):
    facts = facts_of(exported("torchscript"))
    assert (facts["sampler"], facts["eta"], facts["timesteps"]) == (sampler.sampler, sampler.eta, sampler.timesteps)
    assert facts["signal"] == [sampler.schedule.exact_signal[timestep] for timestep in facts["timesteps"]]
    assert facts["sigma"] == [sampler.schedule.exact_sigma[timestep] for timestep in facts["timesteps"]]
    assert len(facts["timesteps"]) == facts["num_inference_steps"] == 4
    assert (facts["image_shape"], facts["latent_shape"]) == ([1, 16, 24], [8, 8, 12])
    assert (facts["guidance_scale"], facts["prediction_type"]) == (2.0, "v_prediction")
    assert facts["class_names"] == ["no_cardiomegaly", "cardiomegaly"]
    assert facts["weights_sha256"] == file_sha256(model_file)
    labels = facts["networks"]["unet"]["inputs"][2]
    assert labels == {"name": "class_labels", "shape": ["batch"], "dtype": "int64", "value_range": [-1, 1]}


def test_files_and_facts_of_a_model_give_the_images_that_it_samples(exported, model_file):
    model = load(model_file, "cpu")
    (seed,) = [derive_seed("image", 3, 1, 0)]
    actual = sample_without_pytorch(exported("onnx"), facts_of(exported("onnx")), label=1, seed=seed)
    assert np.abs(actual - model.sample("cardiomegaly", n=1, seed=3).numpy()).max() < 1e-3


def test_own_guide_is_exported_too(model_file, tmp_path):
    earlier = tiny()
    for weight in earlier.unet.parameters():
        weight.data *= 0.9
    guide = save(earlier, tmp_path / "earlier" / "model.pt")
    guided = write_guided(guide, model_file, tmp_path / "guided", 3.0)
    facts = export_programs(guided, tmp_path / "out", "torchscript")
    assert (facts["guidance_model"], facts["guidance_scale"]) == ("guide", 3.0)
    program = torch.jit.load(tmp_path / "out" / facts["networks"]["guide"]["file"])
    inputs = torch.randn(2, 8, 8, 12), torch.tensor([3, 900]), torch.tensor([0, 1])
    wanted = load(guided, "cpu").own_guide.unet(inputs[0], timesteps=inputs[1], class_labels=inputs[2])
    torch.testing.assert_close(program(*inputs), wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture
def models(model_file, tmp_path):
    """A folder with a copy of the tiny model, which a test may change."""
    return shutil.copytree(model_file.parent, tmp_path / "models")


@pytest.fixture
def export(model_file, tmp_path):
    """Runs `medfusion export` with the tiny networks."""

    def run(*more):
        return main(["export", "--model-file", str(model_file), "--output", str(tmp_path / "out"), *more])

    return run


def write_text(part, example, path):
    path.write_text("a network")


@pytest.mark.parametrize("added", [1.0, math.nan])
def test_file_that_differs_is_not_left(added, export, tmp_path, monkeypatch, capsys):
    def run(part, path, inputs):
        return [value + added for value in part.run(inputs)]

    monkeypatch.setitem(FORMATS, "onnx", Format(".onnx", write_text, run, ()))
    assert export() == 2
    assert "encoder.onnx differs from PyTorch by" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_format_that_cannot_hold_a_network_is_reported_with_the_reason(export, tmp_path, monkeypatch, capsys):
    def run(part, path, inputs):
        raise RuntimeError("Got: 1 Expected: 2\nand more")

    monkeypatch.setitem(FORMATS, "onnx", Format(".onnx", write_text, run, ()))
    assert export() == 2
    message = capsys.readouterr().err
    assert "encoder.onnx cannot be exported for any batch and size: Got: 1 Expected: 2. Nothing was written" in message
    assert not list((tmp_path / "out").iterdir())


def change_info(models, change):
    info = json.loads((models / "model.json").read_text())
    change(info)
    (models / "model.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info["networks"]["unet"].update(channels=[16, 16, 64]), "do not fit this network"),
        (lambda info: info["networks"]["unet"].update(chanels=[16]), "does not describe a network"),
        (lambda info: info["networks"]["unet"].update(type="Transformer"), "a custom network"),
        (lambda info: info["sampler"].update(eta=7), "eta must be between 0 and 1"),
        (lambda info: info["image"].update(size=[17, 24]), "multiples of 2"),
    ],
)
def test_description_that_does_not_fit_is_refused_with_what_to_do(change, words, models, export, capsys, tmp_path):
    change_info(models, change)
    assert export("--model-file", str(models)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_nothing_describes_are_refused(models, export, capsys, tmp_path):
    (models / "model.json").unlink()
    assert export("--model-file", str(models / "model.pt")) == 2
    assert "model.json is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_program_prints_the_files_and_how_close_they_are(export, tmp_path, monkeypatch, capsys):
    def run(part, path, inputs):
        return part.run(inputs)

    monkeypatch.setitem(FORMATS, "onnx", Format(".onnx", write_text, run, ()))
    assert export() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["encoder.onnx", *["differs", "from", "PyTorch", "by", "at", "most", "0.0e+00"]]
    assert lines[-1] == str(tmp_path / "out" / "sampler.json")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["decoder.onnx", "encoder.onnx", "sampler.json", "unet.onnx"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--format", "tflite"], "format must be one of onnx, torchscript"),
        (["--model-file", "none.pt"], "do not exist"),
        (["--format", "onnx", "--report", "x"], "--report is for --format safetensors or diffusers, received"),
    ],
)
def test_export_that_cannot_be_made_is_refused_with_what_to_do(more, words, export, capsys, tmp_path):
    assert export(*more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
