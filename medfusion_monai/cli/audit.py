"""``medfusion audit``: what a model has memorised."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medfusion_monai.cli.arguments import bundle_path, input_path, positive, seed, whole


def add_audit(subparsers: Any) -> None:
    """Add ``medfusion audit``."""
    parser = subparsers.add_parser("audit", help="look for copies of training images among generated ones")
    parser.add_argument(
        "--dataset-dir", type=bundle_path, required=True, metavar="DIR", help="the data that the model was trained with"
    )
    parser.add_argument(
        "--samples",
        type=input_path,
        required=True,
        metavar="DIR",
        help="generated images, such as samples of inference",
    )
    parser.add_argument(
        "--output", type=bundle_path, required=True, help="folder for audit.html, audit.md, audit.json, copy_guard.npz"
    )
    parser.add_argument(
        "--model-file",
        type=bundle_path,
        metavar="FILE",
        help="weights, as models/model.pt, for latents and membership inference",
    )
    parser.add_argument(
        "--features",
        metavar="SPEC",
        help="latents, efficientnet-lite0, inception[:FILE], dinov2[:FILE], rad-dino:FILE, "
        "torchvision:ARCHITECTURE:FILE, torchscript:FILE or "
        "phantoms:FILE (latents if there is a model, else auto, as for compare)",
    )
    parser.add_argument(
        "--size", nargs=2, type=positive, metavar=("HEIGHT", "WIDTH"), help="without a model: the size of all images"
    )
    parser.add_argument("--flips", default="horizontal", help="mirrored copies: none, horizontal or all (horizontal)")
    parser.add_argument(
        "--no-pictures", action="store_true", help="leave out the pictures, which show images of patients"
    )
    parser.add_argument(
        "--membership-images",
        type=whole,
        default=1000,
        help="training images for membership inference, and as many others; 0: none (1000)",
    )
    parser.add_argument(
        "--power-images",
        type=whole,
        default=100,
        help="training images whose degraded copies the guard has to find; 0: none (100)",
    )
    parser.add_argument("--replicates", type=positive, default=1000, help="resampled sets per interval (1000)")
    parser.add_argument("--batch-size", type=positive, default=16, help="images per batch (16)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--seed", type=seed, default=0, help="seed (0)")
    parser.set_defaults(handler=_audit)


def _audit(arguments: argparse.Namespace) -> int:
    import ignite.distributed as idist

    from medfusion_monai.audit.audit_settings import AuditSettings
    from medfusion_monai.audit.run_audit import Audit
    from medfusion_monai.report.audit_verdict import verdict
    from medfusion_monai.runtime import distributed

    names = ("features", "size", "flips", "membership_images", "power_images", "replicates", "batch_size", "seed")
    options = {name: getattr(arguments, name) for name in names}
    options |= {"device": _own_device(arguments.device), "pictures": not arguments.no_pictures}
    places = (arguments.dataset_dir, arguments.samples, arguments.output)
    try:
        results = Audit(*places, _model(arguments.model_file), AuditSettings(**options)).run()
    except ValueError as error:
        distributed.report_failure(error)
        idist.finalize()  # without waiting: the others may be at work
        raise
    distributed.finish()
    if distributed.rank() == 0:
        print(verdict(results["audit"]))
        print(Path(arguments.output) / "audit.html")
    return 0


def _own_device(device: str) -> Any:
    """Join the processes if torchrun started several, and return the device of this one."""
    from medfusion_monai.bundle.overrides import repeat_errors_last
    from medfusion_monai.evaluation.settings import check_device
    from medfusion_monai.runtime import distributed

    if distributed.world_size() == 1:
        return device
    check_device(device)
    repeat_errors_last()
    own = distributed.default_device() if device == "cuda" else device
    distributed.start(own)
    return own


def _model(path: str | None) -> Any:
    from medfusion_monai import load
    from medfusion_monai.runtime.errors import WeightsError

    if path is None:
        return None
    try:
        return load(path, "cpu")
    except WeightsError as error:
        raise WeightsError(f"{error}. Without --model-file only the images are audited") from error
