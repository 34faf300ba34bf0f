"""The verbs about trained models: ``medfusion demo``, ``average``, ``assemble`` and ``export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medfusion_monai.cli.arguments import bundle_path, input_path, seed

WITH_CARD = ("safetensors", "diffusers")
"""Formats of ``medfusion export`` that write a model card."""


def add_demo(subparsers: Any) -> None:
    """Add ``medfusion demo``."""
    parser = subparsers.add_parser("demo", help="train a bundle on generated images, sample, and measure the result")
    parser.add_argument("--bundle", type=bundle_path, required=True, help="folder of the bundle")
    parser.add_argument(
        "--output", type=bundle_path, required=True, help="folder for data, weights, samples and report"
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed (0)")
    parser.set_defaults(handler=_demo)


def add_average(subparsers: Any) -> None:
    """Add ``medfusion average``."""
    parser = subparsers.add_parser(
        "average", help="write a model whose weights are averaged over another length, or end at an earlier step"
    )
    parser.add_argument(
        "--snapshots", type=bundle_path, required=True, help="folder averages of a training with average_snapshots"
    )
    parser.add_argument(
        "--length", type=float, required=True, help="standard deviation of the average, as a share of the steps so far"
    )
    parser.add_argument("--step", type=int, help="step of a snapshot, after which the average ends (the last one)")
    parser.add_argument("--output", type=bundle_path, required=True, help="folder for model.pt and model.json")
    parser.set_defaults(handler=_average)


def add_assemble(subparsers: Any) -> None:
    """Add ``medfusion assemble``."""
    parser = subparsers.add_parser(
        "assemble", help="write a model with the autoencoder, the UNet or the guide of another file"
    )
    part = parser.add_mutually_exclusive_group(required=True)
    part.add_argument(
        "--autoencoder",
        type=input_path,
        metavar="FILE",
        help="autoencoder.pt of a training with --frozen encoder, which started from the model",
    )
    part.add_argument(
        "--unet",
        type=input_path,
        metavar="FILE",
        help="UNet of a federated server, as FL_global_model.pt, trained on the latents of the model",
    )
    part.add_argument(
        "--guide",
        type=bundle_path,
        metavar="FILE",
        help="weights of a worse version of the model, away from which samples are guided by default",
    )
    parser.add_argument("--guidance-scale", type=float, metavar="SCALE", help="of --guide, above 1")
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels that --guide guides, as sigma / signal (all)",
    )
    parser.add_argument(
        "--model-file", type=bundle_path, required=True, help="weights, or a folder or bundle that contains them"
    )
    parser.add_argument("--output", type=bundle_path, required=True, help="folder for model.pt and model.json")
    parser.set_defaults(handler=_assemble)


def add_export(subparsers: Any) -> None:
    """Add ``medfusion export``."""
    parser = subparsers.add_parser("export", help="write a trained model for other programs, or to share it")
    parser.add_argument(
        "--model-file", type=bundle_path, required=True, help="weights, or a folder or bundle that contains them"
    )
    parser.add_argument("--output", type=bundle_path, required=True, help="folder for the files")
    parser.add_argument(
        "--format",
        default="onnx",
        help="onnx or torchscript: networks and sampler.json; safetensors: weights, model card and checksums; "
        "diffusers: a pipeline of diffusers, model card and checksums (onnx)",
    )
    parser.add_argument(
        "--bundle",
        type=input_path,
        help="folder of the bundle that the card describes (the one that contains the weights)",
    )
    parser.add_argument(
        "--report", type=input_path, metavar="FILE", help="report.json of run evaluating, for the model card"
    )
    parser.add_argument(
        "--audit", type=input_path, metavar="FILE", help="audit.json of medfusion audit, for the model card"
    )
    parser.add_argument(
        "--license", metavar="ID", help="terms for the weights, by the Hugging Face hub's identifier (unknown)"
    )
    parser.add_argument("--half", action="store_true", help="store weights in float16, half the size (safetensors)")
    parser.set_defaults(handler=_export)


def _demo(arguments: argparse.Namespace) -> int:
    from medfusion_monai.demo.run_demo import run_demo

    run_demo(arguments.bundle, arguments.output, arguments.seed)
    return 0


def _average(arguments: argparse.Namespace) -> int:
    from medfusion_monai.weights.power_average import write_average

    path, error = write_average(arguments.snapshots, arguments.output, arguments.length, arguments.step)
    print(f"{path}  profile met to within {error:.1%}")
    return 0


def _assemble(arguments: argparse.Namespace) -> int:
    from medfusion_monai.weights.assembled import write_assembled, write_guided, write_with_unet

    guidance = (arguments.guidance_scale, arguments.guidance_interval)
    if arguments.guide is None and guidance != (None, None):
        raise ValueError("--guidance-scale and --guidance-interval are those of --guide: name its weights too")
    if arguments.guide is not None:
        if arguments.guidance_scale is None:
            raise ValueError("--guide needs --guidance-scale, e.g. 2: measure a few on held-out images")
        print(write_guided(arguments.guide, arguments.model_file, arguments.output, *guidance))
    elif arguments.unet:
        print(write_with_unet(arguments.unet, arguments.model_file, arguments.output))
    else:
        print(write_assembled(arguments.autoencoder, arguments.model_file, arguments.output))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from medfusion_monai.export.formats import FORMATS

    known = (*FORMATS, *WITH_CARD)
    if arguments.format not in known:
        raise ValueError(f"format must be one of {', '.join(known)}, received {arguments.format!r}")
    formats = {"half": ("safetensors",)} | dict.fromkeys(("report", "audit", "license", "bundle"), WITH_CARD)
    for name, allowed in formats.items():
        if getattr(arguments, name) and arguments.format not in allowed:
            raise ValueError(f"--{name} is for --format {' or '.join(allowed)}, received --format {arguments.format}")
    return _export_with_card(arguments) if arguments.format in WITH_CARD else _export_programs(arguments)


def _export_with_card(arguments: argparse.Namespace) -> int:
    from medfusion_monai.export import export_pipeline, export_weights

    choices = {name: getattr(arguments, name) for name in ("bundle", "report", "audit")}
    choices["license_id"] = arguments.license
    if arguments.format == "diffusers":
        files = export_pipeline(arguments.model_file, arguments.output, **choices)
    else:
        files = export_weights(arguments.model_file, arguments.output, half=arguments.half, **choices)
    print(*files, sep="\n")
    return 0


def _export_programs(arguments: argparse.Namespace) -> int:
    from medfusion_monai.export.programs import export_programs

    facts = export_programs(arguments.model_file, arguments.output, arguments.format)
    for network in facts["networks"].values():
        print(f"{network['file']:<12}  differs from PyTorch by at most {network['difference_from_pytorch']:.1e}")
    print(Path(arguments.output) / "sampler.json")
    return 0
