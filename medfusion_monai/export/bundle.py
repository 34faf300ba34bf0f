"""The files of a bundle that is shared: self-contained, and without files of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from medfusion_monai.export.card import CardFacts, facts_of
from medfusion_monai.export.public import open_model
from medfusion_monai.export.readme import REQUIREMENTS, shipped_readme
from medfusion_monai.model import Model
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.checksums import CHECKSUMS
from medfusion_monai.weights.guidance_model import guide_beside
from medfusion_monai.weights.model_info import model_info_path, model_info_text, require_latents
from medfusion_monai.weights.places import NAMES, STARTER
from medfusion_monai.weights.state_dict import check_listed

PHASE_ONE = "autoencoder.pt"
TORCHSCRIPT = "model.ts"
PACKAGE = "medfusion_monai"

SAME_AS_YAML = "The same as inference.yaml, for programs that only read JSON, such as monai.bundle.load: change both."
FOR_LOADING = (
    "For monai.bundle.load, which reads only this file and builds the network from it. To train, run train.yaml."
)
TRAIN: dict[str, Any] = {
    "about": FOR_LOADING,
    "imports": [
        "$import medfusion_monai",
        "$import medfusion_monai.bundle",
        "$import medfusion_monai.weights.places",
    ],
    "bundle_root": "$medfusion_monai.bundle.find_root()",
    "dataset_dir": "$medfusion_monai.bundle.beside(@bundle_root, 'data')",
    "model_file": "$str(medfusion_monai.weights.places.find_weights(@bundle_root))",
    "device": "$medfusion_monai.runtime.distributed.default_device()",
    "model": {"_target_": "medfusion_monai.Model", "path": "@model_file", "without_weights": "@untrained"},
    "network_def": "$@model.network",
    "initialize": ["$medfusion_monai.bundle.accept_overrides()", "$@network_def"],
}


class Parts(NamedTuple):
    """The parts of a shared bundle.

    Attributes:
        bundle: its folder.
        weights: files of its ``models`` that are shared, without their description.
        facts: about the weights; None without weights that can be sampled.
    """

    bundle: Path
    weights: list[Path]
    facts: CardFacts | None


def parts_of(bundle: str | Path, with_weights: bool = True) -> Parts:
    """Check the weights of a bundle and return its parts.

    Phase one's ``autoencoder.pt`` is left out if there is a model, which includes it. Starter weights are shared in the
    place of a training's where there is none.

    Args:
        bundle: its folder.
        with_weights: whether to share the weights it contains.

    Raises:
        WeightsError: for weights without a description or that do not fit theirs, or two files of different weights.
    """
    bundle = Path(bundle)
    names = (*NAMES, TORCHSCRIPT, PHASE_ONE) if with_weights else ()
    weights = [path for path in (bundle / "models" / name for name in names) if path.is_file()]
    models = [path for path in weights if path.name in NAMES]
    starters = [path for path in (bundle / "models" / STARTER / name for name in NAMES) if path.is_file()]
    if with_weights and starters and not weights:
        weights = models = starters[:1]
    if not models:
        weights = [path for path in weights if path.name == PHASE_ONE]
        for path in weights:
            check_listed(path)
        return Parts(bundle, weights, None)
    weights = [path for path in weights if path.name != PHASE_ONE]
    for path in weights:
        check_listed(path)
    model = open_model(models[0])
    require_latents(models[0], model.info)  # the readme and the metadata of a bundle are about a diffusion model
    _refuse_different(model, models[1:])
    guide = guide_beside(models[0], model.info)
    if guide is not None:
        check_listed(guide)
        weights.append(guide)
    return Parts(bundle, weights, facts_of(model, read_metadata(bundle)))


def bundle_files(
    parts: Parts, package: Mapping[str, bytes], requirements: str, fetched: Sequence[str] = ()
) -> dict[str, bytes | Path]:
    """Return the files of a bundle by their paths in it: their content, or for weights the path of the source.

    Args:
        parts: of the bundle.
        package: files of ``medfusion_monai`` by their paths.
        requirements: of the package, in pip's format.
        fetched: names of weights that users of the bundle have to download.
    """
    bundle, facts = parts.bundle, parts.facts
    kept = [bundle / "LICENSE", *visible(bundle / "configs"), *visible(bundle / "docs")]
    files: dict[str, bytes | Path] = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in kept}
    readme = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    files["docs/README.md"] = shipped_readme(readme, bundle.name, facts, fetched).encode()
    inference = ConfigParser.load_config_file(bundle / "configs" / "inference.yaml")
    files["configs/inference.json"] = _json({"about": SAME_AS_YAML, **inference})
    files["configs/train.json"] = _json({**TRAIN, "untrained": inference["untrained"]})
    files |= {REQUIREMENTS: requirements.encode(), **package}
    models: dict[str, bytes | Path] = {path.name: path for path in parts.weights}
    if facts is not None:
        files["configs/metadata.json"] = _json(facts.metadata)
        described = model_info_path(next(path for path in parts.weights if path.name in NAMES))
        models[described.name] = model_info_text(facts.info).encode()
    if models:
        models[CHECKSUMS] = "".join(f"{_sha256(models[name])}  {name}\n" for name in sorted(models)).encode()
    return files | {f"models/{name}": content for name, content in models.items()}


def read_metadata(bundle: Path) -> dict[str, Any]:
    """Read ``metadata.json`` of a bundle."""
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def visible(folder: Path) -> list[Path]:
    """Return the files of a folder that are not hidden."""
    return sorted(path for path in folder.glob("[!.]*") if path.is_file())


def _refuse_different(model: Model, others: Sequence[Path]) -> None:
    state = model.network.state_dict()
    for path in others:
        other = open_model(path).network.state_dict()
        if other.keys() != state.keys() or not all(torch.equal(other[name], value) for name, value in state.items()):
            raise WeightsError(
                f"{model.path} and {path.name} beside it contain different weights: keep only the one to share"
            )


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()


def _sha256(content: bytes | Path) -> str:
    return file_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
