"""``medfusion compare``: sets of generated images against real ones."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from medfusion_monai.cli.arguments import bundle_path, input_path, named_path, positive, seed, whole


def add_compare(subparsers: Any) -> None:
    """Add ``medfusion compare``."""
    parser = subparsers.add_parser("compare", help="compare any generator's images with real ones in one report")
    parser.add_argument(
        "--reference",
        type=input_path,
        required=True,
        metavar="DIR",
        help="real images: a prepared data set, one sub-folder per class, or a folder of images",
    )
    parser.add_argument(
        "--images",
        required=True,
        nargs="+",
        action="extend",
        type=named_path,
        metavar="NAME=DIR",
        help="generated images: samples of inference, one sub-folder per class, or a folder of images; repeatable",
    )
    parser.add_argument(
        "--output", type=bundle_path, required=True, help="folder for report.html, report.md, report.json"
    )
    parser.add_argument("--split", help="split of a prepared reference (reference if there is one, else test)")
    parser.add_argument(
        "--size",
        nargs=2,
        type=positive,
        metavar=("HEIGHT", "WIDTH"),
        help="resize all images (real ones to the size of generated)",
    )
    parser.add_argument(
        "--resize-mode",
        choices=("crop", "pad"),
        default="crop",
        help="fill the size and crop, or pad with zeros (crop)",
    )
    _add_settings(parser)
    parser.set_defaults(handler=_compare)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option per attribute of ``CompareSettings``."""
    parser.add_argument(
        "--features",
        default="auto",
        type=lambda text: None if text == "null" else text,
        metavar="SPEC",
        help="efficientnet-lite0, inception[:FILE], dinov2[:FILE], rad-dino:FILE, "
        "torchvision:ARCHITECTURE:FILE, torchscript:FILE, phantoms:FILE, or "
        "null: none, which leaves out FID and the like (auto: inception if its weights are here, else "
        "efficientnet-lite0)",
    )
    parser.add_argument("--k", type=positive, default=3, help="neighbours of precision and recall (3)")
    parser.add_argument("--replicates", type=whole, default=100, help="resampled sets per interval, 0: none (100)")
    parser.add_argument("--neighbours", type=whole, default=8, help="nearest training images shown, 0: none (8)")
    parser.add_argument(
        "--classifier-seeds",
        nargs="*",
        type=seed,
        default=[0, 1, 2],
        help="one classifier per seed, to test whether the label steers; no seed: none (0 1 2)",
    )
    parser.add_argument("--batch-size", type=positive, default=32, help="images per batch (32)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--seed", type=seed, default=0, help="seed (0)")


def _compare(arguments: argparse.Namespace) -> int:
    from medfusion_monai.evaluation.compare_folders import compare
    from medfusion_monai.evaluation.settings import CompareSettings

    names = [name for name, _ in arguments.images]
    if len(set(names)) < len(names):
        raise ValueError(f"--images has a name twice: {names}. Give each set its own name")
    settings = CompareSettings(**{field.name: getattr(arguments, field.name) for field in fields(CompareSettings)})
    compare(arguments.reference, dict(arguments.images), arguments.output, arguments.split, arguments.size, settings)
    print(Path(arguments.output) / "report.html")
    return 0
