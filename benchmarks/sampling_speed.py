"""Measure sampled images a second, ours beside the published procedure, by turns.

Published: 150 steps of DDIM with eta 1, float32, two calls of the network a step for guidance, decoding in float32,
images fetched one by one. Ours: the bundle's sampler and number of steps, the device's own precision and memory
layout, both branches of guidance in one call. A few steps of each are measured and multiplied; ``--whole`` samples
from noise to images instead. Also measured at guidance 1, where either calls the network once a step. ``--distilled``
samples as weights that are tuned for few steps do, with guidance in one call; the networks have random weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from common import (
    Size,
    build,
    chosen_device,
    interleaved,
    machine,
    medians,
    parser,
    print_machine,
    read_size,
    write_json,
)
from floor import count_work, measure_rates, print_floors, sampling_floor
from our_procedure import OurSampling
from profile_shares import print_shares, profile_shares
from published_procedure import NUM_INFERENCE_STEPS, PublishedSampling

TARGETS = {"cpu": 6.0, "cuda": 12.0}
ROW = (
    "guidance {guidance}: published {published:.4f} images a second ({published_steps} steps), "
    "ours {ours:.4f} ({our_steps} steps of {sampler}, {precision}); ratio {ratio:.2f}"
)


def main() -> None:
    """Measure and print the ratios with and without guidance."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3, help="measurements of each that count; one more warms up")
    options.add_argument("--guidance", type=float, default=1.5, help="guidance scale, beside 1")
    options.add_argument("--steps", type=int, help="steps of ours; the bundle's if left out")
    options.add_argument("--distilled", action="store_true", help="ours as weights for 1, 2, 4 or 8 steps, see --steps")
    options.add_argument("--small-decoder", action="store_true", help="ours with the small decoder")
    options.add_argument("--short", type=int, default=2, help="steps that are measured and multiplied")
    options.add_argument("--whole", action="store_true", help="sample from noise to images, one or more hours")
    options.add_argument("--floor", action="store_true", help="also the least time by operations and bytes")
    options.add_argument("--profile", action="store_true", help="also where the time of sampling steps goes")
    arguments = options.parse_args()
    device, size = chosen_device(arguments.device), read_size(arguments.size)
    result = measure(size, device, arguments)
    for row in result["rows"]:
        print(ROW.format(**{**result, **row, **row["images_a_second"]}))
    print(f"ratio: {result['ratio']:.2f} with guidance {arguments.guidance}, to reach {result['target']}")
    if arguments.floor:
        result["floor"] = floors(size, device, result)
        print_floors(result["floor"])
    if arguments.profile:
        print_shares(result["profile"])
    write_json(arguments.json, result)


def measure(size: Size, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate both procedures with guidance and without, on the same number of images."""
    before = machine(device)
    print_machine(before)
    count = arguments.batch or size.settings["batch_size"]
    published = PublishedSampling(build(size, device), size.latent_shape, count, device)
    tuned = {"distilled": arguments.distilled, "small_decoder": arguments.small_decoder}
    ours = OurSampling(build(size, device), size, count, device, arguments.precision, arguments.steps, **tuned)
    scales = [arguments.guidance, 1.0] if arguments.guidance != 1.0 else [1.0]
    how = whole if arguments.whole else by_steps
    rows = [{"guidance": scale, **how(published, ours, scale, count, device, arguments)} for scale in scales]
    shares = {}
    if arguments.profile:
        steps = {"published": published.latents, "ours": ours.latents}
        shares = {name: profile_shares(partial(run, scales[0], arguments.short), device) for name, run in steps.items()}
    return {
        "claim": "sampled images a second, ours over published",
        "size": size.name,
        "device": device.type,
        "batch": count,
        "whole": arguments.whole,
        "published_steps": NUM_INFERENCE_STEPS,
        "our_steps": ours.num_inference_steps,
        "sampler": ours.sampler,
        "precision": ours.precision,
        "small_decoder": arguments.small_decoder,
        "target": TARGETS[device.type] if size.name == "full" else None,
        "ratio": rows[0]["ratio"],
        "rows": rows,
        "profile": shares,
        "machine": before,
        "load_average_after": machine(device)["load_average"],
    }


def by_steps(
    published: PublishedSampling,
    ours: OurSampling,
    scale: float,
    count: int,
    device: torch.device,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Measure a few steps and decoding of each."""
    short = arguments.short
    procedures: dict[str, Callable[[], object]] = {
        "published steps": lambda: published.latents(scale, short),
        "ours steps": lambda: ours.latents(scale, short),
        "published decoding": published.images,
        "ours decoding": ours.images,
    }
    seconds = interleaved(procedures, arguments.repeats, device)
    steps = {"published": NUM_INFERENCE_STEPS, "ours": ours.num_inference_steps}
    return {"seconds": seconds, **summary(sampling_seconds(medians(seconds), steps, short), count)}


def whole(
    published: PublishedSampling,
    ours: OurSampling,
    scale: float,
    count: int,
    device: torch.device,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Measure whole samplings."""
    procedures: dict[str, Callable[[], object]] = {
        "published": lambda: published(scale),
        "ours": lambda: ours(scale),
    }
    seconds = interleaved(procedures, arguments.repeats, device)
    return {"seconds": seconds, **summary(medians(seconds), count)}


def sampling_seconds(seconds: Mapping[str, float], steps: Mapping[str, int], short: int) -> dict[str, float]:
    """Seconds of a whole sampling: those of ``short`` steps, multiplied, and of decoding."""
    return {name: seconds[f"{name} steps"] / short * steps[name] + seconds[f"{name} decoding"] for name in steps}


def summary(seconds: Mapping[str, float], count: int) -> dict[str, Any]:
    """Images a second, and how many times more ours are."""
    images = {name: count / value for name, value in seconds.items()}
    return {"images_a_second": images, "ratio": images["ours"] / images["published"]}


def floors(size: Size, device: torch.device, result: Mapping[str, Any]) -> dict[str, Any]:
    """Least seconds an image with guidance beside those measured, for both procedures."""
    work, rates, count, row = count_work(size), measure_rates(device), result["batch"], result["rows"][0]
    branches = 1 if row["guidance"] == 1.0 else 2
    published, ours = branches * result["published_steps"], branches * result["our_steps"]
    least = {
        "published": sampling_floor(work, rates, "float32", count, published, 1),
        "ours": sampling_floor(work, rates, result["precision"], count, ours, branches),
    }
    measured = {name: 1.0 / images for name, images in row["images_a_second"].items()}
    return {"work": vars(work), "rates": vars(rates), "seconds_an_image": least, "measured": measured}


if __name__ == "__main__":
    main()
