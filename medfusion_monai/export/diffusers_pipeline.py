"""Our model as a pipeline of diffusers, which samples the pixels of ``Model.sample``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

from medfusion_monai.export.diffusers_folder import PIPELINE
from medfusion_monai.export.diffusers_parts import DescribedModel, DescribedScheduler, WithoutPath
from medfusion_monai.model import Model
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.errors import WeightsError

CODE = '''"""Sample this folder's model with diffusers; README.md says what has to be installed."""

from importlib import import_module

try:  # by no import statement, for which diffusers would advise to install a package of this name from an index
    MedfusionPipeline = import_module("medfusion_monai.export.diffusers_pipeline").MedfusionPipeline
except ModuleNotFoundError as error:
    raise ImportError(f"{error}: install medfusion_monai from its wheel, as README.md says") from error
'''
OUTPUTS = ("pil", "np", "pt")


class MedfusionPipeline(WithoutPath, DiffusionPipeline):
    """Samples images of a class, with the pixels of ``Model.sample``.

    Args:
        unet: the second stage.
        vae: the first stage.
        scheduler: noise schedule and sampler.
        description: the other entries of ``model.json``, with class names and form of the images.

    Raises:
        WeightsError: if the networks do not fit each other or the description.
    """

    def __init__(
        self,
        unet: DescribedModel,
        vae: DescribedModel,
        scheduler: DescribedScheduler,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)
        self.register_to_config(description=dict(description or {}))
        self._refuse_misfits()

    @property
    def model(self) -> Model:
        """The model of the components as they are now.

        Raises:
            ValueError: if a component was replaced by one of another kind, or weights are not float32.
        """
        if not isinstance(self.scheduler, DescribedScheduler):
            raise ValueError(
                f"the scheduler is a {type(self.scheduler).__name__}: keep the one of this folder, and choose a "
                "sampler in the call, e.g. sampler='ddim'"
            )
        info = dict(self.config.description)
        image, unet, autoencoder = info["image"], self.unet.network, self.vae.network
        network = Medfusion(autoencoder, unet, info["class_names"], image["size"])
        types = {weight.dtype for weight in network.parameters()} - {torch.float32}
        if types:
            raise ValueError(
                f"the weights were loaded as {types.pop()}: load them as float32, and give dtype in the call, e.g. "
                "dtype=torch.float16"
            )
        info["networks"] = {
            "autoencoder": dict(self.vae.config.description),
            "unet": dict(self.unet.config.description),
        }
        info |= {name: dict(self.scheduler.config[name]) for name in ("schedule", "sampler")}
        return Model(Path(self.name_or_path or ".") / self.config_name, network=network, info=info)

    @torch.no_grad()
    def __call__(
        self,
        label: int | str | Sequence[int | str],
        n: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        output_type: str = "pil",
        return_dict: bool = True,
        **choices: Any,
    ) -> Any:
        """Sample images, see ``Model.sample``.

        Args:
            label: number or name of a class, or a list of them.
            n: images per label.
            seed: of the set.
            batch_size: images at a time.
            output_type: ``pil``, ``np`` (B, H, W, C) or ``pt`` (B, C, H, W); the latter two float32 in [0, 1].
            return_dict: whether to return an ``ImagePipelineOutput``; else a tuple with the images.
            choices: other settings of the sampler, e.g. ``num_inference_steps=50``.

        Raises:
            ValueError: for an unknown class or output type, or a setting out of range.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUTS)}, received {output_type!r}")
        images: Any = self.model.sample(label, n, seed, batch_size, **choices)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the folder, with the pipeline's code."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PIPELINE).write_text(CODE, encoding="utf-8")
        super().save_pretrained(save_directory, *args, **kwargs)
        for path in folder.glob("*/*.safetensors"):  # the library makes them readable for their owner alone
            path.chmod((folder / PIPELINE).stat().st_mode)

    @torch.no_grad()
    def _refuse_misfits(self) -> None:
        """Raise a WeightsError unless networks, class names and image form fit each other."""
        unet, autoencoder, described = self.unet.network, self.vae.network, self.config.description
        try:
            pairs = {
                "classes of unet and model_index.json": (unet.num_classes, len(described["class_names"])),
                "image channels of vae and model_index.json": (autoencoder.in_channels, described["image"]["channels"]),
            }
            latents = next(unet.parameters()).new_zeros(1, autoencoder.latent_channels, 8, 8)
            zero = latents.new_zeros(1, dtype=torch.long)
            unet(latents, timesteps=zero, class_labels=zero)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise WeightsError(f"the parts of the pipeline are not those of one Medfusion model: {error}") from error
        wrong = [f"{name} are {own} and {other}" for name, (own, other) in pairs.items() if own != other]
        if wrong:
            raise WeightsError(f"the parts of the pipeline are not those of one Medfusion model: {'; '.join(wrong)}")
