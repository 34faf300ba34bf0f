"""What the bundles' configs call before and between the steps of a run."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ignite.distributed as idist
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, scripts
from monai.bundle.scripts import update_kwargs
from torch import nn

import medfusion_monai.diffusion
import medfusion_monai.distributed
import medfusion_monai.handlers
import medfusion_monai.kernels
import medfusion_monai.losses
import medfusion_monai.precision  # noqa: F401  configs name these by their full names
from medfusion_monai.checks import is_whole, refuse_null
from medfusion_monai.configs import calling
from medfusion_monai.data.class_shares import parse_class_shares
from medfusion_monai.data.flips import check_flips
from medfusion_monai.data.readable import check_policy
from medfusion_monai.diffusion import NoiseSchedule
from medfusion_monai.distributed import report_failure
from medfusion_monai.errors import first_cause, short_message
from medfusion_monai.networks import Autoencoder
from medfusion_monai.training import measure_latent_statistics
from medfusion_monai.weights.model_info import check_model_info
from medfusion_monai.weights.state_dict import WeightsError, file_sha256, load_weights, save_weights

logger = logging.getLogger(__name__)

TRACKING = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config")
"""Keys that MONAI's runner itself takes with ``--tracking``."""


def find_bundle_root() -> str:
    """Give the folder of the bundle whose config is being run, so that configs work from any working directory.

    The bundle runner tells a config nothing about where it lies, so this looks for the running workflow among
    its callers. Without one (a parser used by hand) it is the working directory, as in the zoo's bundles.
    """
    workflow = calling(ConfigWorkflow)
    if workflow is None:
        return "."
    folder = Path(os.path.abspath(workflow.config_root_path))
    return str(folder.parent if folder.name == "configs" else folder)


def check_overrides() -> None:
    """Refuse keys of the command line, or of ``args_file``, that the run's config files do not have.

    MONAI's runner takes them without a word, and a mistyped ``--difusion_steps`` would show after days. A key that is
    new within a part of the config is left to that part. Workflows that are built by hand are not checked.

    Raises:
        ValueError: naming the keys and the nearest that there are.
    """
    arguments = _runner_arguments()
    if arguments is None:
        return
    given = update_kwargs(arguments["args_file"] or {}, **arguments["override"])
    files = given.get("config_file") or arguments["config_file"]
    known = ConfigParser()
    known.read_config(files)
    allowed = {*inspect.signature(scripts.run).parameters, *(TRACKING if arguments["tracking"] else ())}
    unknown = [key for key in given if key not in allowed and not is_key(key.lstrip("+"), known)]
    if unknown:
        told = with_nearest(unknown, known.get(default={}), "--")
        shown = ", ".join(os.path.basename(file) for file in ([files] if isinstance(files, str) else files))
        raise ValueError(f"{told}: no key of {shown}. Correct the name, or leave it out")


def with_nearest(unknown: Iterable[str], known: Iterable[str], prefix: str = "") -> str:
    """Give names of keys, each with the known ones that are most like the first part of it."""
    names = [str(name) for name in known]
    near = {key: difflib.get_close_matches(re.split("#|::", key)[0], names, n=2) for key in unknown}
    return ", ".join(
        f"{prefix}{key}" + (f" (near: {', '.join(found)})" if found else "") for key, found in near.items()
    )


def _runner_arguments() -> dict[str, Any] | None:
    """Give the arguments of the runner that is running, or None where there is none."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not scripts.run.__code__:
        frame = frame.f_back
    return None if frame is None else dict(frame.f_locals)


def is_key(key: str, known: ConfigParser) -> bool:
    """Whether a config has a key, or the part of it in which the key is new: it may be a keyword of a component."""
    above = re.split("#|::", key)[:-1]
    return key in known or (bool(above) and "#".join(above) in known)


def as_bool(name: str, value: Any) -> bool:
    """Read a yes-or-no key; the command line gives ``--resume false`` as text.

    Raises:
        ValueError: for anything but true and false.
    """
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise ValueError(f"{name} must be true or false, received {value!r}")


def check_optional(**values: Any) -> None:
    """Raise a ValueError for keys that were meant to be unset: the command line gives ``null`` as text."""
    for name, value in values.items():
        refuse_null(name, value)


def check_counts(least: int = 1, **values: Any) -> None:
    """Raise a ValueError unless the values of these keys are whole numbers of at least ``least``."""
    for name, value in values.items():
        if not is_whole(value) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, received {value!r}")


def check_optional_counts(least: int = 1, **values: Any) -> None:
    """Raise a ValueError unless these keys are unset or whole numbers of at least ``least``."""
    check_optional(**values)
    check_counts(least, **{name: value for name, value in values.items() if value is not None})


def check_steps(phase: str, steps: int, interval: int, val_interval: int = 1) -> None:
    """Check that the training of a phase ends with a validation, without which its last steps would be lost.

    Args:
        phase: ``autoencoder`` or ``diffusion``.
        steps: of the training.
        interval: steps of an epoch; fewer steps than these are one epoch.
        val_interval: epochs between validations.

    Raises:
        ValueError: naming the key, the value and what to do.
    """
    check_counts(**{f"{phase}_steps": steps, f"{phase}_val_interval": interval, "val_interval": val_interval})
    if steps > interval and steps % interval:
        raise ValueError(
            f"{phase}_steps {steps} is no multiple of {phase}_val_interval {interval}: training ends with a "
            f"validation. Try {phase}_steps {steps - steps % interval}, or another interval"
        )
    epochs = max(1, steps // interval)
    if epochs % val_interval:
        raise ValueError(
            f"val_interval {val_interval} does not divide the {epochs} epochs of {phase}_steps {steps}: training ends "
            f"with a validation. Leave val_interval at 1 and raise {phase}_val_interval to validate less often"
        )


def check_settings(
    image_channels: int,
    class_names: Sequence[str],
    cache_latents: bool | str = False,
    random_transforms: Sequence[Any] = (),
    class_shares: Any = None,
    unreadable: str = "stop",
    latent_flips: Sequence[str] = (),
) -> None:
    """Check the settings of a training that no constructor checks.

    Args:
        image_channels: 1 or 3.
        class_names: one a label.
        cache_latents: whether phase two encodes each image once and reads its posterior from the disk.
        random_transforms: augmentations, which a posterior from memory cannot see.
        class_shares: None, ``equal``, or a share for each class.
        unreadable: ``stop`` or ``skip``.
        latent_flips: of ``FlippedDataset``.

    Raises:
        ValueError: naming the key, the value and what to do.
    """
    if image_channels not in (1, 3):
        raise ValueError(f"image_channels must be 1 (gray) or 3 (RGB), received {image_channels}")
    if not isinstance(class_names, list | tuple) or len(set(class_names)) != len(class_names) or not class_names:
        raise ValueError(f"class_names must be a list of different names, one a label, received {class_names}")
    if as_bool("cache_latents", cache_latents) and random_transforms and not latent_flips:
        raise ValueError(
            "cache_latents encodes each image once and leaves no room for random_transforms in phase two: set "
            "cache_latents to false, or name the flips that phase two shall see in latent_flips"
        )
    check_flips(latent_flips)
    parse_class_shares(class_shares, len(class_names), "equal")
    check_policy(unreadable)


def check_image_size(image_size: Sequence[int], factor: int = 8) -> None:
    """Raise a ValueError unless ``image_size`` is (height, width), both positive multiples of ``factor``."""
    sides = list(image_size) if isinstance(image_size, list | tuple) else []
    if len(sides) != 2 or any(not isinstance(side, int) or side <= 0 or side % factor for side in sides):
        raise ValueError(
            f"image_size must be [height, width], both multiples of {factor} (the autoencoder makes images {factor} "
            f"times smaller), received {image_size}"
        )


def check_folders(folders: Sequence[str | Path]) -> None:
    """Make folders; raise a ValueError if one cannot be made or written."""
    for folder in map(Path, folders):
        probe = folder / f".writable.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"folder {folder} cannot be written ({error.strerror}): choose another one") from error


def model_settings(
    class_names: Sequence[str],
    image_size: Sequence[int],
    image_channels: int,
    latent_channels: int,
    schedule: NoiseSchedule,
) -> dict[str, Any]:
    """Give what inference must have in common with the training of its weights, in values that JSON can hold.

    Args:
        class_names: in label order.
        image_size: height and width.
        image_channels: 1 or 3.
        latent_channels: of the autoencoder.
        schedule: its prediction type, length, and the signal that it leaves at the first, middle and last timestep.
    """
    signal = schedule.exact_alphas_cumprod
    return {
        "class_names": list(class_names),
        "image_size": list(image_size),
        "image_channels": image_channels,
        "latent_channels": latent_channels,
        "prediction_type": schedule.prediction_type,
        "num_train_timesteps": schedule.num_train_timesteps,
        "alphas_cumprod": [round(signal[index], 6) for index in (0, len(signal) // 2, -1)],
    }


def load_model(network: nn.Module, path: str | Path, **expected: Any) -> nn.Module:
    """Load ``models/model.pt``.

    Args:
        network: the network to fill.
        path: the weights.
        expected: what they must have been trained with, as of ``model_settings``; compared if ``model.json`` is
            beside them.

    Raises:
        WeightsError: if the weights are missing, do not fit, or were trained with something else.
    """
    load_weights(network, path, "run training")
    if expected:
        check_model_info(path, expected)
    return network.eval()


def finish_autoencoder(
    autoencoder: Autoencoder, best: str | Path, batches: Any, path: str | Path, device: torch.device | str = "cpu"
) -> None:
    """End phase one: take the best weights, measure the latents of the training set, write ``path``.

    If that was done already, ``path`` stays as it is, so that phase two goes on with what it began with. Of several
    processes the first does all this, and then the others find it done.

    Args:
        autoencoder: the network.
        best: its best weights, of ``BestWeights``.
        batches: the training images, once each.
        path: ``models/autoencoder.pt``.
        device: where to compute.

    Raises:
        WeightsError: if there are no best weights.
    """
    with idist.one_rank_first():
        check_validated(best)
        load_weights(autoencoder, best)
        if Path(path).is_file() and _same_but_statistics(autoencoder.state_dict(), path):
            load_weights(autoencoder, path)
            return
        autoencoder.set_latent_statistics(*measure_latent_statistics(autoencoder, batches, device))
        save_weights(autoencoder, path)
        logger.info("phase one is finished: %s", path)


def finish_diffusion(path: str | Path) -> None:
    """End phase two; raise a WeightsError if it has no weights to show."""
    check_validated(path)
    logger.info("phase two is finished: %s", path)


def checksum(path: str | Path) -> str | None:
    """Give the SHA-256 of a file, or None where there is none."""
    return file_sha256(path) if Path(path).is_file() else None


def check_validated(path: str | Path) -> None:
    """Raise a WeightsError unless the best weights of a phase are there."""
    if not Path(path).is_file():
        raise WeightsError(
            f"{path} was never written: no validation of this training gave a finite loss. Look at the losses in "
            "TensorBoard, check val_interval, and start anew with --resume false"
        )


def _same_but_statistics(state: dict[str, torch.Tensor], path: str | Path) -> bool:
    try:
        there = torch.load(path, map_location="cpu", weights_only=True)
        return all(
            torch.equal(there[name], value.cpu()) for name, value in state.items() if not name.startswith("latent_")
        )
    except Exception:  # whatever is there, it is not what phase one wrote
        return False


def load_autoencoder(autoencoder: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights of phase one for phase two; raise a WeightsError if there are none or they do not fit."""
    return load_weights(autoencoder, path, "phase two needs phase one: run train_autoencoder (or training)").eval()


def repeat_errors_last() -> None:
    """Have the cause of an error repeated below the traceback.

    The runner's last line says which line of the config failed, and the sentence that helps is far above it.
    """
    sys.excepthook = _show_cause_last


def _show_cause_last(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    report_failure(first_cause(error))
    sys.__excepthook__(kind, error, traceback)
    if error.__cause__ is not None:
        print(f"\nmedfusion: error: {short_message(first_cause(error))}", file=sys.stderr)
