"""Finds the folder of the bundle that is being run.

MONAI's runner gives a config's expressions access to neither their workflow nor their file. The workflow that is being
initialized is therefore looked up among all existing ones.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow


def find_root() -> str:
    """Return the folder of the bundle whose config is being run, from any working directory.

    Without a workflow (if the parser is used directly) it is the working directory, as in MONAI's model zoo.

    Raises:
        ValueError: if workflows of several bundles are being initialized at once.
    """
    roots = {_root_of(workflow) for workflow in workflows_in_initialize()}
    if len(roots) > 1:
        raise ValueError(f"workflows of several bundles are initialized at once ({sorted(roots)}): set bundle_root")
    return roots.pop() if roots else "."


def beside(bundle_root: str, name: str) -> str:
    """Return a folder for a bundle's runs or data, outside the bundle to exclude it from pushes.

    Args:
        bundle_root: folder of the bundle, e.g. ``bundles/medfusion_cxr``.
        name: content of the folder, e.g. ``runs`` for ``bundles/runs/medfusion_cxr``.
    """
    root = Path(os.path.abspath(bundle_root))
    return str(root.parent / name / root.name)


def workflows_in_initialize() -> list[ConfigWorkflow]:
    """Return the workflows of our bundles that have begun ``initialize`` but not resolved ``bundle_root`` yet."""
    kinds = [ConfigWorkflow, *ConfigWorkflow.__subclasses__()]
    living = [found for kind in kinds for found in gc.get_referrers(kind) if type(found) is kind]
    return [workflow for workflow in living if _is_in_initialize(vars(workflow))]


def _is_in_initialize(state: Mapping[str, Any]) -> bool:
    parser = state.get("parser")
    if parser is None or not state.get("_is_initialized"):
        return False
    ours = any("medfusion_monai.bundle.accept_overrides" in str(step) for step in parser.get(state["init_id"]) or [])
    return ours and "bundle_root" not in parser.ref_resolver.resolved_content


def _root_of(workflow: ConfigWorkflow) -> str:
    folder = Path(os.path.abspath(workflow.config_root_path))
    return str(folder.parent if folder.name == "configs" else folder)
