"""A folder of diffusers: what is in it, that it samples our pixels offline, and what is refused."""

import json
import shutil
import socket
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import info_of, tiny

from medfusion_monai.cli import main
from medfusion_monai.export.diffusers_folder import NAMES, export_pipeline
from medfusion_monai.model import load
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.model_info import read_model_info, write_model_info
from medfusion_monai.weights.state_dict import save_weights

diffusers = pytest.importorskip("diffusers")
from hub_server import hub_server  # noqa: E402  needs huggingface_hub, which comes with diffusers

BUNDLE = Path(__file__).parents[2] / "bundles" / "medfusion_cxr"
PLACE, PATIENT = "planted_hospital_disk", "planted-id-4711"
SETTINGS = {
    "unipc": {"sampler": "unipc", "num_inference_steps": 3},
    "ddim with fresh noise": {"sampler": "ddim", "num_inference_steps": 3, "eta": 1.0},
    "guidance": {"sampler": "unipc", "num_inference_steps": 3, "guidance_scale": 2.0},
    "guidance away from the other class": {
        "sampler": "dpm_solver",
        "num_inference_steps": 3,
        "guidance_scale": 1.5,
        "negative_label": [1, 0],
    },
    "guidance on an interval": {
        "sampler": "ddim",
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "eta": 0.0,
        "guidance_interval": [0.3, 3.0],
    },
}


@pytest.fixture(scope="module", autouse=True)
def copies_of_code(tmp_path_factory):
    """Keep diffusers from copying code into the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", place)
        yield


@pytest.fixture(scope="module")
def trained(model_file, tmp_path_factory):
    """The tiny model in a folder whose name must not get out, with stray entries in what is said of it."""
    path = Path(shutil.copy(model_file, tmp_path_factory.mktemp(PLACE) / "model.pt"))
    info = read_model_info(model_file)
    parts = {name: {**info[name], "planted_key": [PATIENT]} for name in ("image", "sampler", "training")}
    write_model_info(path, {**info, **parts, "planted_key": PATIENT})
    return path


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    export_pipeline(trained, folder, BUNDLE)
    return folder


@pytest.fixture(scope="module")
def pipeline(written):
    return pipeline_of(written)


@pytest.fixture
def edited(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "edited"))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pipeline_of(folder, **more):
    code = str(folder / "pipeline.py")
    return diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=code, trust_remote_code=True, **more)


def assert_same_pixels(images, expected):
    """Compare pixels; the last bit can depend on where in memory weights lie."""
    torch.testing.assert_close(images, expected, rtol=0.0, atol=1e-6)


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_folder_contains_what_belongs_there_and_nothing_else(written):
    assert sorted(contents(written)) == sorted(NAMES)


@pytest.mark.parametrize("planted", [PLACE, PATIENT, "planted_key"])
def test_nothing_that_is_written_names_a_place_or_a_patient(written, planted):
    assert [name for name, content in contents(written).items() if planted.encode() in content] == []


@pytest.mark.parametrize("name", SETTINGS)
def test_pipeline_samples_the_pixels_of_the_model(name, network, tmp_path):
    save_weights(network, tmp_path / "model.pt")
    write_model_info(tmp_path / "model.pt", {**info_of(network), "sampler": SETTINGS[name]})
    export_pipeline(tmp_path / "model.pt", tmp_path / "out")
    images = pipeline_of(tmp_path / "out")(["cardiomegaly", 0], n=2, seed=3, output_type="pt").images
    assert_same_pixels(images, load(tmp_path / "model.pt", "cpu").sample(["cardiomegaly", 0], n=2, seed=3))


def test_settings_can_be_chosen_in_the_call(pipeline, trained):
    choices = {"sampler": "unipc", "num_inference_steps": 2, "guidance_scale": 1.0}
    (images,) = pipeline(1, seed=1, output_type="pt", return_dict=False, **choices)
    assert_same_pixels(images, load(trained, "cpu").sample(1, seed=1, **choices))


def test_other_weights_can_guide_it(pipeline, network, tmp_path):
    earlier = tiny()
    for weight in earlier.unet.parameters():
        weight.data *= 0.9
    save_weights(earlier, tmp_path / "earlier.pt")
    write_model_info(tmp_path / "earlier.pt", info_of(earlier))
    choices = {"guidance_model": tmp_path / "earlier.pt", "guidance_scale": 2.0}
    save_weights(network, tmp_path / "model.pt")
    write_model_info(tmp_path / "model.pt", info_of(network))
    images = pipeline(1, output_type="pt", **choices).images
    assert_same_pixels(images, load(tmp_path / "model.pt", "cpu").sample(1, **choices))


def test_images_are_pictures_unless_arrays_are_wanted(pipeline):
    picture, array = pipeline(1).images[0], pipeline(1, output_type="np").images
    assert (picture.mode, picture.size) == ("L", (24, 16))
    assert array.shape == (1, 16, 24, 1)
    assert abs(int(picture.getpixel((5, 4))) - 255 * float(array[0, 4, 5, 0])) <= 0.5
    with pytest.raises(ValueError, match="output_type must be one of pil, np, pt, received 'latent'"):
        pipeline(1, output_type="latent")


def test_color_model_gives_color_pictures(tmp_path):
    network = tiny(["a", "b", "c"], channels=3)
    save_weights(network, tmp_path / "model.pt")
    write_model_info(tmp_path / "model.pt", info_of(network))
    export_pipeline(tmp_path / "model.pt", tmp_path / "out")
    assert pipeline_of(tmp_path / "out")("c").images[0].mode == "RGB"


def test_pipeline_is_loaded_without_a_network(written, monkeypatch):
    def refused(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    assert pipeline_of(written)(0).images


def test_folder_samples_the_same_after_its_way_over_a_hub(written, pipeline, tmp_path):
    with hub_server() as hub:
        hub.api().upload_folder(repo_id="somebody/model", folder_path=written)
        assert hub.files == contents(written)
        hub.api().snapshot_download("somebody/model", local_dir=tmp_path)
    assert_same_pixels(pipeline_of(tmp_path)(1, output_type="pt").images, pipeline(1, output_type="pt").images)


def test_what_was_loaded_is_saved_as_it_was_without_the_place_it_came_from(written, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "again")
    own = {
        name: content for name, content in contents(written).items() if name not in ("README.md", "checksums.sha256")
    }
    assert contents(tmp_path / "again") == own


def test_same_model_gives_the_same_bytes(written, trained, tmp_path):
    export_pipeline(trained, tmp_path, BUNDLE)
    assert contents(tmp_path) == contents(written)


def test_files_can_be_read_by_others(written):
    assert len({path.stat().st_mode for path in written.rglob("*") if path.is_file()}) == 1


def test_lines_of_the_card_sample(written, capsys):
    lines = (written / "README.md").read_text().replace("FOLDER", str(written)).splitlines()
    starts = ("from diffusers", "from medfusion_monai", "pipeline = ", "images = ")
    code = [line for line in lines if line.startswith(starts)]
    assert len(code) == 6
    for part in (code[:3], code[3:]):
        found = {}
        exec("\n".join(part), found)
        assert len(found["images"]) == 4


def test_card_has_a_head_that_the_hub_reads(written):
    card = pytest.importorskip("huggingface_hub").ModelCard.load(written / "README.md")
    assert (card.data.library_name, card.data.license) == ("diffusers", "unknown")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "medical" in card.data.tags
    assert card.text.strip().startswith("# Medfusion chest X-ray: weights")


def test_missing_package_is_named_with_where_to_get_it(written, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"No module named 'medfusion_monai.*from its wheel, as README\.md says"):
        exec((written / "pipeline.py").read_text(), {})


@pytest.mark.parametrize(
    ("part", "entries", "words"),
    [
        ("unet", {"channels": [16, 16, 16]}, "unet cannot be loaded"),
        (
            "unet",
            {"attention": True},
            r"unet: .* does not fit config.json: \d+ missing",
        ),
        (
            "vae",
            {"deep_supervision": False},
            r"vae: .* does not fit config.json: 2 unexpected \(network.conv_out_low",
        ),
        ("unet", {"type": "os.system"}, "unet cannot be loaded: 'os.system' is a custom network"),
    ],
)
def test_network_that_does_not_fit_its_weights_is_refused(part, entries, words, edited):
    path = edited / part / "config.json"
    description = json.loads(path.read_text())["description"]
    change(path, description={**description, **entries})
    with pytest.raises(WeightsError, match=words):
        pipeline_of(edited)


def test_missing_tensor_is_refused_and_not_drawn_at_random(edited):
    path = edited / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["network.latent_std"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing \(network.latent_std\). Fetch both files of one model"):
        pipeline_of(edited)


def test_pickle_in_the_place_of_safetensors_is_not_read(edited):
    path = edited / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(WeightsError, match="unet cannot be loaded: .*safetensors"):
        pipeline_of(edited)


def test_networks_of_two_models_are_refused(edited):
    shutil.rmtree(edited / "vae")
    shutil.copytree(edited / "unet", edited / "vae")
    with pytest.raises(WeightsError, match="not those of one Medfusion model"):
        pipeline_of(edited)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"class_names": ["a"]}, "classes of unet and model_index.json are 2 and 1"),
        ({"image": {"size": [16, 24], "channels": 3}}, "image channels of vae and model_index.json are 1 and 3"),
        ({"image": None}, "not those of one Medfusion model"),
    ],
)
def test_description_of_another_model_is_refused(entries, words, edited):
    path = edited / "model_index.json"
    change(path, description={**json.loads(path.read_text())["description"], **entries})
    with pytest.raises(WeightsError, match=words):
        pipeline_of(edited)


def test_scheduler_of_diffusers_is_refused_with_what_to_do(written):
    pipeline = pipeline_of(written)
    pipeline.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match="the scheduler is a DDIMScheduler: keep the one of this folder"):
        pipeline(1)


def test_weights_in_half_precision_are_refused_with_what_to_do(written):
    with pytest.raises(ValueError, match=r"loaded as torch.float16: load them as float32, and give dtype in the call"):
        pipeline_of(written, torch_dtype=torch.float16)(1)


def test_folder_with_other_files_is_refused_before_weights_are_read(tmp_path, capsys):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "0.npy").write_text("of a patient")
    command = ["export", "--model-file", "none.pt", "--output", str(tmp_path), "--format", "diffusers"]
    assert main(command) == 2
    assert "contains 1 other files, e.g." in capsys.readouterr().err


def test_weights_without_a_description_are_refused(network, tmp_path):
    save_weights(network, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.json"):
        export_pipeline(tmp_path / "model.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_needs_diffusers(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="not installed here: pip install diffusers"):
        export_pipeline(trained, tmp_path)


def test_program_writes_and_prints_the_files(trained, tmp_path, capsys):
    command = ["export", "--model-file", str(trained), "--output", str(tmp_path), "--format", "diffusers"]
    assert main([*command, "--license", "cc0-1.0"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in NAMES]
    assert (tmp_path / "README.md").read_text().startswith("---\nlicense: cc0-1.0\nlibrary_name: diffusers\n")


def test_pipeline_is_the_one_of_the_installed_package(pipeline):
    module = import_module("medfusion_monai.export.diffusers_pipeline")
    assert type(pipeline) is module.MedfusionPipeline
