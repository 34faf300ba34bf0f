"""The file of a site of a federated training: its bundle and settings, which never leave it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from medfusion_monai.bundle.keys import read_content
from medfusion_monai.sites.federation import FederationError

FOLDER = "MEDFUSION_SITES"
"""The variable that names the folder of the files of the sites of a machine."""
KEYS = {"bundle": str, "settings": dict, "overlays": list}
"""Keys of the file, and what each is; overlays may be left out."""
KINDS = {str: "text", dict: "keys with values", list: "a list of file names"}


class Site(NamedTuple):
    """What ``SiteTraining`` needs of a site: its config files, and its settings."""

    files: list[Path]
    settings: dict[str, Any]


def read_site(name: str) -> Site:
    """Read ``NAME.yaml`` in the folder that the variable ``MEDFUSION_SITES`` names.

    Raises:
        FederationError: if the file is missing or incomplete, or names config files that do not exist.
    """
    folder = os.environ.get(FOLDER)
    path = Path(folder or ".") / f"{name}.yaml"
    if folder is None or not path.is_file():
        raise FederationError(f"site {name} has no file {name}.yaml in the folder that {FOLDER} names")
    content = _content(path)
    configs = Path(content["bundle"]) / "configs"
    files = [configs / str(config) for config in ("train.yaml", *content.get("overlays", []))]
    lost = [str(file) for file in files if not file.is_file()]
    if lost:
        raise FederationError(f"{path}: there is no file {', '.join(lost)}. Correct bundle or overlays")
    return Site(files, content["settings"])


def write_site(
    folder: Path, name: str, bundle: Path, overlays: Sequence[str], settings: Mapping[str, Any], **places: Path
) -> None:
    """Write ``NAME.yaml`` of a site into the folder of such files.

    Args:
        folder: is made.
        name: of the site.
        bundle: its folder.
        overlays: config files that are merged after ``train.yaml``.
        settings: of the site.
        places: folders among its settings, as ``dataset_dir``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {**settings, **{key: str(place) for key, place in places.items()}}
    content = {"bundle": str(bundle), "overlays": list(overlays), "settings": own}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_content(path)
    except Exception as error:
        raise FederationError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise FederationError(f"{path} must have the keys bundle and settings, found {content!r}")
    problems = [f"no key {key}" for key in ("bundle", "settings") if key not in content]
    problems += [f"an unknown key {key}" for key in content if key not in KEYS]
    problems += [
        f"{key} {content[key]!r}, which is not {KINDS[kind]}"
        for key, kind in KEYS.items()
        if key in content and not isinstance(content[key], kind)
    ]
    if problems:
        raise FederationError(f"{path} has {'; '.join(problems)}. Its keys are bundle, settings and, if any, overlays")
    return content
