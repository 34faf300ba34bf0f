"""Whole trainings on a device whose tensors hold no values: what leaves it, or mixes with the host, is counted.

A GPU runs behind the host; reading a value makes the host wait until everything before is done. The tables below are
all places where a training may do so, with the reason. ``gpu`` tests check the same on a real GPU.
"""

import contextlib
import json
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from devices import Crossing, Watch, fake_cuda, pinned
from PIL import Image
from tiny_models import CLASSES, ROOT, smallest
from torch import nn

from medfusion_monai.bundle.parser import read_files
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.adversarial import AdversarialLoss
from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.losses.distillation import DistillationLoss
from medfusion_monai.losses.feature_discriminator import FeatureDiscriminator
from medfusion_monai.losses.reconstruction import ReconstructionLoss
from medfusion_monai.networks.discriminator import PatchDiscriminator
from medfusion_monai.training import train_diffusion
from medfusion_monai.training.eight_bit_adamw import EightBitAdamW
from medfusion_monai.training.few_step_target import FewStepPrepareBatch, FewStepTarget
from medfusion_monai.training.handlers import progress
from medfusion_monai.training.prepare_batch import AutoencoderPrepareBatch, DiffusionPrepareBatch
from medfusion_monai.training.run import TrainingRun

CUDA = torch.device("cuda", 0)

STEPS = 2
IN_STEPS = {
    "training/handlers/non_finite_loss.py:_check": "in phase one: neither of two optimizers may learn from a bad loss",
    "training/handlers/non_finite_loss.py:copy_to_host": "in phase two: asynchronous, read one step later",
    "training/handlers/progress.py:__call__": "the mean loss, every 30 seconds, or every second on a terminal",
    "monai/handlers/tensorboard_handlers.py:_default_iteration_writer": "losses, every log_interval steps",
}
AT_THE_END = {
    "ignite/metrics/loss.py:compute": "a metric, once per validation",
    "training/handlers/image_grid.py:reconstruction_rows": "a picture",
    "training/handlers/image_grid.py:sample_rows": "pictures",
    "training/handlers/average_snapshots.py:_snapshot": "a file",
    "training/handlers/average_snapshots.py:_in_half": "a file",
    "weights/state_dict.py:save_weights": "a file",
    "training/latent_statistics.py:_rounded": "a line of the log",
}
UPLOADS = {
    "training/prepare_batch.py:to_network": "images, which the loader has pinned",
    "training/prepare_batch.py:to_device": "noise, timesteps and labels; pinned on CUDA",
    "losses/reconstruction.py:structural_similarity": "the window of SSIM, which MONAI makes on the host",
    "training/train_autoencoder.py:to_device": "before the first step",
    "training/train_diffusion.py:to_device": "before the first step",
    "training/handlers/image_grid.py:reconstruction_rows": "a picture",
    "runtime/seeds.py:randn": "noise of a picture; pinned on CUDA",
    "weights/state_dict.py:fill_weights": "a file",
}
SETTINGS = {
    "image_size": [32, 32],
    "autoencoder_channels": [8, 8],
    "unet_channels": [8, 8, 8],
    "unet_embedding_channels": 16,
    "unet_norm_groups": 8,
    "unet#num_res_blocks": 1,
    "unet_attention": True,
    "ssim_window": 7,
    "equivariance": 1.0,
    "adversarial_start": 1,
    "loss_weighting": "min_snr",
    "diffusion_loss": "l2",
    "average_snapshots": 2,
    "autoencoder_batch_size": 2,
    "diffusion_batch_size": 2,
    "micro_batch_size": 1,
    "autoencoder_steps": STEPS,
    "diffusion_steps": STEPS,
    "num_inference_steps": 1,
    "log_interval": 2,
    "cache_latents": False,
    "check_files": False,
    "precision": "float32",
    "device": "$torch.device('meta')",
}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Run all phases of the chest bundle, each from ``to_device`` to its weights file; return a watch of each."""
    folder = tmp_path_factory.mktemp("training")
    configs = ROOT / "bundles" / "medfusion_cxr" / "configs"
    places = {name: str(folder / name) for name in ("dataset_dir", "output_dir", "model_dir")}
    write_images(folder / "dataset_dir")
    files = [str(configs / name) for name in ("train.yaml", "demo.yaml", "few_steps.yaml")]
    parser = read_files(files[:2], SETTINGS | places)
    tuned = {"pretrained_model": places["model_dir"], "model_dir": str(folder / "tuned"), "guidance_scale": 2.0}
    tuned |= {"tuning_steps": STEPS, "tuning_batch_size": 2}
    tuning = read_files(files, SETTINGS | places | tuned)
    watches = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is copied, nothing pinned
        patch.setattr(TrainingRun, "on_cuda", property(lambda run: True))  # what a GPU need not wait for
        patch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 100.0))  # the bar is updated once
        patch.setattr(train_diffusion, "DRAWS", 1)
        for phase, config, place in [
            ("one", parser, "autoencoder_training#trainer"),
            ("two", parser, "train#trainer"),
            ("three", tuning, "train#trainer"),
        ]:
            trainer = config.get_parsed_content(place)
            with Watch(IN_STEPS | AT_THE_END, UPLOADS) as watches[phase]:
                trainer.run()
    return watches


def write_images(folder):
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    entries = [{"image": f"{number}.png", "label": number % 2} for number in range(4)]
    document = {"class_names": CLASSES, "training": entries[:2], "validation": entries[2:]}
    (folder / "datalist.json").write_text(json.dumps(document))


def in_steps(watch):
    return {caller: count for caller, count in watch.reads.items() if caller in IN_STEPS}


def test_phase_one_reads_once_per_step_what_its_optimizers_wait_for(watched):
    logged = 11  # loss, five terms of the reconstruction, five of the discriminators
    assert in_steps(watched["one"]) == {
        "training/handlers/non_finite_loss.py:_check": STEPS,
        "training/handlers/progress.py:__call__": 1,
        "monai/handlers/tensorboard_handlers.py:_default_iteration_writer": logged,
    }


@pytest.mark.parametrize("phase", ["two", "three"])
def test_phase_on_latents_reads_nothing_that_a_gpu_waits_for_but_what_it_shows(watched, phase):
    assert in_steps(watched[phase]) == {
        "training/handlers/non_finite_loss.py:copy_to_host": 2 * STEPS,  # losses and norm
        "training/handlers/progress.py:__call__": 1,
        "monai/handlers/tensorboard_handlers.py:_default_iteration_writer": 1,
    }


def test_validation_reads_each_metric_once_however_many_batches_there_are(watched):
    assert watched["one"].reads["ignite/metrics/loss.py:compute"] == 2
    assert watched["two"].reads["ignite/metrics/loss.py:compute"] == 1
    assert watched["three"].reads["ignite/metrics/loss.py:compute"] == 1


def test_no_place_in_the_tables_is_out_of_date(watched):
    used = Counter()
    for watch in watched.values():
        used += watch.reads + watch.uploads
    assert set(used) == {*IN_STEPS, *AT_THE_END, *UPLOADS}


def batch_of(key, *shape):
    """A batch as the loader of a run on CUDA returns it: tensors are pinned."""
    values = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    return {key: pinned(values), "label": pinned(torch.tensor([0, 1, 1])), "seed": pinned(torch.arange(3))}


@pytest.mark.parametrize("batch", [batch_of("image", 1, 16, 24), batch_of("moments", 4, 8, 12)])
def test_step_of_phase_two_is_computed_on_cuda_without_waiting(batch):
    network, schedule = smallest(), NoiseSchedule()
    loss = DiffusionLoss(schedule, loss="l2", weighting="min_snr")
    with fake_cuda(network, schedule, loss):
        prepare = DiffusionPrepareBatch(network.autoencoder, schedule)
        inputs, target, _, keywords = prepare(batch, CUDA, non_blocking=True)
        value = loss(network.unet(inputs, **keywords), target, keywords["timesteps"])
        assert (value.device, value.shape) == (CUDA, ())


def test_step_of_phase_three_is_computed_on_cuda_without_waiting():
    network, schedule = smallest(), NoiseSchedule(prediction_type="v_prediction")
    loss, target = DistillationLoss(schedule), FewStepTarget(smallest().unet, schedule, 2, 3, guidance_scale=2.0)
    with fake_cuda(network, schedule, loss, target):
        prepare = DiffusionPrepareBatch(network.autoencoder, schedule, 0.0, timesteps=target.starts)
        prepare = FewStepPrepareBatch(prepare, target)
        inputs, goal, _, keywords = prepare(batch_of("moments", 4, 8, 12), CUDA, non_blocking=True)
        value = loss(network.unet(inputs, **keywords), goal, keywords["timesteps"])
        assert (value.device, value.shape) == (CUDA, ())


def test_step_of_phase_one_is_computed_on_cuda_and_uploads_the_window_of_ssim_only():
    autoencoder = smallest().autoencoder
    loss = ReconstructionLoss(ssim_window=7)
    adversarial = AdversarialLoss([FeatureDiscriminator(8), PatchDiscriminator(1, (8, 8))])
    window = "losses/reconstruction.py:structural_similarity"
    with fake_cuda(autoencoder, loss, adversarial, uploads={window: UPLOADS[window]}) as watch:
        prepare = AutoencoderPrepareBatch(autoencoder, equivariance=1.0)
        inputs, image, _, keywords = prepare(batch_of("image", 1, 32, 32), CUDA, non_blocking=True)
        output = autoencoder(inputs, **keywords)
        terms = loss(output, image) | {"discriminator": adversarial.discriminator_loss(output, image)}
        assert {"perceptual", "perceptual_low"} <= terms.keys()
        assert {value.device for value in terms.values()} == {CUDA}
    assert watch.uploads == {window: 2}  # one per resolution


def test_steps_with_moments_of_eight_bits_read_nothing_and_upload_twice_in_all():
    parameters = [nn.Parameter(torch.zeros(128, 64, device="meta")) for _ in "ab"]
    optimizer = EightBitAdamW(parameters)
    with Watch({}, {"a test": "what the 8 bits of a moment stand for, with and without sign"}) as watch:
        for parameter in parameters * STEPS:
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    assert not watch.reads
    assert watch.uploads == {"a test": 2}


def test_run_on_cuda_pins_its_batches_and_does_not_wait_for_copies(tmp_path):
    run = TrainingRun(tmp_path, tmp_path, device="cuda", num_workers=0)
    evaluator = SimpleNamespace(state=SimpleNamespace())
    stream = [{"image": torch.zeros(1, 8, 8)}] * 4
    run.open_validation(evaluator, stream, 2)
    assert run.loader(stream, run.sampler(2)).pin_memory
    assert evaluator.data_loader.pin_memory
    assert run.engine_options["non_blocking"]


@pytest.mark.parametrize(
    "crossing",
    [
        lambda there, here: there.sum().item(),
        lambda there, here: bool(there.any()),
        lambda there, here: [1 for value in there if value],
        lambda there, here: there.tolist(),
        lambda there, here: there.cpu(),
        lambda there, here: here.copy_(there),
        lambda there, here: there[there > 0],
        lambda there, here: there.nonzero(),
        lambda there, here: torch.equal(there, there),
        lambda there, here: there + here,
        lambda there, here: nn.functional.linear(there, here[None]),
        lambda there, here: there[here.long()],
        lambda there, here: here[there.long()],
        lambda there, here: there + here.to(there.device),
        lambda there, here: there.copy_(here),
        lambda there, here: torch.randn(4, device=there.device, generator=torch.Generator()),
        lambda there, here: there.normal_(generator=torch.Generator()),
    ],
)
@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_watch_sees_what_crosses(crossing, device):
    here = torch.ones(4)
    with contextlib.ExitStack() as stack:
        if device == "meta":
            stack.enter_context(Watch({}, {}))
            there = torch.ones(4, device="meta")
        else:
            stack.enter_context(fake_cuda())
            there = pinned(here).to(CUDA, non_blocking=True)
        with pytest.raises(Crossing):
            crossing(there, here)


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_watch_lets_a_device_compute(device):
    with Watch({}, {}) if device == "meta" else fake_cuda():
        there = torch.empty(4, device=device)
        assert ((there * 2.0 + 1.0).sum() * torch.tensor(3.0)).device.type == device  # a scalar of the host is no copy
