import pytest
import torch
from tiny_models import save, tiny

import medfusion_monai as mf
from medfusion_monai.cli import main
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.state_dict import save_weights


@pytest.fixture
def model_file(tmp_path):
    return save(tiny(), tmp_path / "models" / "model.pt")


def autoencoder_file(path, *changed):
    network = tiny().autoencoder
    for name, value in network.state_dict().items():
        if name.startswith(changed):
            value += 0.1
    save_weights(network, path)
    return path


def assemble(autoencoder, model_file, output):
    files = {"--autoencoder": autoencoder, "--model-file": model_file, "--output": output}
    return main(["assemble", *(str(word) for pair in files.items() for word in pair)])


def test_model_has_the_other_decoder_and_samples_the_same_latents(model_file, tmp_path, capsys):
    sharper = autoencoder_file(tmp_path / "autoencoder.pt", "decoder", "from_latents", "conv_out")
    assert assemble(sharper, model_file.parent, tmp_path / "new") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "model.pt")
    before, after = mf.load(model_file, "cpu"), mf.load(tmp_path / "new", "cpu")
    assert torch.equal(before.sample_latents(0, n=2), after.sample_latents(0, n=2))
    assert not torch.equal(before.sample(0, n=2), after.sample(0, n=2))
    assert after.info["training"].pop("decoder") == {"weights_sha256": file_sha256(sharper)}
    assert before.info == after.info
    assert mf.load(tmp_path / "new", "cpu").earlier_trained_on == [None], "nothing says what it was trained on"


@pytest.mark.parametrize("changed", ["encoder.0", "conv_in", "to_moments", "latent_mean", "latent_std"])
def test_other_latents_are_refused(changed, model_file, tmp_path, capsys):
    other = autoencoder_file(tmp_path / "autoencoder.pt", changed)
    assert assemble(other, model_file, tmp_path / "new") == 2
    error = capsys.readouterr().err
    assert "was trained on other latents" in error
    assert "--frozen encoder" in error
    assert changed in error
    assert not (tmp_path / "new").exists()


def test_missing_weights_and_an_existing_model_are_refused(model_file, tmp_path, capsys):
    own = autoencoder_file(tmp_path / "autoencoder.pt")
    assert assemble(tmp_path / "none.pt", model_file, tmp_path / "new") == 2
    assert "none.pt" in capsys.readouterr().err
    assert assemble(own, tmp_path / "none", tmp_path / "new") == 2
    assert assemble(own, model_file, model_file.parent) == 2
    assert "exists: choose another folder" in capsys.readouterr().err
    assert assemble(model_file, model_file, tmp_path / "new") == 2
    assert "do not fit this network" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_folder_with_another_model_is_left_alone(name, model_file, tmp_path, capsys):
    own = autoencoder_file(tmp_path / "autoencoder.pt")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_text("kept")
    assert assemble(own, model_file, tmp_path / "new") == 2
    assert f"{name} exists: choose another folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "train_conf": {}}])
def test_model_has_the_unet_of_a_server(wrap, model_file, tmp_path, capsys):
    state = {name: value * 1.01 for name, value in tiny().unet.state_dict().items()}
    torch.save(wrap(state), tmp_path / "FL_global_model.pt")
    files = ["--unet", tmp_path / "FL_global_model.pt", "--model-file", model_file, "--output", tmp_path / "new"]
    assert main(["assemble", *map(str, files)]) == 0
    after = mf.load(tmp_path / "new", "cpu")
    assert all(torch.equal(value, state[name]) for name, value in after.network.unet.state_dict().items())
    assert after.info["training"] == {}
    assert after.trained_on is None
    assert after.sample(0, n=1).isfinite().all()


def test_other_unet_is_refused(model_file, tmp_path, capsys):
    cases = {
        "other": tiny(["a", "b", "c"]).unet.state_dict(),
        "nan": {name: value * torch.nan for name, value in tiny().unet.state_dict().items()},
        "list": [1],
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / f"{name}.pt")
        files = ["--unet", tmp_path / f"{name}.pt", "--model-file", model_file, "--output", tmp_path / "new"]
        assert main(["assemble", *map(str, files)]) == 2
    error = capsys.readouterr().err
    for words in ("do not fit the UNet of", "values that are not finite", "are not a state dict"):
        assert words in error
    assert not (tmp_path / "new").exists()
