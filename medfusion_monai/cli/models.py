"""The verbs about trained models: ``medfusion demo`` and ``export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medfusion_monai.cli.arguments import column_value, seed, yaml_value


def add_demo(subparsers: Any) -> None:
    """Add ``medfusion demo``."""
    parser = subparsers.add_parser("demo", help="train a bundle on generated images, sample, and measure the result")
    parser.add_argument("--bundle", required=True, help="folder of the bundle")
    parser.add_argument("--output", required=True, help="folder for data, weights, samples and report")
    parser.add_argument("--seed", type=seed, default=0, help="seed (0)")
    parser.set_defaults(handler=_demo)


def add_export(subparsers: Any) -> None:
    """Add ``medfusion export``."""
    parser = subparsers.add_parser("export", help="write a trained model as ONNX or TorchScript")
    parser.add_argument("--bundle", required=True, help="folder of the bundle")
    parser.add_argument("--model-file", required=True, help="models/model.pt")
    parser.add_argument("--output", required=True, help="folder for the networks and sampler.json")
    parser.add_argument("--format", default="onnx", help="onnx or torchscript (onnx)")
    parser.add_argument("--overlays", nargs="*", default=[], help="merged after inference.yaml, e.g. demo.yaml (none)")
    parser.add_argument(
        "--set",
        action="append",
        type=column_value,
        default=[],
        metavar="KEY=VALUE",
        help="a key that the training was given, e.g. image_size=[128,128]; repeatable",
    )
    parser.set_defaults(handler=_export)


def _demo(arguments: argparse.Namespace) -> int:
    from medfusion_monai.reports.demo import run_demo

    run_demo(arguments.bundle, arguments.output, arguments.seed)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from medfusion_monai.export import export_bundle

    facts = export_bundle(
        arguments.bundle,
        arguments.model_file,
        arguments.output,
        arguments.format,
        arguments.overlays,
        {key: yaml_value(key, text) for key, text in arguments.set},
    )
    for network in facts["networks"].values():
        print(f"{network['file']:<12}  differs from PyTorch by at most {network['difference_from_pytorch']:.1e}")
    print(Path(arguments.output) / "sampler.json")
    return 0
