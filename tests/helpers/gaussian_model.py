"""A model whose edits have closed forms: images are their own latents, and each class is one Gaussian."""

from pathlib import Path

import torch
from torch import nn

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.model import Model
from medfusion_monai.networks.medfusion import Medfusion

CLASSES = ["low", "high"]
MEANS = (-0.2, 0.2)
"""Of all latents of a class; latents are 2 * image - 1."""
SPREAD = 0.1
SIZE = (6, 5)


class Identity(nn.Module):
    """An autoencoder that changes nothing."""

    in_channels = latent_channels = 1
    downsampling_factor = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def latent_shape(self, image_size):
        return (1, *image_size)

    def encode(self, image):
        return self.Exactly(image)

    class Exactly(nn.Module):
        def __init__(self, latents):
            super().__init__()
            self.latents = latents

        def mode(self):
            return self.latents

    def normalize(self, latents):
        return latents

    def decode_stage_2_outputs(self, latents):
        return latents


class ExactUNet(nn.Module):
    """Predicts the velocity of Gaussian classes without error; -1 stands for no label, of mean 0."""

    def __init__(self, schedule, means=MEANS, spread=SPREAD):
        super().__init__()
        self.schedule, self.spread = schedule, spread
        self.means = torch.tensor([*means, 0.0])  # label -1 takes the last

    def forward(self, x, timesteps, class_labels):
        time = int(timesteps[0])
        signal, sigma = self.schedule.exact_signal[time], self.schedule.exact_sigma[time]
        mean = self.means[class_labels][:, None, None, None]
        gain = signal * self.spread**2 / (signal**2 * self.spread**2 + sigma**2)
        clean = mean + gain * (x - signal * mean)
        return signal * (x - signal * clean) / sigma - sigma * clean


def gaussian_model(num_inference_steps=200, **settings):
    """Return the model; its sampler takes so many steps that the closed forms of continuous time nearly hold."""
    schedule = NoiseSchedule(prediction_type="v_prediction")
    network = Medfusion(Identity(), ExactUNet(schedule, **settings), CLASSES, SIZE).eval()
    stands_in = {"image_channels": 1, "class_names": CLASSES, "image_size": list(SIZE)}
    model = Model(Path("nowhere/model.pt"), {"image_size": list(SIZE)}, stands_in, network)
    model.info["sampler"] |= {"num_inference_steps": num_inference_steps, "guidance_scale": 1.0, "eta": 0.0}
    return model


def drawn_images(label, count, seed=0, means=MEANS, spread=SPREAD):
    """Draw images (count, 1, *SIZE) of a class."""
    source = torch.Generator().manual_seed(seed)
    return (means[label] + spread * torch.randn(count, 1, *SIZE, generator=source)).clamp(-1, 1) * 0.5 + 0.5
