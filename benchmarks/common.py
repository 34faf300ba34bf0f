"""What the speed and memory benchmarks share: sizes, networks, alternating measurement, the machine's description."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet

GIBIBYTE = 2**30
CONFIGS = Path(__file__).resolve().parents[1] / "bundles" / "medfusion_cxr" / "configs"


@dataclass(frozen=True)
class Size:
    """Sizes of networks and images, under the names that the bundles give them.

    Attributes:
        name: ``full`` as published, ``small`` and ``demo`` as in ``small.yaml`` and ``demo.yaml``.
        settings: the keys of training, sampler included, and what ``inference.yaml`` sets beside them.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of an image."""
        return (self.settings["image_channels"], *self.settings["image_size"])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape (C, h, w) of latents."""
        factor = 2 ** (len(self.settings["autoencoder_channels"]) - 1)
        return (self.settings["latent_channels"], *(side // factor for side in self.settings["image_size"]))


def read_size(name: str) -> Size:
    """Read the chest bundle's own configs, so that what is measured cannot drift from what is trained."""
    files = ["train.yaml", "inference.yaml"] + ([] if name == "full" else [f"{name}.yaml"])
    settings: dict[str, Any] = {}
    for file in files:  # null in inference: as the weights say, which is as they were trained
        read = yaml.safe_load((CONFIGS / file).read_text())
        settings |= {key: value for key, value in read.items() if value is not None or key not in settings}
    return Size(name, settings)


def build(size: Size, device: torch.device, randomize: bool = True, **unet_options: Any) -> Medfusion:
    """Build both networks; ``randomize`` weights that start at zero, as they would leave most gradients zero."""
    settings = size.settings
    torch.manual_seed(0)
    autoencoder = Autoencoder(settings["image_channels"], settings["latent_channels"], settings["autoencoder_channels"])
    unet = UNet(
        settings["latent_channels"],
        channels=settings["unet_channels"],
        embedding_channels=settings["unet_embedding_channels"],
        norm_groups=settings["unet_norm_groups"],
        **unet_options,
    )
    for parameter in [*autoencoder.parameters(), *unet.parameters()] if randomize else []:
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    autoencoder.requires_grad_(False)
    return Medfusion(autoencoder.eval(), unet).to(device)


def random_batch(size: Size, count: int, device: torch.device, stored: bool = False) -> dict[str, Tensor]:
    """Draw a batch as the loader gives it, in pinned memory where a GPU reads it.

    Args:
        size: of the images.
        count: images B.
        device: that reads the batch.
        stored: what the store of latents gives, ``moments`` (B, 2C, h, w) in float16, in place of ``image``
            (B, C, H, W) in [0, 1].
    """
    source = torch.Generator().manual_seed(0)
    batch = {"label": torch.arange(count) % 2, "seed": torch.arange(count)}
    if stored:
        mean = torch.randn(count, *size.latent_shape, generator=source)
        batch["moments"] = torch.cat([mean, torch.full_like(mean, -6.0)], dim=1).half()
    else:
        batch["image"] = torch.rand(count, *size.image_shape, generator=source)
    return {key: value.pin_memory() if device.type == "cuda" else value for key, value in batch.items()}


def interleaved(
    procedures: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call of each procedure, by turns, so that a machine that slows down slows all of them.

    Each is called ``warm_ups`` times first, uncounted; every second round runs backwards.
    """
    names = list(procedures)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_ups, repeats):
        for name in names if turn % 2 == 0 else names[::-1]:
            taken = timed(procedures[name], device)
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def timed(procedure: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the work that it left to a GPU included."""
    synchronize(device)
    start = time.perf_counter()
    procedure()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median of each procedure's seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and how busy it is."""
    description: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIBIBYTE, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
        description["gpu_memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / GIBIBYTE, 1)
    return description


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that all these benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    sizes = {"choices": ["full", "small", "demo"], "default": "full"}
    options.add_argument("--size", **sizes, help="networks as published, of small.yaml or of the demo")
    options.add_argument("--device", help="cpu or cuda; cuda where there is one if left out")
    options.add_argument("--batch", type=int, help="images at a time")
    options.add_argument("--precision", help="ours: auto, float32, bfloat16 or float16; the config's if left out")
    options.add_argument("--json", type=Path, help="file for the figures")
    return options


def chosen_device(name: str | None) -> torch.device:
    """The device of a command line."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def print_machine(description: Mapping[str, Any]) -> None:
    """Say where it was measured, and that other programs ran if they did."""
    print(", ".join(f"{name} {value}" for name, value in description.items()))
    if description["load_average"][0] > 0.5:
        print(f"note: other programs run (load average {description['load_average'][0]} at the start)")


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write the figures if a file was asked for."""
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")
