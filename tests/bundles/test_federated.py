"""MONAI's federated client runs phase two of the bundle as it is."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.sites.image_statistics import ImageWithClassMask

BUNDLE = Path(__file__).parents[2] / "bundles" / "medfusion_cxr"


@pytest.fixture
def client(bundle, dataset_dir, tmp_path):
    """Makes a client of the chest bundle with tiny networks, whose weights lie in a folder of its own."""
    tiny = sys.modules[bundle.__module__].TINY | {"trial_step": False, "diffusion_val_interval": 2}
    files = ["configs/train.yaml", "configs/demo.yaml"]
    places = {"dataset_dir": str(dataset_dir), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r")}
    algo = MonaiAlgo(
        bundle_root=str(BUNDLE),
        config_train_filename=files,
        train_kwargs=tiny | places,
        config_evaluate_filename=files,
        eval_kwargs=tiny | places,
        send_weight_diff=False,
    )
    yield algo, tmp_path / "m"
    leave_folders()


def load(path):
    return torch.load(path, weights_only=True)


def run_rounds(algo, rounds=2):
    """Train a client for some rounds, and give the weights that it sends after each."""
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "site"})
    weights = algo.get_weights().weights
    sent = []
    for _ in range(rounds):
        algo.train(ExchangeObject(weights=weights, weight_type=WeightType.WEIGHTS))
        weights = algo.get_weights().weights
        sent.append({name: value.clone() for name, value in weights.items()})
    return sent


def test_client_trains_on_the_latents_of_the_trained_autoencoder(client, bundle, dataset_dir, tmp_path):
    algo, models = client
    places = {"model_dir": str(models), "output_dir": str(tmp_path / "phase_one")}
    bundle("train_autoencoder", dataset_dir=str(dataset_dir), **places)
    first, second = run_rounds(algo)
    autoencoder, model = load(models / "autoencoder.pt"), load(models / "model.pt")
    assert not torch.equal(autoencoder["latent_std"], torch.ones(8))
    used = algo.trainer.autoencoder.state_dict()
    for name, value in autoencoder.items():
        assert torch.equal(used[name], value), name
        assert torch.equal(model[f"autoencoder.{name}"], value), name
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert algo.trainer.state.iteration == algo.trainer.lr_scheduler.last_epoch == 4  # a decay spans the rounds
    averaged = {name: value.clone() for name, value in algo.trainer.ema.module.state_dict().items()}
    written = (models / "model.pt").read_bytes()
    metrics = algo.evaluate(ExchangeObject(weights=second, weight_type=WeightType.WEIGHTS)).metrics
    assert all(torch.equal(value, averaged[name]) for name, value in algo.trainer.ema.module.state_dict().items())
    assert (models / "model.pt").read_bytes() == written
    assert 0 < metrics["diffusion_val_loss"] < 10
    algo.finalize()


def test_round_begins_with_the_weights_of_the_server(client, bundle, dataset_dir, tmp_path):
    algo, models = client
    places = {"model_dir": str(models), "output_dir": str(tmp_path / "phase_one")}
    bundle("train_autoencoder", dataset_dir=str(dataset_dir), **places)
    (local,) = run_rounds(algo, 1)
    average = {name: torch.zeros_like(value) for name, value in local.items()}
    algo.trainer.optimizer.param_groups[0]["lr"] = 0.0
    algo.trainer.lr_scheduler.base_lrs = [0.0]
    algo.train(ExchangeObject(weights=average, weight_type=WeightType.WEIGHTS))
    assert all(not value.any() for value in algo.get_weights().weights.values())


def test_client_that_is_started_again_begins_with_the_weights_of_the_server(client, bundle, dataset_dir, tmp_path):
    algo, models = client
    places = {"model_dir": str(models), "output_dir": str(tmp_path / "phase_one")}
    bundle("train_autoencoder", dataset_dir=str(dataset_dir), **places)
    run_rounds(algo, 1)
    leave_folders()
    again = MonaiAlgo(
        bundle_root=str(BUNDLE),
        config_train_filename=algo.config_train_filename,
        train_kwargs=algo.train_kwargs | {"resume": False, "diffusion_lr": 0.0},
        config_evaluate_filename=None,
        send_weight_diff=False,
    )
    again.initialize(extra={ExtraItems.CLIENT_NAME: "site"})
    average = {name: torch.full_like(value, 0.01) for name, value in again.get_weights().weights.items()}
    again.train(ExchangeObject(weights=average, weight_type=WeightType.WEIGHTS))
    assert again.trainer.state.iteration == 2
    assert all(bool((value == 0.01).all()) for value in again.get_weights().weights.values())


def test_evaluation_by_itself_writes_no_weights(bundle, trained, dataset_dir, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    tiny = sys.modules[bundle.__module__].TINY | {"trial_step": False}
    places = {"dataset_dir": str(dataset_dir), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r")}
    files = [str(BUNDLE / "configs" / name) for name in ("train.yaml", "demo.yaml")]
    workflow = ConfigWorkflow(files, workflow_type="train", **(tiny | places))
    workflow.initialize()
    workflow.evaluator.run()
    workflow.finalize()
    assert workflow.evaluator.state.metrics["diffusion_val_loss"] > 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir() if path.name[0] != "."} == before


def test_client_without_a_trained_autoencoder_is_refused(client):
    algo, _ = client
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_rounds(algo, 1)
    assert "phase two needs phase one: run train_autoencoder" in str(first_cause(caught.value))


def test_statistics_of_a_site_are_those_of_its_images_and_classes(bundle, dataset_dir, tmp_path):
    tiny = sys.modules[bundle.__module__].TINY | {"trial_step": False}
    places = {"dataset_dir": str(dataset_dir), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r")}
    files = [str(BUNDLE / "configs" / name) for name in ("train.yaml", "demo.yaml")]
    workflow = ConfigWorkflow(files, workflow_type="train", **(tiny | places))
    transforms = [ImageWithClassMask()]
    algo = MonaiAlgoStats(str(BUNDLE), workflow=workflow, data_stats_transform_list=transforms)
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(tmp_path)})
    found = algo.get_data_stats(extra={FlStatistics.HIST_BINS: 4, FlStatistics.HIST_RANGE: [0.0, 1.0]}).statistics
    workflow.finalize()
    leave_folders()
    training = read_datalist(dataset_dir, "training")
    assert found["train"][FlStatistics.DATA_COUNT] == len(training) == 32
    assert found["train"][FlStatistics.FAIL_COUNT] == 0
    summary = found["train"][FlStatistics.DATA_STATS]
    pixels = [read_image(item["image"]) for item in training]
    mean = float(np.mean([image.mean() for image in pixels]))
    assert summary["image_stats"]["intensity"]["mean"] == pytest.approx(mean, abs=1e-3)
    assert summary["label_stats"]["labels"] == [0, 1]
    assert found["eval"][FlStatistics.DATA_COUNT] == 4
