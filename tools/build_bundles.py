"""Builds what is given to others: the package's wheel, and each bundle as a zip in the layout of MONAI's model zoo.

    python tools/build_bundles.py --output dist [--weights-url https://HOST/FOLDER | --without-weights]

Each bundle is checked first; one fault and nothing is written. ``MONAI_META_SCHEMA`` names the zoo's schema of
``metadata.json`` (``meta_schema_20240725.json``); where there is none, that one check is skipped and said to be.
Weights of more than 25 MB are left out of the zip: they lie beside it, and ``large_files.yml`` in it tells
``python -m monai.bundle download_large_files`` where they are to be had. ``models/checksums.sha256`` lists all weights,
those outside too, and inference refuses others in their place. The same tree gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import medfusion_monai
from medfusion_monai.files import renamed_when_whole
from medfusion_monai.weights.checksums import CHECKSUMS, checksums_text
from medfusion_monai.weights.state_dict import check_listed, file_sha256

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = Path(os.environ.get("MONAI_META_SCHEMA", "meta_schema_20240725.json"))
LARGE_BYTES = 25_000_000
FILES = (
    "LICENSE",
    "configs/inference.yaml",
    "configs/logging.conf",
    "configs/metadata.json",
    "configs/train.yaml",
    "docs/README.md",
    "docs/data_license.txt",
)
SECTIONS = ("## Intended use", "## Limits", "## Training data", "## Metrics")
MODEL_SUFFIXES = (".pt", ".safetensors", ".ts", ".json")
TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def main(argv: Sequence[str] | None = None) -> int:
    """Check all bundles, write the wheel and the zips, and print them with their checksums."""
    parser = argparse.ArgumentParser(description="Build the wheel and the bundles' zips.")
    parser.add_argument("--output", default="dist", help="folder of what is built (dist)")
    parser.add_argument("--bundles", nargs="*", help="folders of bundles; all of them by default")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights-url", help="address of the folder to which large weights will be uploaded")
    weights.add_argument("--without-weights", action="store_true", help="leave models out")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output)
    bundles = [Path(bundle).resolve() for bundle in arguments.bundles or sorted((ROOT / "bundles").glob("medfusion_*"))]
    try:
        schema = read_schema()
        faults = [f"{bundle.name}: {fault}" for bundle in bundles for fault in faults_of(bundle, schema)]
        if faults:
            raise ValueError("nothing was built:\n" + "\n".join(faults))
        models = {bundle: [] if arguments.without_weights else model_files(bundle) for bundle in bundles}
        refuse_without_url(models, arguments.weights_url)
        for path in (path for paths in models.values() for path in paths):
            check_listed(path)
        output.mkdir(parents=True, exist_ok=True)
        built = [build_wheel(output)]
        for bundle in bundles:
            built += build_zip(bundle, models[bundle], output, arguments.weights_url)
    except ValueError as error:
        print(f"build_bundles: error: {error}", file=sys.stderr)
        return 2
    for path in built:
        print(f"{file_sha256(path)}  {path}")
    return 0


def read_schema() -> dict[str, Any] | None:
    """Read the zoo's schema; None, and a line that says so, where it is not on this machine."""
    if SCHEMA.is_file():
        return json.loads(SCHEMA.read_text(encoding="utf-8"))
    print(f"no schema at {SCHEMA}: metadata.json is not checked against it (set MONAI_META_SCHEMA)", file=sys.stderr)
    return None


def faults_of(bundle: Path, schema: Mapping[str, Any] | None) -> list[str]:
    """List what keeps a bundle from being given to others; the schema is not checked if None."""
    missing = [f"{name} is missing or empty" for name in FILES if not _text(bundle / name).strip()]
    code = [f"{path.relative_to(bundle)} is code: it belongs into the package" for path in bundle.rglob("*.py")]
    if missing:
        return missing + code
    metadata = json.loads(_text(bundle / "configs" / "metadata.json"))
    lines = _text(bundle / "docs" / "README.md").splitlines()
    sections = [f"docs/README.md has no section '{title}'" for title in SECTIONS if title not in lines]
    return code + sections + schema_faults(metadata, schema) + version_faults(metadata)


def schema_faults(metadata: Mapping[str, Any], schema: Mapping[str, Any] | None) -> list[str]:
    """List what the zoo's schema refuses."""
    if schema is None:
        return []
    errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(metadata)
    return [f"metadata.json: {'/'.join(map(str, error.path)) or 'top level'}: {error.message}" for error in errors]


def version_faults(metadata: Mapping[str, Any]) -> list[str]:
    """List versions that are not those of the package, or not those that the tests run with."""
    tested = tested_versions() | {"medfusion-monai": medfusion_monai.__version__}
    named = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    claimed = {package: metadata.get(key) for package, key in named.items()}
    required = metadata.get("required_packages_version", {})
    claimed |= {canonicalize_name(package): version for package, version in required.items()}
    faults = [
        f"metadata.json: {package} {version}, tested with {tested.get(package, 'none')}"
        for package, version in claimed.items()
        if version != tested.get(package)
    ]
    if "medfusion-monai" not in claimed:
        faults.append("metadata.json: required_packages_version does not name medfusion-monai")
    if metadata.get("version") not in metadata.get("changelog", {}):
        faults.append(f"metadata.json: version {metadata.get('version')} is not in the changelog")
    return faults


def tested_versions() -> dict[str, str]:
    """Read the versions of ``constraints.txt`` that hold for the newest Python."""
    lines = (line.partition("#")[0].strip() for line in _text(ROOT / "constraints.txt").splitlines())
    pins = [Requirement(line) for line in lines if line]
    newest = {"python_version": "3.99"}
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(newest)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def model_files(bundle: Path) -> list[Path]:
    """List the weights of a bundle and what lies beside them."""
    return [path for path in visible(bundle / "models") if path.suffix in MODEL_SUFFIXES]


def visible(folder: Path) -> list[Path]:
    """List the files of a folder, without those that begin with a dot."""
    return sorted(path for path in folder.glob("[!.]*") if path.is_file())


def refuse_without_url(models: Mapping[Path, Iterable[Path]], weights_url: str | None) -> None:
    """Raise a ValueError if weights are too large for a zip and nothing says where they will be."""
    large = [path for paths in models.values() for path in paths if is_large(path)]
    if large and weights_url is None:
        raise ValueError(
            f"{', '.join(map(str, large))}: more than 25 MB, too large for a zip of the zoo. Say where they will be "
            "(--weights-url https://HOST/FOLDER), or leave models out (--without-weights)"
        )


def is_large(path: Path) -> bool:
    """Whether a file is too large for the zip."""
    return path.stat().st_size > LARGE_BYTES


def build_wheel(output: Path) -> Path:
    """Build the package's wheel from a copy of its files, so that nothing left in the tree's build folder gets in."""
    with tempfile.TemporaryDirectory() as scratch:
        tree, wheels = Path(scratch) / "tree", Path(scratch) / "wheels"
        shutil.copytree(
            ROOT / "medfusion_monai", tree / "medfusion_monai", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if subprocess.run([*command, "--wheel-dir", wheels, tree], env=environment, check=False).returncode:
            raise ValueError("the wheel could not be built: pip says above why (it takes setuptools 77 or newer)")
        (wheel,) = wheels.iterdir()
        return Path(shutil.copy(wheel, output))


def build_zip(bundle: Path, models: Sequence[Path], output: Path, weights_url: str | None) -> list[Path]:
    """Write a bundle's zip, and copies of its large weights beside it, and list them.

    Args:
        bundle: folder of the bundle.
        models: its weights.
        output: folder of the zip.
        weights_url: address of the folder of large weights.
    """
    version = json.loads(_text(bundle / "configs" / "metadata.json"))["version"]
    name = f"{bundle.name}_v{version}"
    large = {path: output / f"{name}_{path.name}" for path in models if is_large(path)}
    files = [bundle / "LICENSE", *visible(bundle / "configs"), *visible(bundle / "docs")]
    files += [path for path in models if path not in large]
    contents = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in files}
    if models:
        contents[f"models/{CHECKSUMS}"] = checksums_text(models).encode()
    if large:
        contents["large_files.yml"] = large_files(large, str(weights_url)).encode()
    for path, copy in large.items():
        shutil.copyfile(path, copy)
    target = output / f"{name}.zip"
    with renamed_when_whole(target) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner in sorted(contents):
            entry = zipfile.ZipInfo(f"{bundle.name}/{inner}", TIMESTAMP)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(entry, contents[inner])
    return [target, *large.values()]


def large_files(copies: Mapping[Path, Path], weights_url: str) -> str:
    """Give ``large_files.yml``: where in the bundle each file goes, its address and its SHA-256."""
    entries = [
        {
            "path": f"models/{path.name}",
            "url": f"{weights_url.rstrip('/')}/{copy.name}",
            "hash_val": file_sha256(path),
            "hash_type": "sha256",
        }
        for path, copy in copies.items()
    ]
    return yaml.safe_dump({"large_files": entries}, sort_keys=False)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    raise SystemExit(main())
