"""Reading a training's config as the bundle runner would, and what is wrong with its keys alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from medfusion_monai.bundle.overrides import is_key, with_nearest


def read_files(files: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """Read config files, later ones merged after earlier ones, with overrides after all.

    The bundle is the folder above that of the first file, if that is called ``configs``.

    Raises:
        ValueError: for files that are missing or no configs, and for overrides that are no keys.
    """
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise ValueError(f"{', '.join(missing)}: no such file. Name configs of a bundle, e.g. configs/train.yaml")
    parser = ConfigParser()
    try:
        parser.read_config(list(files))
    except Exception as error:  # whatever YAML and JSON readers raise
        raise ValueError(f"{', '.join(files)}: cannot be read as configs: {error}") from error
    unknown = [key for key in overrides if not is_key(key, parser)]
    if unknown:
        raise ValueError(
            f"{with_nearest(unknown, parser.get())}: no key of the configs. Correct the name, or leave it out"
        )
    folder = Path(os.path.abspath(files[0])).parent
    if "bundle_root" in parser:
        parser["bundle_root"] = str(folder.parent if folder.name == "configs" else folder)
    parser.update(dict(overrides))
    return parser


def check_references(parser: ConfigParser) -> str:
    """Look for references of a config to keys that it does not have.

    Raises:
        ValueError: naming each, where it stands, and the nearest keys.
    """
    parser.parse(reset=True)
    items = parser.ref_resolver.items
    problems, count = [], 0
    for place, item in items.items():
        content = item.get_config()
        references = ReferenceResolver.match_refs_pattern(content) if isinstance(content, str) else {}
        count += len(references)
        for lost in references.keys() - items.keys():
            problems.append(f"{place} refers to {with_nearest([lost], items, '@')}")
    if problems:
        raise ValueError(f"{'; '.join(problems)}: no such key. Correct the reference, or add the key")
    return f"{count} references"
