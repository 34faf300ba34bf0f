"""How the package is laid out: rooms from the ground up, names that are not twice."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medfusion_monai"
ROOMS = [
    "runtime",
    "data",
    "networks",
    "baselines",
    "diffusion",
    "weights",
    "losses",
    "sampling",
    "model",
    "bundle",
    "training",
    "report",
    "evaluation",
    "editing",
    "audit",
    "export",
    "sites",
    "demo",
    "studio",
    "apps",
    "cli",
]
"""From the ground up: a room may import those before it. ``docs/architecture.md`` says what each is for."""


def modules():
    """Return the files of the package by module, e.g. ``networks.unet``."""
    files = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(part for part in name.parts if part != "__init__"): path for name, path in files.items()}


def imported(path):
    """Return the modules and names of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medfusion_monai"):
            yield from (f"{node.module}.{alias.name}".removeprefix("medfusion_monai.") for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("medfusion_monai.")]
            yield from (name.removeprefix("medfusion_monai.") for name in names)


def test_every_file_is_in_a_room():
    assert {name.partition(".")[0] for name in modules()} - {"", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_one_above_its_own(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) | {"__version__", "load"}
    files = {name: path for name, path in modules().items() if name.partition(".")[0] == room}
    upward = {
        name: [other for other in imported(path) if other.partition(".")[0] not in allowed]
        for name, path in files.items()
    }
    assert not {name: others for name, others in upward.items() if others}


def test_no_file_name_stands_twice():
    places = defaultdict(list)
    for name in modules():
        places[name.rpartition(".")[2]].append(name)
    packages = set(ROOMS) | {path.parent.name for path in PACKAGE.rglob("__init__.py")}
    twice = {stem: names for stem, names in places.items() if len(names) > 1 and stem not in packages}
    assert not twice
