"""Sampling and edits on CUDA tensors without CUDA: the host reads nothing but what the tables say."""

from pathlib import Path

import pytest
import torch
from devices import Watch, fake_cuda
from tiny_models import info_of, smallest

from medfusion_monai import editing
from medfusion_monai.diffusion.guidance import Guide
from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.editing.inpainting import EdgeFit
from medfusion_monai.model import Model
from medfusion_monai.training.handlers.image_grid import sample_rows

READS = {
    "model/trained_model.py:sample": "images, once per batch",
    "training/handlers/image_grid.py:sample_rows": "images",
    "editing/diffusion_classifier.py:_log_likelihoods": "scores, once per noise level and class",
    "editing/inversion.py:_step_back": "whether an iteration has converged",
    "editing/inversion.py:regenerate": "images and whether their class changes, once per batch",
    "editing/edit_inputs.py:checked_labels": "given labels",
    "editing/counterfactuals.py:counterfactual": "images, once per batch",
    "editing/inpainting.py:_inpaint": "images, once per batch",
    "editing/anomaly.py:anomaly_map": "images, once per batch",
    "editing/variation.py:variations": "images, once per batch",
    "editing/interpolation.py:slerp": "an angle, once per batch",
    "editing/interpolation.py:_between_images": "labels and images, once per batch",
    "editing/interpolation.py:_between_seeds": "labels and images, once per batch",
}
UPLOADS = {
    "model/trained_model.py:sample": "labels, once per batch",
    "model/trained_model.py:_to_network": "images, once per batch",
    "diffusion/guidance.py:guided_denoiser": "negative labels, once per batch",
    "editing/edit_inputs.py:checked_labels": "labels",
    "editing/inpainting.py:_inpaint": "masks, once per batch",
}


def made():
    """Return a model; its weights are of the host until it is moved."""
    network = smallest()
    stands_in = {"image_channels": 1, "class_names": network.class_names, "image_size": network.image_size}
    model = Model(Path("nowhere/model.pt"), {}, stands_in, network)
    model.info = info_of(network)
    return model


@pytest.fixture
def pictures():
    return torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))


def crossed(edit, value=0, **settings):
    """Run an edit on CUDA and return the watch; what it reads is ``value``."""
    model = made()
    with fake_cuda(model, reads=READS, uploads=UPLOADS, value=value) as watch:
        images = edit(model, **settings)
    assert images.device.type == "cpu"
    assert images.ndim == 4
    return watch


@pytest.mark.parametrize("sampler", [name for name, sampler in SAMPLERS.items() if not sampler.tuned])
def test_samplers_read_nothing_between_labels_and_images(sampler):
    settings = {"sampler": sampler, "num_inference_steps": 3, "guidance_scale": 2.0, "guidance_interval": [0.3, 3]}
    watch = crossed(lambda model: model.sample([0, 1], decode_batch_size=1, **settings))
    assert watch.reads == {"model/trained_model.py:sample": 1}
    assert watch.uploads == {"model/trained_model.py:sample": 1}


def test_sampler_of_tuned_weights_reads_nothing_between_labels_and_images():
    model = made()
    model.info["sampler"] = {"sampler": "distilled", "num_inference_steps": 2, "guidance_scale": 2.0}
    with fake_cuda(model, reads=READS, uploads=UPLOADS) as watch:
        images = model.sample([0, 1])
    assert images.shape == (2, 1, 16, 24)
    assert watch.reads == {"model/trained_model.py:sample": 1}


def test_negative_label_of_each_label_is_uploaded_once():
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "negative_label": [1, 0]}
    watch = crossed(lambda model: model.sample([0, 1], **settings))
    assert watch.reads == {"model/trained_model.py:sample": 1}
    assert watch.uploads == {"model/trained_model.py:sample": 1, "diffusion/guidance.py:guided_denoiser": 1}


def test_worse_network_guides_on_the_device_of_the_labels():
    model, settings = made(), {"num_inference_steps": 1, "guidance_scale": 2.0, "guide": Guide(smallest().unet, "")}
    moved = {"diffusion/inferer.py:denoiser": "the guide, once"}
    with fake_cuda(model, reads=READS, uploads=UPLOADS | moved) as watch:
        model.sample(0, **settings)
    assert watch.reads == {"model/trained_model.py:sample": 1}


def test_pictures_of_a_training_are_read_once_per_class():
    watch = crossed(lambda model: torch.cat(sample_rows(model.network, model.sampler, 2)))
    assert watch.reads == {"training/handlers/image_grid.py:sample_rows": 2}


def test_fresh_noise_is_pinned():
    watch = crossed(lambda model: model.sample(0, num_inference_steps=2, sampler="ddim", eta=1.0, guidance_scale=1.0))
    assert watch.uploads == {"model/trained_model.py:sample": 1}


def test_class_is_read_once_per_level_and_class(pictures):
    model = made()
    with fake_cuda(model, reads=READS, uploads=UPLOADS) as watch:
        found = editing.classify(model, pictures, num_levels=2)
    assert found.probabilities.device.type == "cpu"
    assert watch.reads == {"editing/diffusion_classifier.py:_log_likelihoods": 4}


def test_inversion_reads_whether_each_iteration_has_converged(pictures):
    model = made()
    with fake_cuda(model, reads=READS, uploads=UPLOADS, value=0) as watch:
        inversion = editing.invert(model, pictures, 0, num_inference_steps=3)
    assert inversion.noisy_latents.device.type == "cuda"
    assert watch.reads == {"editing/inversion.py:_step_back": 2}


def test_edits_mix_no_devices(pictures, monkeypatch):
    # No backward pass runs on devices without hardware; the next test does it on tensors without values.
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs: (torch.zeros_like(inputs),))
    steps = {"num_inference_steps": 2}
    mask = torch.zeros(16, 24)
    mask[4:9, 5:12] = 1
    crossed(editing.counterfactual, images=pictures, label=1, own_label=0, **steps)
    crossed(editing.inpaint, images=pictures, mask=mask, label=1, **steps)
    crossed(editing.anomaly_map, images=pictures, healthy=0, **steps)
    crossed(editing.variations, images=pictures, label=0, **steps)
    crossed(editing.interpolate, start=pictures[0], end=pictures[1], frames=3, label=[0, 1], **steps)
    crossed(editing.interpolate, value=1, start=1, end=2, frames=3, label=[0, 1], **steps)


def test_fit_of_an_edge_reads_nothing():
    autoencoder = smallest().to("meta").autoencoder.requires_grad_(False)
    images, latents = torch.rand(2, 1, 16, 24, device="meta"), torch.rand(2, 2, 8, 12, device="meta")
    masks, cells = (torch.ones(2, 1, *shape, dtype=torch.bool, device="meta") for shape in ((16, 24), (8, 12)))
    with Watch(reads={}, uploads={}) as watch:
        fitted = EdgeFit(autoencoder, latents, images, masks, cells)(latents)
    assert fitted.shape == latents.shape
    assert not watch.reads
