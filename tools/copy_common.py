"""Copies what all bundles have in common from the chest bundle to the others; run it after a change of the first.

    python tools/copy_common.py

Left as they are: in YAML the lines below ``# The modality`` and the comments ``# Should reach`` and ``# Reached``, in
``metadata.json`` the entries of ``OWN_ENTRIES``, and the files of ``OWN_FILES``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SOURCE = BUNDLES / "medfusion_cxr"
OWN_FILES = ("docs/README.md", "docs/data_license.txt")
OWN_KEYS = (
    "class_names",
    "image_size",
    "image_channels",
    "latent_channels",
    "random_transforms",
    "latent_flips",
    "pixel_loss",
    "autoencoder_steps",
    "diffusion_steps",
    "guidance_scale",
    "untrained",
    "sampler",
    "eta",
    "gan_augmentations",
)
OWN_LINES = re.compile(r"^# (?:Should reach|Reached).*\n", re.MULTILINE)
OWN_BLOCK = re.compile(r"^# The modality\n(?:.+\n)*", re.MULTILINE)
OWN_ENTRIES = (
    ("changelog",),
    ("name",),
    ("task",),
    ("description",),
    ("data_source",),
    ("image_classes",),
    ("label_classes",),
    ("pred_classes",),
    ("eval_metrics",),
    ("network_data_format", "inputs", "image", "modality"),
    ("network_data_format", "inputs", "image", "num_channels"),
    ("network_data_format", "inputs", "image", "channel_def"),
    ("network_data_format", "outputs", "pred", "num_channels"),
    ("network_data_format", "outputs", "pred", "channel_def"),
)


def common_files(bundle: Path) -> list[str]:
    """Return the files of a bundle that are the same, own parts apart, in all bundles."""
    folders = [bundle / "configs", bundle / "docs"]
    names = [path.relative_to(bundle).as_posix() for folder in folders for path in folder.iterdir() if path.is_file()]
    return sorted(name for name in ["LICENSE", *names] if name not in OWN_FILES)


def expected_text(name: str, source: str, target: str) -> str:
    """Return the source's text of a file with the target's own parts, where it has as many, in place of the source's.

    Args:
        name: the file's name, which says its format.
        source: its text in the chest bundle.
        target: its text in another bundle.
    """
    if name.endswith(".yaml"):
        return _with_own_parts(OWN_BLOCK, _with_own_parts(OWN_LINES, source, target), target)
    if name.endswith("metadata.json"):
        merged, own = json.loads(source), json.loads(target)
        for path in OWN_ENTRIES:
            _set(merged, path, _get(own, path))
        return json.dumps(merged, indent=4, ensure_ascii=False) + "\n"
    return source


def _with_own_parts(pattern: re.Pattern[str], source: str, target: str) -> str:
    theirs = pattern.findall(target)
    if len(theirs) != len(pattern.findall(source)):
        return source
    remaining = iter(theirs)
    return pattern.sub(lambda _: next(remaining), source)


def _get(document: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def _set(document: Any, path: tuple[str, ...], value: Any) -> None:
    _get(document, path[:-1])[path[-1]] = value


def main() -> None:
    """Write the common files of all other bundles."""
    for bundle in sorted(set(BUNDLES.glob("medfusion_*")) - {SOURCE}):
        for name in common_files(SOURCE):
            source, path = (SOURCE / name).read_text(encoding="utf-8"), bundle / name
            target = path.read_text(encoding="utf-8") if path.is_file() else source
            expected = expected_text(name, source, target)
            if not path.is_file() or expected != target:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(expected, encoding="utf-8")
                print(f"written: {path.relative_to(BUNDLES)}")


if __name__ == "__main__":
    main()
