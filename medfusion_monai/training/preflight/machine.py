"""Whether a run can use this machine's device and installed versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from medfusion_monai.runtime.files import in_words

DISTRIBUTION = "medfusion-monai"
CONTROL_GROUP = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def check_device(device: torch.device | str) -> str:
    """Return a device with its free memory, in words.

    Raises:
        ValueError: if this machine does not have it.
    """
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is unknown: choose cpu, cuda or cuda:NUMBER") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(
                f"device {device} is unavailable, PyTorch finds {count} CUDA devices: choose cpu or another number"
            )
        return f"{device}, {torch.cuda.get_device_name(device)}, {in_words(available_memory(device))} free"
    try:
        torch.empty(1, device=device)
    except Exception as error:  # each missing backend raises an error of its own
        raise ValueError(f"device {device} cannot be used here ({error}): choose cpu or cuda") from error
    return f"{device}, {os.cpu_count()} cores, {in_words(available_memory(device))} free"


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a CUDA device, else in the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    return min([psutil.virtual_memory().available, *_control_group_free(), *_limits_free()])


def _control_group_free(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what a container's limit leaves, which psutil does not read; cached file pages count as free."""
    for limit, usage in CONTROL_GROUP:
        try:
            most = int((folder / limit).read_text())  # fails for 'max', which means no limit
            used = int((folder / usage).read_text())
            lines = (folder / limit).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        statistics = dict(line.split() for line in lines)
        droppable = int(statistics.get("inactive_file", statistics.get("total_inactive_file", "0")))
        return [most - used + droppable]
    return []


def _limits_free() -> list[int]:
    """Return what the limits of this process leave, as set by ``ulimit -v`` and ``-d`` or by a scheduler."""
    if not psutil.LINUX:
        return []
    process = psutil.Process()
    memory = process.memory_info()
    limits = [(process.rlimit(psutil.RLIMIT_AS)[0], memory.vms), (process.rlimit(psutil.RLIMIT_DATA)[0], memory.data)]
    return [max(0, most - used) for most, used in limits if most != psutil.RLIM_INFINITY]


def check_versions() -> str:
    """Compare the installed packages with the requirements of medfusion-monai; return the main versions.

    Raises:
        ValueError: listing packages that are missing or of the wrong version.
    """
    shown = f"python {platform.python_version()}, torch {torch.__version__}, monai {installed_version('monai')}"
    try:
        needed = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        return f"{shown}; not compared, {DISTRIBUTION} is not installed"
    problems = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = installed_version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} {found or 'missing'} (needs {requirement.specifier})")
    if problems:
        raise ValueError(
            f"{', '.join(problems)}: install the requirements, e.g. pip install -c constraints.txt -e . in a clone"
        )
    return shown


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
