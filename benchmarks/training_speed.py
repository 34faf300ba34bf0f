"""Measure images a second of phase two, ours beside the published procedure, step by step in turn.

Published: every image is encoded at every step, float32, the whole batch at once, plain AdamW. Ours: latents from
their store, the device's own precision and memory layout, fused AdamW, and besides it gradient clipping and averaged
weights, which the published runs did not have.
"""

from __future__ import annotations

import argparse
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
    random_batch,
    read_size,
    write_json,
)
from floor import count_work, measure_rates, print_floors, training_floor
from our_procedure import OurTraining
from profile_shares import print_shares, profile_shares
from published_procedure import PublishedTraining

TARGETS = {"cpu": 1.5, "cuda": 5.0}


def main() -> None:
    """Measure and print the ratio."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3, help="steps of each that count; one more warms up")
    options.add_argument("--micro-batch", type=int, help="images at a time of ours; the config's if left out")
    options.add_argument("--floor", action="store_true", help="also the least time by operations and bytes")
    options.add_argument("--profile", action="store_true", help="also where the time of a step goes")
    arguments = options.parse_args()
    device, size = chosen_device(arguments.device), read_size(arguments.size)
    result = measure(size, device, arguments)
    print(ROWS.format(**result, **result["images_a_second"]))
    if arguments.floor:
        result["floor"] = floors(size, device, result)
        print_floors(result["floor"])
    if arguments.profile:
        print_shares(result["profile"])
    write_json(arguments.json, result)


ROWS = """phase two, {size} size on {device}, batches of {batch}, {repeats} steps each in turn
published: {published:.3f} images a second (float32, encodes every image)
ours:      {ours:.3f} images a second ({precision}, micro-batches of {micro_batch})
ratio:     {ratio:.2f}, to reach {target}"""


def measure(size: Size, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate steps of both procedures on one batch."""
    before = machine(device)
    print_machine(before)
    count = arguments.batch or size.settings["diffusion_batch_size"]
    images, latents = random_batch(size, count, device), random_batch(size, count, device, stored=True)
    published = PublishedTraining(build(size, device), device)
    ours = OurTraining(build(size, device), size, device, arguments.precision, arguments.micro_batch)
    steps = {"published": lambda: published(images), "ours": lambda: ours(latents)}
    seconds = interleaved(steps, arguments.repeats, device)
    shares = {name: profile_shares(step, device) for name, step in steps.items()} if arguments.profile else {}
    return {
        "claim": "phase-two training images a second, ours over published",
        "size": size.name,
        "device": device.type,
        "batch": count,
        "repeats": arguments.repeats,
        "precision": ours.precision,
        "micro_batch": ours.micro_batch or count,
        "target": TARGETS[device.type] if size.name == "full" else None,
        **summary(seconds, count),
        "profile": shares,
        "machine": before,
        "load_average_after": machine(device)["load_average"],
    }


def summary(seconds: dict[str, list[float]], count: int) -> dict[str, Any]:
    """Images a second by the median step, and how many times more ours are."""
    images = {name: count / median for name, median in medians(seconds).items()}
    return {"seconds": seconds, "images_a_second": images, "ratio": images["ours"] / images["published"]}


def floors(size: Size, device: torch.device, result: dict[str, Any]) -> dict[str, Any]:
    """Least seconds an image beside those measured, for both procedures."""
    work, rates = count_work(size), measure_rates(device)
    least = {
        "published": training_floor(work, rates, "float32", result["batch"], encodes=True, averages=False),
        "ours": training_floor(work, rates, result["precision"], result["batch"], encodes=False, averages=True),
    }
    measured = {name: 1.0 / images for name, images in result["images_a_second"].items()}
    return {"work": vars(work), "rates": vars(rates), "seconds_an_image": least, "measured": measured}


if __name__ == "__main__":
    main()
