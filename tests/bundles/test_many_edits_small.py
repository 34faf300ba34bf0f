"""``edit.yaml`` over 10,000 files of which one is broken: memory, time until it is reported, and resuming.

The code is that of any run; the networks are so small that their calls cost next to nothing.
"""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import ROOT, save, tiny

COUNT, FEW = 3000, 500
BROKEN = f"scan_{COUNT * 7 // 9:05}.png"
GROWTH = 3 * 1024
"""Bytes per file by which the memory may grow: the lines of the manifest. An image as the networks see it has more."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save(tiny(image_size=(16, 16)), tmp_path_factory.mktemp("many") / "model.pt").parent


def folder_of(place, count):
    """Fill a folder with images, links to ten files."""
    place.mkdir()
    originals = place.parent / f"{place.name}_originals"
    originals.mkdir()
    generator = np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(generator.integers(0, 256, (16, 16), np.uint8)).save(originals / f"{index}.png")
    for index in range(count):
        os.link(originals / f"{index % 10}.png", place / f"scan_{index:05}.png")
    return place


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    place = folder_of(tmp_path_factory.mktemp("scans") / "scans", COUNT)
    content = (place / BROKEN).read_bytes()
    (place / BROKEN).unlink()
    (place / BROKEN).write_bytes(content[:-30])
    return place


class Run:
    """A run of edits in a process of its own."""

    def __init__(self, models, images, output, **overrides):
        settings = {"images": images, "edit": "reconstruct", "output_dir": output, "model_dir": models} | overrides
        config = ROOT / "bundles" / "medfusion_cxr" / "configs" / "edit.yaml"
        command = [sys.executable, "-m", "monai.bundle", "run", "editing", "--config_file", str(config)]
        command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        self.log = Path(f"{output}.log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, "--device", "$torch.device('cpu')", "--batch_size", "64"], stdout=log, stderr=log
            )

    def wait(self):
        """Return the exit status and the largest memory that the process had, in bytes."""
        _, status, used = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return self.process.returncode, used.ru_maxrss * 1024


def rows_of(place):
    with open(place / "manifest.csv", newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def few(models, tmp_path_factory):
    """Largest memory of a run over few images."""
    place = tmp_path_factory.mktemp("few")
    status, memory = Run(models, folder_of(place / "scans", FEW), place / "edits").wait()
    assert status == 0
    return memory


def test_broken_file_is_named_before_the_first_image_is_edited(models, scans, tmp_path):
    run = Run(models, scans, tmp_path / "edits")
    status, _ = run.wait()
    error = run.log.read_text()
    assert status != 0
    assert f"1 of {COUNT} images cannot be read" in error
    assert BROKEN in error
    assert not list((tmp_path / "edits").glob("*.png"))


def test_killed_run_goes_on_where_it_was_without_the_broken_file_and_in_the_memory_of_a_small_one(
    models, scans, few, tmp_path
):
    output = tmp_path / "edits"
    run = Run(models, scans, output, unreadable="skip")
    while run.process.poll() is None and len(list(output.glob("*.png"))) < COUNT // 3:
        time.sleep(0.5)
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    written = {path: path.stat().st_mtime_ns for path in output.glob("*.png")}
    assert COUNT // 3 <= len(written) < COUNT - 1
    status, memory = Run(models, scans, output, unreadable="skip").wait()
    assert status == 0
    names = [f"scan_{index:05}.png" for index in range(COUNT)]
    assert rows_of(output) == [name for name in names if name != BROKEN]
    assert "scan" in (output / "unreadable.csv").read_text()
    whole = [path for path, changed in written.items() if path.stat().st_mtime_ns == changed]
    assert len(whole) >= len(written) - 2 * 64, "all but the batches whose lines were not yet listed"
    print(f"memory: {few / 2**20:.0f} MiB for {FEW} files, {memory / 2**20:.0f} MiB for {COUNT}")
    assert memory - few < GROWTH * (COUNT - FEW)
    shutil.rmtree(output)
