"""No file of weights, features or latents runs code: what the package may call, and what it does with armed files."""

import ast
import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from tiny_models import info_of, tiny
from torch import nn

import medfusion_monai
from medfusion_monai.data.training.latent_store import LatentStore
from medfusion_monai.data.training.stream import StreamSampler
from medfusion_monai.evaluation.metrics.feature_cache import read_features
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.phantom_network import load_phantom_network
from medfusion_monai.export.bundle import parts_of
from medfusion_monai.export.diffusers_folder import export_pipeline
from medfusion_monai.export.programs import export_programs
from medfusion_monai.export.safetensors_folder import export_weights
from medfusion_monai.losses.perceptual import build_lpips
from medfusion_monai.networks.diffusers_autoencoder import DiffusersAutoencoder
from medfusion_monai.training.handlers.checkpoint import CheckpointError, TrainingCheckpoint, previous_of
from medfusion_monai.training.pretrained_start import PretrainedStart
from medfusion_monai.training.train_autoencoder import AutoencoderTraining
from medfusion_monai.training.train_diffusion import DiffusionTraining
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.published import load_published
from medfusion_monai.weights.state_dict import read_state

PACKAGE = Path(medfusion_monai.__file__).parent

RUNS_CODE = {
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "numpy.lib.format.read_array",
    "onnx.load",
    "pickle",
    "shelve",
    "torch.compiler.load_cache_artifacts",
    "torch.export.load",
    "torch.hub",
    "torch.jit.load",
    "torch.package",
    "torch.utils.model_zoo",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
"""Modules and functions that run what is in a file, or fetch it."""

BUILTINS = {"eval", "exec", "compile", "__import__"}
EXCEPTIONS = {
    ("bundle/keys.py", "yaml.load"): "with CSafeLoader or SafeLoader, which make plain data alone",
    (
        "evaluation/metrics/feature_networks.py",
        "torch.jit.load",
    ): "a program that a user names; see SECURITY.md",
    ("export/formats.py", "torch.jit.load"): "reads what it has just written itself",
}
SAFE_KEYWORDS = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def full_names(tree):
    """Return the full names of what a module imports, by the names that it goes by there."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else (alias.name.partition(".")[0])
                )
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name_of(node, names):
    """Return the full name of an expression like ``np.load``, or an empty text."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        above = name_of(node.value, names)
        return f"{above}.{node.attr}" if above else ""
    return ""


def keyword_is(call, name, value):
    return any(
        item.arg == name and isinstance(item.value, ast.Constant) and item.value.value is value
        for item in call.keywords
    )


def risks_of(source):
    """List what in a module could run code of a file: (name, line)."""
    tree = ast.parse(source)
    names, risks = full_names(tree), []
    imported = {name for alias in names.values() for name in (alias, *[alias.rsplit(".", 1)[0]])}
    risks += [(name, 0) for name in sorted(imported & RUNS_CODE)]
    for node in ast.walk(tree):
        name = name_of(node.func, names) if isinstance(node, ast.Call) else name_of(node, names)
        if isinstance(node, ast.Attribute) and name in RUNS_CODE:
            risks.append((name, node.lineno))
        if isinstance(node, ast.Call) and name in BUILTINS:
            risks.append((name, node.lineno))
        if isinstance(node, ast.Call) and name in SAFE_KEYWORDS and not keyword_is(node, *SAFE_KEYWORDS[name]):
            risks.append((name, node.lineno))
        if (
            isinstance(node, ast.Call)
            and name.endswith(".from_pretrained")
            and not keyword_is(node, "use_safetensors", True)
        ):
            risks.append((name, node.lineno))
    return risks


def test_package_calls_nothing_that_runs_code_of_a_file_but_what_is_listed():
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name, _ in risks_of(path.read_text(encoding="utf-8"))
    }
    assert found == set(EXCEPTIONS)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=wanted)",
        "from torch import load\nload(path)",
        "from torch import load as read\nread(path)",
        "import torch as t\nt.load(path)",
        "import torch.jit as jit\njit.load(path)",
        "import torch\ntorch.jit.load(path)",
        "from torch.jit import load\nload(path)",
        "import torch\nread = torch.jit.load",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import pickle",
        "from pickle import loads",
        "def f():\n    import pickle",
        "import joblib",
        "import yaml\nyaml.load(text)",
        "import torch\ntorch.hub.load(name)",
        "eval(text)",
        "from diffusers import AutoencoderKL\nAutoencoderKL.from_pretrained(folder)",
    ],
)
def test_what_runs_code_is_found(source):
    assert risks_of(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, mmap_mode='r', allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "network.eval()\nre.compile(text)",
        "network.load(path)",
    ],
)
def test_what_runs_no_code_is_not_taken_for_it(source):
    assert risks_of(source) == []


class Armed:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.fixture
def target(tmp_path):
    """The file that an armed one writes if it is let."""
    path = tmp_path / "harm"
    yield path
    assert not path.exists()


@pytest.fixture(params=["torch", "torch, old format", "pickle"])
def armed(request, target, tmp_path):
    """Writes an armed file, with these entries beside the harm, and gives its path."""

    def write(name, **entries):
        path, content = tmp_path / name, {"0.weight": Armed(target), **entries}
        if request.param == "pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=request.param == "torch")
        return path

    return write


def test_armed_file_does_harm_where_it_is_unpickled(tmp_path):
    torch.save({"0.weight": Armed(tmp_path / "harm")}, tmp_path / "armed.pt")
    torch.load(tmp_path / "armed.pt", weights_only=False)["0.weight"].close()
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model"])
def test_weights_of_a_model(armed, name):
    path = armed(name)
    write_model_info(path, info_of(tiny()))
    with pytest.raises(ValueError, match="cannot be read"):
        medfusion_monai.Model(path).load_weights()


def phase(autoencoder_file, best_file=None):
    """What the ends of a phase use of it."""
    run = SimpleNamespace(autoencoder_file=Path(autoencoder_file), num_workers=0, device="cpu")
    run.pretrained = PretrainedStart()
    best, dataset = SimpleNamespace(path=best_file), SimpleNamespace(images=[0])
    network = nn.Sequential(nn.Linear(2, 3))
    ended = SimpleNamespace(training_run=run, best=best, dataset=dataset, batch_size=1, autoencoder=network)
    ended.is_needed, ended._write = True, lambda: AutoencoderTraining._write(ended)
    return ended


def test_weights_of_phase_one(armed):
    with pytest.raises(ValueError, match="cannot be read"):
        DiffusionTraining._load_autoencoder(phase(armed("autoencoder.pt")))


def test_best_weights_at_the_end_of_phase_one(armed):
    with pytest.raises(ValueError, match="cannot be read"):
        AutoencoderTraining.finish(phase("autoencoder.pt", armed("best.pt")))


def test_weights_that_phase_one_finds_in_its_place_are_replaced(armed, tmp_path, monkeypatch):
    """They are looked at to see whether they are its own."""
    monkeypatch.setattr("medfusion_monai.training.train_autoencoder.measure_latent_statistics", lambda *_: (0.0, 1.0))
    ended = phase(armed("autoencoder.pt"), tmp_path / "best.pt")
    network = ended.autoencoder
    network.set_latent_statistics = lambda *_: None
    torch.save(network.state_dict(), tmp_path / "best.pt")
    AutoencoderTraining.finish(ended)
    path = ended.training_run.autoencoder_file
    assert torch.equal(torch.load(path, weights_only=True)["0.weight"], network[0].weight)


@pytest.mark.parametrize("place", ["newest", "previous"])
def test_training_checkpoint(armed, tmp_path, place):
    path = armed("training.pt", iteration=1, settings={})
    if place == "previous":
        path.rename(previous_of(path))
    checkpoint = TrainingCheckpoint(tmp_path / "training.pt", {}, StreamSampler(4))
    engine = Engine(lambda engine, batch: None)
    checkpoint.attach(engine)
    with pytest.raises(CheckpointError, match="cannot be read"):
        engine.run([0], max_epochs=1)


def test_weights_within_a_published_checkpoint(armed, target):
    with pytest.raises(ValueError, match="not a tensor|not a zip file"):
        load_published(armed("last.ckpt", state_dict={"inc.weight": Armed(target)}))


def test_what_else_is_in_a_published_checkpoint(armed, target):
    with pytest.raises(ValueError, match="no published network|not a zip file"):
        load_published(armed("last.ckpt", hyper_parameters=Armed(target), state_dict={"a.weight": torch.zeros(1)}))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_first_stage_of_diffusers(armed, tmp_path, suffix):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    armed(f"diffusion_pytorch_model{suffix}")
    with pytest.raises(ValueError, match="first stage"):
        DiffusersAutoencoder(tmp_path)


@pytest.mark.parametrize(
    "features", ["phantoms:{file}", "torchvision:resnet18:{file}", "torchvision:densenet121:{file}", "inception:{file}"]
)
def test_features_of_an_evaluation(armed, features):
    path = armed("features.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="cannot be read"):
        load_extractor(features.format(file=path), digest)


def test_network_of_phantom_features(armed):
    with pytest.raises(ValueError, match="cannot be read"):
        load_phantom_network(armed("features.pt"))


def test_backbone_of_the_perceptual_loss(armed):
    with pytest.raises(Exception, match=r"[Uu]npickl|Weights only"):
        build_lpips("alex", armed("alexnet.pth"), calibrated=False)


def test_pretrained_state(armed):
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(armed("state.pt"))


@pytest.mark.parametrize("export", [export_programs, export_weights, export_pipeline])
def test_weights_that_are_exported(armed, export, tmp_path):
    path = armed("model.pt")
    write_model_info(path, info_of(tiny()))
    with pytest.raises(ValueError, match="cannot be read"):
        export(path, tmp_path / "out")


def test_weights_of_a_bundle_that_is_given_to_others(armed, tmp_path):
    (tmp_path / "models").mkdir()
    path = armed("models/model.pt")
    write_model_info(path, info_of(tiny()))
    with pytest.raises(ValueError, match="cannot be read"):
        parts_of(tmp_path)


def armed_array(target):
    body = io.BytesIO()
    np.save(body, np.array([Armed(target)], dtype=object), allow_pickle=True)
    return body.getvalue()


def test_armed_array_does_harm_where_it_is_let(tmp_path):
    np.load(io.BytesIO(armed_array(tmp_path / "harm")), allow_pickle=True)[0].close()
    assert (tmp_path / "harm").exists()


def test_kept_features_with_a_matching_checksum(target, tmp_path):
    body = armed_array(target)
    (tmp_path / "features.npy").write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_features(tmp_path / "features.npy", (1, 1))


def test_latents_of_a_store_are_taken_for_missing(target, tmp_path):
    store = LatentStore(tmp_path / "latents", {"flips": []}, [0], (2, 1, 1))
    store.write(0, np.zeros((1, 2, 1, 1), np.float32))
    assert store.missing() == []
    (shard,) = store.folder.glob("moments-*.npy")
    shard.write_bytes(armed_array(target))
    assert store.missing() == [0]
    with pytest.raises(ValueError, match="Python objects"):
        store[0]


def test_guard_against_copies(target, tmp_path):
    guard = pytest.importorskip("medfusion_monai.audit.guard")
    with zipfile.ZipFile(tmp_path / guard.GUARD_NAME, "w") as archive:
        for name in ("training", "held_out", "facts", "digest"):
            archive.writestr(f"{name}.npy", armed_array(target))
    with pytest.raises(guard.GuardError, match="cannot be read"):
        guard.load_guard(tmp_path)
