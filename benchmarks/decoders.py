"""Compare the small decoder with the autoencoder's own: images per second and, for trained weights, their images.

Speed: both decode the same batch by turns, networks of ``--size`` with random weights, in the device's own precision.
Images: with ``--model-file``, latents of the test images of ``--dataset-dir`` and latents that the model samples are
decoded by both, in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from common import (
    CONFIGS,
    Size,
    chosen_device,
    interleaved,
    machine,
    medians,
    parser,
    print_machine,
    read_size,
    write_json,
)
from torch import Tensor, nn

import medfusion_monai as mf
from medfusion_monai.data.datalist import read_splits
from medfusion_monai.evaluation.metrics.similarity import ms_ssim
from medfusion_monai.losses.reconstruction import structural_similarity
from medfusion_monai.model import Model, make_preprocessing
from medfusion_monai.networks.autoencoder import Autoencoder, decoder_names
from medfusion_monai.networks.small_decoder import SmallDecoder
from medfusion_monai.runtime.dtype import autocast, choose_precision, precision_name
from medfusion_monai.runtime.memory_format import lay_out, lay_out_autoencoder

BATCH = 4
Decode = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure and print both."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=9, help="measurements of each that count; one more warms up")
    options.add_argument("--model-file", type=Path, help="weights with a small decoder beside them")
    options.add_argument("--decoder", default="small", help="file of the small decoder, if it is elsewhere")
    options.add_argument("--dataset-dir", type=Path, help="prepared images")
    options.add_argument("--count", type=int, default=256, help="at most as many test images, and as many samples")
    arguments = options.parse_args()
    device = chosen_device(arguments.device)
    result: dict[str, Any] = {"machine": machine(device)}
    print_machine(result["machine"])
    result["speed"] = measure_speed(read_size(arguments.size), device, arguments)
    print_speed(result["speed"])
    if arguments.model_file is not None:
        result["images"] = compare_images(mf.load(arguments.model_file, device), arguments)
        print_images(result["images"])
    write_json(arguments.json, result)


def measure_speed(size: Size, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate both decoders on the same latents."""
    dtype = choose_precision(arguments.precision or size.settings["precision"], device)
    settings, count = size.settings, arguments.batch or BATCH
    full = Autoencoder(settings["image_channels"], settings["latent_channels"], settings["autoencoder_channels"])
    lay_out_autoencoder(nn.ModuleDict({"autoencoder": full.to(device).eval()}), device, dtype)
    small = lay_out(small_decoder(size).to(device), True)
    latents = torch.randn(count, *size.latent_shape, device=device)
    decoders: dict[str, Decode] = {"full": full.decode_stage_2_outputs, "small": small}

    def decoding(decode: Decode) -> Callable[[], object]:
        def run() -> Tensor:
            with torch.no_grad(), autocast(device, dtype):
                return decode(latents)

        return run

    procedures = {name: decoding(decode) for name, decode in decoders.items()}
    seconds = medians(interleaved(procedures, arguments.repeats, device))
    return {
        "size": size.name,
        "batch": count,
        "precision": precision_name(dtype),
        "weights": _weights(full, small),
        "images_a_second": {name: count / seconds[name] for name in decoders},
        "ratio": seconds["full"] / seconds["small"],
    }


def small_decoder(size: Size) -> SmallDecoder:
    """Return the small decoder of ``small_decoder.yaml`` for the latents of a size."""
    own = yaml.safe_load((CONFIGS / "small_decoder.yaml").read_text())
    levels = len(size.settings["autoencoder_channels"]) - 1
    channels, blocks = (own[f"small_decoder_{name}"][:levels] for name in ("channels", "blocks"))
    return SmallDecoder(size.settings["latent_channels"], size.settings["image_channels"], channels, blocks).eval()


def _weights(autoencoder: Autoencoder, small: SmallDecoder) -> dict[str, int]:
    own = [value for name, value in autoencoder.named_parameters() if name in decoder_names(autoencoder)]
    return {"full": sum(map(torch.numel, own)), "small": sum(map(torch.numel, small.parameters()))}


def compare_images(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Decode latents of test images and sampled latents by both decoders."""
    small = model.load_decoder(arguments.decoder).to(model.device)
    rows = {}
    if arguments.dataset_dir is not None:
        items = read_splits(arguments.dataset_dir, (), model.class_names, ["test"])["test"]
        preprocess = make_preprocessing(model)
        real = torch.stack([preprocess(dict(item))["image"] for item in items[:: -(-len(items) // arguments.count)]])
        latents = torch.cat([model.encode(part) for part in real.split(16)])
        full, own = (_decoded(decode, latents) for decode in (model.decode, _to_unit(small)))
        rows["small and full, test images"] = distances(own, full)
        rows["full and original, test images"] = distances(full, real)
        rows["small and original, test images"] = distances(own, real)
    each = -(-arguments.count // len(model.class_names))
    sampled = model.sample_latents(list(range(len(model.class_names))), each)
    full, own = (_decoded(decode, sampled) for decode in (model.decode, _to_unit(small)))
    rows["small and full, sampled latents"] = distances(own, full)
    return rows


def _to_unit(small: SmallDecoder) -> Decode:
    return lambda latents: (small(latents) * 0.5 + 0.5).clamp(0.0, 1.0)


@torch.no_grad()
def _decoded(decode: Decode, latents: Tensor) -> Tensor:
    return torch.cat([decode(part).cpu() for part in latents.split(16)])


def distances(images: Tensor, others: Tensor) -> dict[str, float]:
    """Return means over pairs of images (B, C, H, W) in [0, 1]."""
    pairs = list(zip(images.split(16), others.split(16), strict=True))
    return {
        "count": len(images),
        "ms_ssim": float(torch.cat([ms_ssim(one, other) for one, other in pairs]).mean()),
        "ssim": float(torch.cat([structural_similarity(one, other) for one, other in pairs]).mean()),
        "mean_absolute_difference": float((images - others).abs().mean()),
    }


def print_speed(row: Mapping[str, Any]) -> None:
    """Print images per second of both."""
    words = [f"{name} {row['images_a_second'][name]:.2f} ({row['weights'][name]:,} weights)" for name in row["weights"]]
    print(f"{row['size']}, batch {row['batch']}, {row['precision']}, images per second: {', '.join(words)}")
    print(f"ratio: {row['ratio']:.2f}")


def print_images(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of the distances."""
    print("| decoders | images | MS-SSIM | SSIM | mean absolute difference |\n|---|---|---|---|---|")
    for name, row in rows.items():
        values = f"{row['ms_ssim']:.4f} | {row['ssim']:.4f} | {row['mean_absolute_difference']:.4f}"
        print(f"| {name} | {row['count']} | {values} |")


if __name__ == "__main__":
    main()
