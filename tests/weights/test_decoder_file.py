"""Small decoders: written, read, used by a model, and refused for other latents."""

import shutil

import pytest
import torch
from tiny_models import info_of, save, save_gan, tiny

import medfusion_monai as mf
from medfusion_monai.model import make_sampler
from medfusion_monai.networks.autoencoder import decoder_names
from medfusion_monai.networks.small_decoder import SmallDecoder
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.decoder_file import (
    NAME,
    decoder_beside,
    latents_sha256,
    load_small_decoder,
    save_small_decoder,
)
from medfusion_monai.weights.model_info import METADATA_KEY, model_info_text
from medfusion_monai.weights.state_dict import save_safetensors


def small(latent_channels=8, out_channels=1, levels=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallDecoder(latent_channels, out_channels, [4] * levels, [1] * levels).eval()


def changed(choose):
    """Return the tiny autoencoder with one value changed in each weight of a chosen name."""
    autoencoder = tiny().autoencoder
    for name, value in autoencoder.state_dict().items():
        if choose(name, autoencoder):
            value.view(-1)[0] += 0.5
    return autoencoder


@pytest.fixture
def model_file(tmp_path):
    return save(tiny(), tmp_path / "models" / "model.pt")


@pytest.fixture
def decoder_file(model_file):
    save_small_decoder(small(), model_file.with_name(NAME), tiny().autoencoder, {"steps": 3})
    return model_file.with_name(NAME)


def test_decoder_is_read_as_it_was_written(decoder_file):
    decoder, latents = load_small_decoder(decoder_file, tiny().autoencoder), torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(decoder(latents), small()(latents))
    assert decoder.sha256 == file_sha256(decoder_file)
    assert not decoder.training


def test_same_decoder_gives_the_same_bytes_and_names_no_path(decoder_file, tmp_path):
    save_small_decoder(small(), tmp_path / "again.safetensors", tiny().autoencoder, {"steps": 3})
    content = decoder_file.read_bytes()
    assert (tmp_path / "again.safetensors").read_bytes() == content
    assert str(tmp_path).encode() not in content


def test_latents_are_those_of_encoder_and_statistics():
    own = latents_sha256(tiny().autoencoder)
    assert latents_sha256(changed(lambda name, autoencoder: name in decoder_names(autoencoder))) == own
    assert latents_sha256(changed(lambda name, _: name == "to_moments.1.bias")) != own
    assert latents_sha256(changed(lambda name, _: name == "latent_std")) != own


def test_latents_of_weights_in_half_precision_are_the_same():
    autoencoder = tiny().autoencoder
    own, parameters = latents_sha256(autoencoder), dict(autoencoder.named_parameters())
    state = {name: value.half() if name in parameters else value for name, value in autoencoder.state_dict().items()}
    assert latents_sha256(autoencoder, state) == own
    autoencoder.load_state_dict(state)
    assert latents_sha256(autoencoder) == own


def test_model_samples_by_the_small_decoder_what_it_decodes(model_file, decoder_file):
    model = mf.load(model_file, "cpu")
    images = model.sample(1, n=2, decoder="small")
    expected = (small()(model.sample_latents(1, n=2)) * 0.5 + 0.5).clamp(0.0, 1.0)
    torch.testing.assert_close(images, expected.detach())
    assert torch.equal(images, model.sample(1, n=2, decoder=decoder_file))
    assert not torch.allclose(images, model.sample(1, n=2), atol=0.01)
    assert torch.equal(model.sample(1, decoder="full"), model.sample(1))


def test_sampler_says_which_decoder_it_uses(model_file, decoder_file):
    model = mf.load(model_file, "cpu")
    samplers = [make_sampler(model, decoder=choice) for choice in (None, "full", "small")]
    said = [sampler.identity(model.network)["decoder"] for sampler in samplers]
    assert said == ["full", "full", file_sha256(decoder_file)]


def test_decoder_of_starter_weights_gives_way_to_that_of_the_user(model_file, decoder_file):
    starter = model_file.parent / "starter"
    starter.mkdir()
    for path in (model_file, model_file.with_suffix(".json")):
        shutil.move(path, starter)
    shutil.copy(decoder_file, starter)
    assert decoder_beside(starter / "model.pt") == decoder_file
    assert mf.load(model_file.parent, "cpu").sample(0, decoder="small").isfinite().all()
    decoder_file.unlink()
    assert decoder_beside(starter / "model.pt") == starter / NAME


@pytest.mark.parametrize(
    ("decoder", "autoencoder", "said"),
    [
        (small(4), None, "latent channels 4, the model has 8"),
        (small(8, 3), None, "image channels 3, the model has 1"),
        (small(levels=3), None, "reduction of height and width 8, the model has 2"),
        (small(), changed(lambda name, _: name == "latent_mean"), "decodes the latents of other weights: SHA-256"),
    ],
)
def test_decoder_of_other_latents_is_refused(decoder, autoencoder, said, model_file, tmp_path):
    path = tmp_path / "other.safetensors"
    save_small_decoder(decoder, path, autoencoder or tiny().autoencoder, {})
    with pytest.raises(WeightsError, match=rf"decoder .*other.safetensors .*{said}.*run train_small_decoder"):
        mf.load(model_file, "cpu").sample(0, decoder=path)


def test_what_is_no_small_decoder_is_refused(model_file, decoder_file, tmp_path):
    model = mf.load(model_file, "cpu")
    described = {METADATA_KEY: model_info_text(info_of(tiny()))}
    save_safetensors(tiny(), tmp_path / "model.safetensors", described)
    for choice, said in (
        (tmp_path / "model.safetensors", "is not a small decoder: its header has no small_decoder"),
        (model_file, "is not a small decoder"),
        (tmp_path / "missing.safetensors", "decoder .*missing.safetensors does not exist: distil one"),
        (3, "decoder must be full, small or the path of a file, received 3"),
    ):
        with pytest.raises(ValueError, match=said):
            model.sample(0, decoder=choice)
    decoder_file.write_bytes(decoder_file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be read: damaged"):
        model.sample(0, decoder="small")
    decoder_file.unlink()
    with pytest.raises(WeightsError, match=f"decoder .*{NAME} does not exist"):
        model.sample(0, decoder="small")


def test_file_of_a_later_format_is_refused(model_file, tmp_path):
    path = tmp_path / "later.safetensors"
    save_safetensors(small(), path, {"small_decoder": '{"format": 2}'})
    with pytest.raises(WeightsError, match="is of format 2; .* install a newer version"):
        mf.load(model_file, "cpu").sample(0, decoder=path)


def test_gan_has_no_decoder_to_choose(tmp_path):
    model = mf.load(save_gan(tmp_path / "model.pt"), "cpu")
    assert model.sample(0, decoder="full").isfinite().all()
    with pytest.raises(ValueError, match="leave out decoder"):
        model.sample(0, decoder="small")
