import json
import shutil
import zipfile

import pytest
import torch
from tiny_models import info_of, save, tiny

import medfusion_monai as mf
from medfusion_monai.model import Model, make_sampler
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.model_info import model_info_path, write_model_info
from medfusion_monai.weights.state_dict import save_weights


def disturbed(part=""):
    """Return the tiny networks with other weights in one of their parts."""
    network, generator = tiny(), torch.Generator().manual_seed(1)
    for name, weight in network.named_parameters():
        if name.startswith(part):
            weight.data += 0.01 * torch.randn(weight.shape, generator=generator)
    return network


@pytest.fixture
def model_file(tmp_path):
    return save(tiny(), tmp_path / "models" / "model.pt")


@pytest.fixture
def guide_file(tmp_path):
    return save(disturbed("unet."), tmp_path / "earlier" / "model.pt")


def change(path, **changes):
    """Change a description."""
    info = json.loads(model_info_path(path).read_text())
    write_model_info(path, {**info, **changes})


def test_weights_of_an_earlier_step_guide_a_model(model_file, guide_file):
    model = mf.load(model_file, "cpu")
    guided = model.sample(1, n=2, guidance_model=guide_file)
    assert guided.std() > 0.01
    assert torch.equal(guided, model.sample(1, n=2, guidance_model=str(guide_file.parent)))
    assert not torch.equal(guided, model.sample(1, n=2))
    sampler = make_sampler(model, guidance_model=guide_file)
    assert (sampler.guidance_scale, sampler.guide.sha256) == (2.0, file_sha256(guide_file))
    assert not sampler.guide.training


def test_model_of_a_zip_can_be_guided(model_file, guide_file, tmp_path):
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        for path in model_file.parent.iterdir():
            archive.write(path, f"bundle/models/{path.name}")
    model = mf.load(tmp_path / "bundle.zip", "cpu")
    assert torch.equal(
        model.sample(1, guidance_model=guide_file), mf.load(model_file, "cpu").sample(1, guidance_model=guide_file)
    )


def test_smaller_network_may_guide(model_file, tmp_path):
    network = tiny()
    unet = UNet(channels=[8, 16], num_classes=2, embedding_channels=16, norm_groups=8)
    small = Medfusion(network.autoencoder, unet, network.class_names, network.image_size).eval()
    model = mf.load(model_file, "cpu")
    assert model.sample(0, guidance_model=save(small, tmp_path / "small" / "model.pt")).isfinite().all()


def test_negative_label_of_the_weights_gives_way_to_a_guide(model_file, guide_file):
    change(model_file, sampler={"guidance_scale": 2.0, "negative_label": 0})
    assert make_sampler(mf.load(model_file, "cpu"), guidance_model=guide_file).negative_label is None


def test_other_autoencoder_is_refused(model_file, tmp_path):
    other = save(disturbed("autoencoder."), tmp_path / "other" / "model.pt")
    with pytest.raises(WeightsError, match=r"other/model\.pt has other weights of the autoencoder than .*models/model"):
        make_sampler(Model(model_file), guidance_model=other)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("class_names", ["cardiomegaly", "no_cardiomegaly"], "class_names was"),
        ("schedule", {"type": "NoiseSchedule", "prediction_type": "epsilon"}, "schedule.prediction_type was"),
        ("image", {"size": [32, 32], "channels": 1}, r"image_size was \[16, 24\], now it is \[32, 32\]"),
    ],
)
def test_other_training_is_refused(part, value, words, model_file, guide_file):
    change(guide_file, **{part: value})
    with pytest.raises(WeightsError, match=f"guidance_model .*earlier/model.pt does not fit .*{words}"):
        make_sampler(Model(model_file), guidance_model=guide_file)


def test_other_latents_are_refused(model_file, guide_file):
    networks = info_of(tiny())["networks"]
    networks["autoencoder"]["latent_channels"] = 4
    change(guide_file, networks=networks)
    with pytest.raises(WeightsError, match=r"autoencoder.latent_channels was 8, now it is 4"):
        make_sampler(Model(model_file), guidance_model=guide_file)


def test_model_itself_is_refused_as_its_guide(model_file):
    with pytest.raises(WeightsError, match="is the model itself"):
        make_sampler(Model(model_file), guidance_model=model_file.parent)


@pytest.mark.parametrize("path", ["missing.pt", "missing"])
def test_missing_guide_is_named(path, model_file):
    with pytest.raises(WeightsError, match="guidance_model missing.* does not exist"):
        make_sampler(Model(model_file), guidance_model=path)


def test_missing_model_is_named_before_its_guide(guide_file, tmp_path):
    untrained = Model(tmp_path / "model.pt", without_weights={"image_channels": 1, "class_names": ["a", "b"]})
    with pytest.raises(WeightsError, match=r"weights .*model\.pt do not exist"):
        make_sampler(untrained, guidance_model=guide_file)


def test_anything_but_a_path_is_refused(model_file):
    with pytest.raises(ValueError, match="guidance_model must be the path of weights, received 3"):
        make_sampler(Model(model_file), guidance_model=3)


def test_damaged_guide_is_refused(model_file, guide_file):
    guide_file.write_bytes(guide_file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"earlier/model\.pt"):
        make_sampler(Model(model_file), guidance_model=guide_file)


def test_guide_without_a_description_is_refused(model_file, tmp_path):
    save_weights(tiny(), tmp_path / "bare.pt")
    with pytest.raises(WeightsError, match="have no description"):
        make_sampler(Model(model_file), guidance_model=tmp_path / "bare.pt")


def test_guide_under_another_name_is_recognised(model_file, guide_file, tmp_path):
    shutil.copy(guide_file, tmp_path / "renamed.pt")
    shutil.copy(model_info_path(guide_file), tmp_path / "renamed.json")
    assert make_sampler(Model(model_file), guidance_model=tmp_path / "renamed.pt").guide.sha256 == file_sha256(
        guide_file
    )
