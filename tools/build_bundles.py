"""Builds what is given to others: the package's wheel, and each bundle as a zip in the layout of MONAI's model zoo.

    python tools/build_bundles.py --output dist [--weights-url https://HOST/FOLDER | --without-weights]
        [--folders [--license ID]]

Each bundle is checked first; one fault and nothing is written. ``MONAI_META_SCHEMA`` names the zoo's schema of
``metadata.json`` (``meta_schema_20240725.json``); where there is none, that one check is skipped, with a note.

A zip is complete: it holds the package, so that nothing of this project has to be installed, and its README and
``metadata.json`` speak of the weights in it. ``models/checksums.sha256`` lists all weights, those outside too, and
inference refuses others in their place. The same tree gives the same bytes.

Weights of more than 25 MB lie beside the zip, and ``large_files.yml`` in it says where
``python -m monai.bundle download_large_files`` gets them. ``--folders`` writes each bundle as a folder too, whatever
the size of its weights: that is what to push to a hub. Its ``README.md`` is ``docs/README.md`` with a head in YAML,
from which the Hugging Face hub reads the terms (``--license``), the library and the task.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medfusion_monai.export.bundle import PACKAGE, Parts, bundle_files, parts_of, read_metadata
from medfusion_monai.export.card_head import card_head
from medfusion_monai.export.readme import INSTALL, WEIGHTS, has_section
from medfusion_monai.export.shared_folder import CARD, refuse_other_files
from medfusion_monai.runtime.files import file_sha256, renamed_when_whole

try:
    import tomllib
except ImportError:  # before Python 3.11
    import tomli as tomllib

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
SECTIONS = (INSTALL, WEIGHTS, "Intended use", "Limits", "Training data", "Metrics")
STATED = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
OLDEST_PYTHON = {"python_version": "3.10"}
LICENSE_WITHOUT_WEIGHTS = "apache-2.0"
TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def main(argv: Sequence[str] | None = None) -> int:
    """Check all bundles, write the wheel, the zips and folders, and print them, files with their checksums."""
    parser = argparse.ArgumentParser(description="Build the wheel and the bundles' zips.")
    parser.add_argument("--output", default="dist", help="folder of what is built (dist)")
    parser.add_argument("--bundles", nargs="*", help="folders of bundles; all of them by default")
    parser.add_argument(
        "--folders", action="store_true", help="write each bundle as a folder too, with all its weights"
    )
    parser.add_argument("--license", help="terms for the weights, by the Hugging Face hub's identifier (unknown)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights-url", help="address of the folder to which large weights will be uploaded")
    weights.add_argument("--without-weights", action="store_true", help="leave models out")
    arguments = parser.parse_args(argv)
    try:
        built = build(arguments)
    except ValueError as error:
        print(f"build_bundles: error: {error}", file=sys.stderr)
        return 2
    for path in built:
        print(f"{'folder' if path.is_dir() else file_sha256(path)}  {path}")
    return 0


def build(arguments: argparse.Namespace) -> list[Path]:
    """Check all bundles, write the wheel, the zips and folders, and return them."""
    output, url = Path(arguments.output), arguments.weights_url
    bundles = [Path(bundle).resolve() for bundle in arguments.bundles or sorted((ROOT / "bundles").glob("medfusion_*"))]
    schema = read_schema()
    faults = [f"{bundle.name}: {fault}" for bundle in bundles for fault in faults_of(bundle, schema)]
    if faults:
        raise ValueError("nothing was built:\n" + "\n".join(faults))
    card_head("monai", arguments.license)  # raises before any work
    parts = [parts_of(bundle, with_weights=not arguments.without_weights) for bundle in bundles]
    zipped = [one for one in parts if url is not None or not any(map(is_large, one.weights))]
    if not arguments.folders:
        refuse_without_url([path for one in parts if one not in zipped for path in one.weights if is_large(path)])
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build_wheel(Path(scratch))
        package = package_in(wheel)
        if arguments.folders:
            for one in parts:
                refuse_folder(output / one.bundle.name, one, package)
        output.mkdir(parents=True, exist_ok=True)
        built = [Path(shutil.copy(wheel, output))]
    for one in parts:
        if one in zipped:
            built += build_zip(one, package, output, url)
        else:
            print(f"no zip of {one.bundle.name}: weights over 25 MB take --weights-url", file=sys.stderr)
        built += [build_folder(one, package, output, arguments.license)] if arguments.folders else []
    return built


def read_schema() -> dict[str, Any] | None:
    """Read the zoo's schema; None, and a line that says so, where it is not on this machine."""
    if SCHEMA.is_file():
        return json.loads(SCHEMA.read_text(encoding="utf-8"))
    print(f"no schema at {SCHEMA}: metadata.json is not checked against it (set MONAI_META_SCHEMA)", file=sys.stderr)
    return None


def faults_of(bundle: Path, schema: Mapping[str, Any] | None) -> list[str]:
    """List what keeps a bundle from being given to others; the schema is not checked if None."""
    missing = [f"{name} is missing or empty" for name in FILES if not _text(bundle / name).strip()]
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*.py"))
    code = [f"{name} is code: it belongs into the package" for name in names if not name.startswith(f"{PACKAGE}/")]
    if missing:
        return missing + code
    metadata, readme = read_metadata(bundle), _text(bundle / "docs" / "README.md")
    sections = [f"docs/README.md has no section '## {title}'" for title in SECTIONS if not has_section(readme, title)]
    return code + sections + schema_faults(metadata, schema) + version_faults(metadata)


def schema_faults(metadata: Mapping[str, Any], schema: Mapping[str, Any] | None) -> list[str]:
    """List what the zoo's schema refuses."""
    if schema is None:
        return []
    errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(metadata)
    return [f"metadata.json: {'/'.join(map(str, error.path)) or 'top level'}: {error.message}" for error in errors]


def version_faults(metadata: Mapping[str, Any]) -> list[str]:
    """List versions that the tests do not run with, and packages that are missing or surplus.

    The zoo installs exactly what is stated, on a Python of its own choice. So each version is the one for the oldest
    Python, which exists for newer ones too. ``medfusion_monai`` is not among them, as it is in the bundle.
    """
    tested, needed = tested_versions(), set(requirements())
    stated = {name: metadata.get(key) for name, key in STATED.items()}
    stated |= {canonicalize_name(name): text for name, text in metadata.get("required_packages_version", {}).items()}
    faults = [
        f"metadata.json: {name} {stated[name]}, tested with {tested.get(name, 'none')}"
        for name in stated
        if stated[name] != tested.get(name)
    ]
    faults += [f"metadata.json: {name} is missing, the package needs it" for name in sorted(needed - stated.keys())]
    faults += [f"metadata.json: {name} is not needed" for name in sorted(stated.keys() - needed)]
    if metadata.get("version") not in metadata.get("changelog", {}):
        faults.append(f"metadata.json: version {metadata.get('version')} is not in the changelog")
    return faults


def tested_versions() -> dict[str, str]:
    """Read the versions of ``constraints.txt`` that hold for the oldest Python."""
    lines = (line.partition("#")[0].strip() for line in _text(ROOT / "constraints.txt").splitlines())
    pins = [Requirement(line) for line in lines if line]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(OLDEST_PYTHON)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def requirements() -> dict[str, Requirement]:
    """Read what the package needs, by name."""
    stated = tomllib.loads(_text(ROOT / "pyproject.toml"))["project"]["dependencies"]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in stated}


def refuse_without_url(large: Sequence[Path]) -> None:
    """Raise a ValueError if weights are too large for a zip and nothing says where they will be."""
    if large:
        raise ValueError(
            f"{', '.join(map(str, large))}: more than 25 MB, too large for a zip of the zoo. Say where they will be "
            "(--weights-url https://HOST/FOLDER), write folders (--folders), or leave models out (--without-weights)"
        )


def is_large(path: Path) -> bool:
    """Whether a file is too large for the zip."""
    return path.stat().st_size > LARGE_BYTES


def build_wheel(output: Path) -> Path:
    """Build the package's wheel from a copy of its files, so that nothing left in the tree's build folder gets in."""
    with tempfile.TemporaryDirectory() as scratch:
        tree, wheels = Path(scratch) / "tree", Path(scratch) / "wheels"
        shutil.copytree(ROOT / PACKAGE, tree / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if subprocess.run([*command, "--wheel-dir", wheels, tree], env=environment, check=False).returncode:
            raise ValueError("the wheel could not be built: pip says above why (it takes setuptools 77 or newer)")
        (wheel,) = wheels.iterdir()
        return Path(shutil.copy(wheel, output))


def package_in(wheel: Path) -> dict[str, bytes]:
    """Read the package's files from its wheel, by their places."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.startswith(f"{PACKAGE}/")}


def build_zip(parts: Parts, package: Mapping[str, bytes], output: Path, weights_url: str | None) -> list[Path]:
    """Write a bundle's zip, and copies of its large weights beside it, and list them.

    Args:
        parts: of the bundle.
        package: files of the package.
        output: folder of the zip.
        weights_url: address of the folder of large weights.
    """
    name = f"{parts.bundle.name}_v{read_metadata(parts.bundle)['version']}"
    large = {path: output / f"{name}_{path.name}" for path in parts.weights if is_large(path)}
    files = bundle_files(parts, package, _pip_lines(), [path.name for path in large])
    contents = {inner: content for inner, content in files.items() if content not in large}
    if large:
        contents["large_files.yml"] = large_files(large, str(weights_url)).encode()
    for path, copy in large.items():
        shutil.copyfile(path, copy)
    target = output / f"{name}.zip"
    with renamed_when_whole(target) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner in sorted(contents):
            entry = zipfile.ZipInfo(f"{parts.bundle.name}/{inner}", TIMESTAMP)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(entry, _bytes(contents[inner]))
    return [target, *large.values()]


def build_folder(parts: Parts, package: Mapping[str, bytes], output: Path, license_id: str | None = None) -> Path:
    """Write a bundle as a folder with all its weights and a card for a hub, and return it.

    Args:
        parts: of the bundle.
        package: files of the package.
        output: folder of the folder.
        license_id: the hub's identifier of the terms for the weights; None for unknown ones.
    """
    target = output / parts.bundle.name
    files = bundle_files(parts, package, _pip_lines())
    head = card_head("monai", license_id or (None if parts.weights else LICENSE_WITHOUT_WEIGHTS))
    files[CARD] = head.encode() + _bytes(files["docs/README.md"])
    for inner, content in files.items():
        (target / inner).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, target / inner)
        else:
            (target / inner).write_bytes(content)
    return target


def refuse_folder(target: Path, parts: Parts, package: Mapping[str, bytes]) -> None:
    """Raise a ValueError if a folder that is to be written is the bundle itself, or holds anything else."""
    if target.resolve() == parts.bundle:
        raise ValueError(f"{target} is the bundle itself: name another --output")
    refuse_other_files(target, {CARD, *bundle_files(parts, package, "")})


def large_files(copies: Mapping[Path, Path], weights_url: str) -> str:
    """Return ``large_files.yml``: where in the bundle each file goes, its address and its SHA-256."""
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


def _pip_lines() -> str:
    return "".join(f"{requirement}\n" for requirement in requirements().values())


def _bytes(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    raise SystemExit(main())
