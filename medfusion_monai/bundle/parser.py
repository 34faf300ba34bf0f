"""Reads a training's config as the bundle runner does, and checks its keys and references."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from medfusion_monai.bundle.keys import reading, refuse_unknown_keys, with_nearest


def read_files(files: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """Read config files, later ones merged after earlier ones, with overrides after all.

    ``bundle_root`` is the folder of the first file, or the one above it if that is called ``configs``.

    Raises:
        ValueError: for missing and unreadable files, and for overrides of unknown keys.
    """
    refuse_unknown_keys(files, overrides)
    parser = ConfigParser()
    with reading(files):
        parser.read_config(list(files))
    folder = Path(os.path.abspath(files[0])).parent
    if "bundle_root" in parser:
        parser["bundle_root"] = str(folder.parent if folder.name == "configs" else folder)
    parser.update(dict(overrides))
    return parser


def check_references(parser: ConfigParser) -> str:
    """Refuse references to keys that a config does not have, and return the number of references.

    Raises:
        ValueError: for each such reference, with its place and the nearest keys.
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
