"""A site of a federated training: rounds on weights of a server, without a server."""

import sys
from pathlib import Path

import pytest
import torch

from medfusion_monai import load
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.sites.federation import (
    AUTOENCODER,
    AVERAGED,
    MEAN,
    UNET,
    FederationError,
    Plan,
    agree_on_latents,
    first_state,
    open_parts,
    write_model,
)
from medfusion_monai.sites.site_training import SiteTraining
from medfusion_monai.training.latent_statistics import measure_latent_statistics

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
FILES = [CONFIGS / "train.yaml", CONFIGS / "demo.yaml"]


@pytest.fixture
def settings(bundle, dataset_dir, tmp_path):
    """Return the settings of a site, in folders of its own."""

    def make(name, data=dataset_dir, **changes):
        places = {"dataset_dir": str(data), "model_dir": str(tmp_path / name / "m"), "output_dir": str(tmp_path / name)}
        return sys.modules[bundle.__module__].TINY | {"trial_step": False} | places | changes

    yield make
    leave_folders()


def plan_for(phase, settings, rounds=2):
    return Plan(phase, rounds, 2, open_parts(FILES, settings).agreement())


def average(contributions):
    total = sum(each.images for each in contributions)
    names = contributions[0].state
    return {name: sum(each.state[name] * (each.images / total) for each in contributions) for name in names}


def test_federation_of_one_site_is_the_central_training(settings, bundle, trained, dataset_dir, tmp_path):
    own = settings("site")
    site = SiteTraining(FILES, own, plan_for("diffusion", own))
    site.network.autoencoder.load_state_dict(torch.load(trained / "models" / "autoencoder.pt", weights_only=True))
    state = first_state("diffusion", site.network)
    for _ in range(2):
        contribution = site.take_part(state)
        assert not any(name.startswith(AUTOENCODER) for name in contribution.state), "or it would drift by rounding"
        state |= average([contribution])
    site.close()
    assert 0 < contribution.metrics["diffusion_val_loss"] < 10
    assert site.trainer.lr_scheduler.last_epoch == 4
    central = torch.load(trained / "runs" / "checkpoints" / "diffusion_training.pt", weights_only=True)["objects"]
    for prefix, weights in ((UNET, central["network"]), (AVERAGED, central["ema"]["module"])):
        for name, value in weights.items():
            assert torch.equal(state[prefix + name], value), prefix + name
    write_model(state, open_parts(FILES, own), 4, tmp_path / "global" / "model.pt")
    model = load(tmp_path / "global", "cpu")
    assert model.class_names == ["no_cardiomegaly", "cardiomegaly"]
    assert model.trained_on is None
    assert model.sample(0, n=1, num_inference_steps=2).isfinite().all()


def test_site_that_returns_continues_at_the_step_of_the_others(settings, trained):
    own = settings("site", diffusion_lr_decay="linear", diffusion_lr_warmup=0)
    site = SiteTraining(FILES, own, plan_for("diffusion", own, rounds=3))
    site.network.autoencoder.load_state_dict(torch.load(trained / "models" / "autoencoder.pt", weights_only=True))
    state = first_state("diffusion", site.network)
    state["rounds"] += 1.0  # the others have trained for a round
    returned = site.take_part(state)
    site.close()
    assert site.trainer.state.iteration == site.trainer.lr_scheduler.last_epoch == 4
    assert site.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(site.trainer.lr_scheduler.base_lrs[0] / 3)
    assert returned.state["rounds"].item() == 2.0


def test_latent_statistics_are_those_of_the_images_of_all_sites(settings, dataset_dir, tmp_path):
    prepare_phantoms(tmp_path / "other", num_images=20, size=32, seed=5)
    homes = [settings("a"), settings("b", tmp_path / "other")]
    sites = [SiteTraining(FILES, own, plan_for("autoencoder", own, rounds=1)) for own in homes]
    state = first_state("autoencoder", sites[0].network)
    before = {name: value.clone() for name, value in state.items()}
    for _ in range(2):
        contributions = [site.take_part(state) for site in sites]
        state |= average(contributions)
    assert any(not torch.equal(state[name], before[name]) for name in state if name.startswith("autoencoder.conv"))
    assert [each.images for each in contributions] == [32, 16]
    assert not torch.equal(contributions[0].state[MEAN], contributions[1].state[MEAN])
    parts = open_parts(FILES, homes[0])
    agree_on_latents(state, parts.network)
    images = [{"image": item["image"][None]} for site in sites for item in site.trainer.dataset.images]
    mean, std = measure_latent_statistics(parts.network.autoencoder, images)
    assert torch.allclose(parts.network.autoencoder.latent_mean.flatten(), mean, atol=1e-5)
    assert torch.allclose(parts.network.autoencoder.latent_std.flatten(), std, rtol=1e-4)
    for site in sites:
        site.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ["cardiomegaly", "no_cardiomegaly"]}, "class_names is"),
        ({"image_size": [48, 48]}, r"image_size is \[32, 32\] for all sites and here \[48, 48\]"),
        ({"resize_mode": "pad"}, 'resize_mode is "crop" for all sites and here "pad"'),
        ({"unet_channels": [16, 16, 16, 48]}, "networks.unet.channels is"),
    ],
)
def test_site_that_differs_is_refused_before_it_reads_an_image(changes, words, settings, tmp_path):
    plan = plan_for("diffusion", settings("agreed"))
    own = settings("site", tmp_path / "nowhere", **changes)
    with pytest.raises(FederationError, match=f"does not fit the federation: .*{words}"):
        SiteTraining(FILES, own, plan)


def test_site_with_another_version_is_refused(settings):
    own = settings("site")
    plan = plan_for("diffusion", own)
    with pytest.raises(FederationError, match='version is "9.9" for all sites and here'):
        SiteTraining(FILES, own, plan._replace(agreement={**plan.agreement, "version": "9.9"}))


def test_plan_survives_a_command_line(settings):
    plan = plan_for("diffusion", settings("site"))
    assert Plan.decoded(plan.encoded()) == plan
    with pytest.raises(FederationError, match="cannot be read"):
        Plan.decoded("e30=")
