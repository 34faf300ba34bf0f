import json
import shutil
import zipfile

import pytest
import torch
from tiny_models import copy_of_chest_bundle, info_of, save, tiny

import medfusion_monai as mf
from medfusion_monai.cli import main
from medfusion_monai.editing.anomaly import anomaly_map
from medfusion_monai.export import export_pipeline, export_weights
from medfusion_monai.export.bundle import bundle_files, parts_of
from medfusion_monai.model import Model, make_sampler
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.assembled import write_assembled
from medfusion_monai.weights.model_info import model_info_path, read_model_info, write_model_info
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


def test_other_encoder_is_refused(model_file, tmp_path):
    other = save(disturbed("autoencoder.encoder"), tmp_path / "other" / "model.pt")
    with pytest.raises(WeightsError, match=r"other/model\.pt was trained on other latents than .*models/model"):
        make_sampler(Model(model_file), guidance_model=other)


def test_decoder_and_precision_of_a_guide_do_not_matter(model_file, tmp_path):
    other = save(disturbed("autoencoder.decoder"), tmp_path / "other" / "model.pt")
    assert make_sampler(Model(model_file), guidance_model=other).guide is not None
    export_weights(other, tmp_path / "half", half=True)
    assert make_sampler(Model(model_file), guidance_model=tmp_path / "half").guide is not None


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


def test_model_itself_is_refused_as_its_guide(model_file, tmp_path):
    shutil.copytree(model_file.parent, tmp_path / "copy")
    for folder in (model_file.parent, tmp_path / "copy"):
        with pytest.raises(WeightsError, match="is the model itself"):
            make_sampler(Model(model_file), guidance_model=folder)


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
    save_weights(disturbed("unet."), tmp_path / "bare.pt")
    with pytest.raises(WeightsError, match="have no description"):
        make_sampler(Model(model_file), guidance_model=tmp_path / "bare.pt")


def test_guide_under_another_name_is_recognised(model_file, guide_file, tmp_path):
    shutil.copy(guide_file, tmp_path / "renamed.pt")
    shutil.copy(model_info_path(guide_file), tmp_path / "renamed.json")
    assert make_sampler(Model(model_file), guidance_model=tmp_path / "renamed.pt").guide.sha256 == file_sha256(
        guide_file
    )


def guided(model_file, guide_file, output, *options):
    """Run `medfusion assemble` with a guide."""
    files = {"--guide": guide_file, "--model-file": model_file, "--output": output}
    return main(["assemble", *(str(word) for pair in files.items() for word in pair), *options])


@pytest.fixture
def guided_file(model_file, guide_file, tmp_path):
    assert guided(model_file, guide_file, tmp_path / "guided", "--guidance-scale", "3") == 0
    return tmp_path / "guided" / "model.pt"


def test_weights_bring_their_guide(model_file, guide_file, guided_file):
    model, wanted = mf.load(guided_file, "cpu"), {"guidance_model": guide_file, "guidance_scale": 3.0}
    assert sorted(path.name for path in guided_file.parent.iterdir()) == ["guide.safetensors", "model.json", "model.pt"]
    assert torch.equal(model.sample(1, n=2), mf.load(model_file, "cpu").sample(1, n=2, **wanted))
    other = mf.load(model_file, "cpu").sample(1, **{**wanted, "guidance_scale": 1.5})
    assert torch.equal(model.sample(1, guidance_scale=1.5), other), "another scale is that of the own guide"
    assert model.sampler.guide.sha256 == file_sha256(guided_file.with_name("guide.safetensors"))


@pytest.mark.parametrize(
    "choices",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 2.0, "guidance_model": "none"},
        {"guidance_scale": 2.0, "negative_label": 0},
    ],
)
def test_other_guidance_takes_the_place_of_the_own_guide(choices, model_file, guided_file):
    plain = {name: value for name, value in choices.items() if name != "guidance_model"}
    assert make_sampler(Model(guided_file), **choices).guide is None
    assert torch.equal(mf.load(guided_file, "cpu").sample(1, **choices), mf.load(model_file, "cpu").sample(1, **plain))


def test_anomaly_maps_are_guided_by_the_label_unless_a_guide_is_chosen(model_file, guide_file, guided_file):
    images = torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(0))

    def shown(file, **choices):
        return anomaly_map(mf.load(file, "cpu"), images, 0, n=1, **choices)

    assert torch.equal(shown(guided_file), shown(model_file))
    chosen = {"guidance_model": guide_file}
    assert torch.equal(shown(guided_file, **chosen), shown(model_file, **chosen))
    assert not torch.equal(shown(model_file, **chosen), shown(model_file))


def test_own_scale_is_not_that_of_other_guidance(guided_file):
    assert make_sampler(Model(guided_file), guidance_model="none").guidance_scale == 1.0
    with pytest.raises(ValueError, match="negative_label"):
        make_sampler(Model(guided_file), negative_label=0)


def test_own_guide_travels_with_the_weights(guided_file, tmp_path):
    images = mf.load(guided_file, "cpu").sample(1, n=2)
    export_weights(guided_file, tmp_path / "shared")
    listed = (tmp_path / "shared" / "checksums.sha256").read_text()
    assert sorted(line.split()[1] for line in listed.splitlines()) == [
        "guide.safetensors",
        "model.json",
        "model.safetensors",
    ]
    assert torch.equal(mf.load(tmp_path / "shared", "cpu").sample(1, n=2), images)
    export_weights(guided_file, tmp_path / "half", half=True)
    sizes = [(tmp_path / folder / "guide.safetensors").stat().st_size for folder in ("half", "shared")]
    assert sizes[0] < 0.7 * sizes[1]
    assert (mf.load(tmp_path / "half", "cpu").sample(1, n=2) - images).abs().mean() < 0.02
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        for path in (tmp_path / "shared").iterdir():
            archive.write(path, f"bundle/models/{path.name}")
    assert torch.equal(mf.load(tmp_path / "bundle.zip", "cpu").sample(1, n=2), images)


def test_own_guide_is_in_a_shared_bundle(guided_file, tmp_path):
    bundle = copy_of_chest_bundle(tmp_path / "bundle")
    shutil.copytree(guided_file.parent, bundle / "models", dirs_exist_ok=True)
    files = bundle_files(parts_of(bundle), {}, "")
    assert files["models/guide.safetensors"] == bundle / "models" / "guide.safetensors"
    assert b"guide.safetensors" in files["models/checksums.sha256"]


def test_damaged_guide_of_shared_weights_is_refused(guided_file, tmp_path):
    export_weights(guided_file, tmp_path / "shared")
    file = tmp_path / "shared" / "guide.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(WeightsError, match=r"guide\.safetensors"):
        mf.load(tmp_path / "shared", "cpu").sample(1)


def test_missing_guide_of_its_own_is_named(guided_file, tmp_path):
    guided_file.with_name("guide.safetensors").unlink()
    save_weights(tiny().autoencoder, tmp_path / "autoencoder.pt")
    for use in (
        lambda: mf.load(guided_file, "cpu").sample(1),
        lambda: export_weights(guided_file, tmp_path / "shared"),
        lambda: write_assembled(tmp_path / "autoencoder.pt", guided_file, tmp_path / "new"),
    ):
        with pytest.raises(WeightsError, match=r"guided/guide\.safetensors does not exist.*copy it from where"):
            use()
    assert mf.load(guided_file, "cpu").sample(1, guidance_scale=1.0).isfinite().all()


def test_description_may_name_no_other_file(guided_file):
    info = json.loads(model_info_path(guided_file).read_text())
    write_model_info(guided_file, {**info, "sampler": {**info["sampler"], "guidance_model": "../earlier/model.pt"}})
    with pytest.raises(WeightsError, match=r"names guidance_model '\.\./earlier/model\.pt': only guide\.safetensors"):
        mf.load(guided_file, "cpu").sample(1)


def test_pipeline_of_diffusers_leaves_the_guide_out(guided_file, tmp_path, caplog):
    export_pipeline(guided_file, tmp_path / "pipeline")
    assert "a pipeline holds no guide" in caplog.text
    settings = json.loads((tmp_path / "pipeline" / "scheduler" / "scheduler_config.json").read_text())["sampler"]
    assert settings["guidance_scale"] == 1.0
    assert "guidance_model" not in settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--guide needs --guidance-scale"),
        (["--guidance-scale", "1"], "guidance_scale must be a number above 1"),
        (["--guidance-scale", "nan"], "guidance_scale must be a number above 1"),
        (["--guidance-scale", "2", "--guidance-interval", "3", "1"], "guidance_interval must be two noise levels"),
    ],
)
def test_unusable_guidance_is_refused(options, words, model_file, guide_file, tmp_path, capsys):
    assert guided(model_file, guide_file, tmp_path / "new", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_weights_for_few_steps_take_no_guide(model_file, guide_file, tmp_path, capsys):
    change(model_file, sampler={"sampler": "distilled", "num_inference_steps": 2, "guidance_scale": 2.0})
    assert guided(model_file, guide_file, tmp_path / "new", "--guidance-scale", "2") == 2
    assert "tuned for few steps" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_guide_brings_no_guide_of_its_own(model_file, guided_file, tmp_path):
    better = save(disturbed("unet."), tmp_path / "better" / "model.pt")
    assert guided(better, guided_file, tmp_path / "new", "--guidance-scale", "2") == 0
    info = read_model_info(tmp_path / "new" / "guide.safetensors")
    assert "guidance_model" not in info["sampler"]
    assert info["networks"] == read_model_info(guided_file)["networks"]


def test_audit_learns_what_a_guide_was_trained_on(model_file, guide_file, tmp_path):
    change(guide_file, training={"images": "ab" * 16, "image_count": 5, "source": "/ward7"})
    assert guided(model_file, guide_file, tmp_path / "new", "--guidance-scale", "2") == 0
    model = mf.load(tmp_path / "new", "cpu")
    known = {"weights_sha256": file_sha256(guide_file), "images": "ab" * 16, "image_count": 5}
    assert model.info["training"]["guide"] == known
    assert model.earlier_trained_on == ["ab" * 16]
    export_weights(tmp_path / "new", tmp_path / "shared")
    assert "The guide (SHA-256" in (tmp_path / "shared" / "README.md").read_text()


def test_scale_without_a_guide_is_refused(model_file, tmp_path, capsys):
    words = ["--autoencoder", model_file, "--model-file", model_file, "--output", tmp_path, "--guidance-scale", 2]
    assert main(["assemble", *map(str, words)]) == 2
    assert "those of --guide" in capsys.readouterr().err


def test_guide_on_other_latents_is_not_assembled(model_file, tmp_path, capsys):
    other = save(disturbed("autoencoder.encoder"), tmp_path / "other" / "model.pt")
    assert guided(model_file, other, tmp_path / "new", "--guidance-scale", "2") == 2
    assert "was trained on other latents" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_guide_stays_with_another_decoder_but_not_with_another_unet(guided_file, tmp_path):
    save_weights(disturbed("autoencoder.decoder").autoencoder, tmp_path / "autoencoder.pt")
    torch.save(disturbed("unet.").unet.state_dict(), tmp_path / "unet.pt")
    for part in ("autoencoder", "unet"):
        words = [f"--{part}", tmp_path / f"{part}.pt", "--model-file", guided_file, "--output", tmp_path / part]
        assert main(["assemble", *map(str, words)]) == 0
    assert mf.load(tmp_path / "autoencoder", "cpu").sampler.guide is not None
    assert mf.load(tmp_path / "unet", "cpu").sampler.guide is None
    assert mf.load(tmp_path / "unet", "cpu").sampler.guidance_scale == 1.0
