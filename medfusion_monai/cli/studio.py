"""``medfusion studio``: a model in the browser."""

from __future__ import annotations

import argparse
import re
from typing import Any

from medfusion_monai.cli.arguments import bundle_path, input_path

HOST, PORT = "127.0.0.1", 7860


def add_studio(subparsers: Any) -> None:
    """Add ``medfusion studio``."""
    parser = subparsers.add_parser("studio", help="sample, edit and compare images in a browser, or by HTTP")
    parser.add_argument(
        "--model",
        type=bundle_path,
        default=".",
        metavar="PATH",
        help="weights, or a folder or bundle that contains them (the current folder)",
    )
    parser.add_argument(
        "--data", type=input_path, metavar="DIR", help="prepared data set whose real images are shown for comparison"
    )
    parser.add_argument(
        "--audit", type=input_path, metavar="DIR", help="output of medfusion audit for these weights (one beside them)"
    )
    parser.add_argument("--port", type=_port, default=PORT, help=f"port to listen on, 0 for a free one ({PORT})")
    parser.add_argument("--host", default=HOST, help=f"address to listen on ({HOST}: this machine alone)")
    parser.add_argument("--name", type=_name, metavar="HOST", help="name of a proxy with TLS on this machine")
    parser.add_argument("--no-token", action="store_true", help="let all programs and users of this machine use it")
    parser.add_argument("--device", help="cpu or cuda (the first GPU, or else the CPU)")
    parser.set_defaults(handler=_studio)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port from 0 to 65535")
    return int(text)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not the name of a host, such as studio.hospital.example")
    return text


def _studio(arguments: argparse.Namespace) -> int:
    try:
        import nicegui  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install -e '.[studio]' in a clone") from error
    from medfusion_monai import load
    from medfusion_monai.evaluation.settings import check_device
    from medfusion_monai.studio.access import new_token
    from medfusion_monai.studio.server import listen, serve
    from medfusion_monai.studio.service import Studio
    from medfusion_monai.weights.places import weights_at

    if arguments.device is not None:
        check_device(arguments.device)
    with listen(arguments.host, arguments.port, arguments.no_token, arguments.name) as listening:
        model = load(weights_at(arguments.model), arguments.device)
        studio = Studio(model, dataset_dir=arguments.data, audit_dir=arguments.audit)
        serve(studio, listening, arguments.host, None if arguments.no_token else new_token(), arguments.name)
    return 0
