"""The commands of a study: trainings, samples, audits and packages, each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hospitals.protocol import FEDERATED, SHARED, Protocol, data_of, seed_of
from hospitals.sites import CLASSES, SITES
from medfusion_monai.sites.site_file import write_site

FEDERATED_TRAINING = Path(__file__).resolve().parents[2] / "examples" / "federated" / "train.py"


class Failed(RuntimeError):
    """A command that ended with an error; its last lines are the message."""


class Commands:
    """Runs what a hospital would run, and says what it cost. What is finished is not done again.

    Args:
        bundle: folder of the bundle.
        data: folders of the data sets, by site, and of ``all``.
        output: folder of models, samples, audits and packages.
        protocol: what was chosen before.
    """

    def __init__(self, bundle: Path, data: Mapping[str, Path], output: Path, protocol: Protocol) -> None:
        self.configs = bundle.resolve() / "configs"
        self.data = {name: folder.resolve() for name, folder in data.items()}
        self.output, self.protocol = output.resolve(), protocol

    def models(self, name: str) -> Path:
        """Return the folder of the weights of a model."""
        return self.output / name / "models"

    def samples(self, name: str) -> Path:
        """Return the folder of the samples of a model, or of the data set of the shared ones."""
        return self.output / SHARED / "data" if name == SHARED else self.output / name / "samples"

    def train(self, name: str) -> dict[str, float] | None:
        """Train a model, or continue; return what this took, or None if nothing was left to do."""
        if self.is_trained(name):
            return None
        folder = self.output / name
        cost = self.run(self._federated() if name == FEDERATED else self._training(name), folder / "training.log")
        (folder / "finished").touch()
        return cost

    def is_trained(self, name: str) -> bool:
        """Return whether a model is finished."""
        return (self.output / name / "finished").is_file()

    def sample(self, name: str) -> Path:
        """Sample what the protocol says; return the folder."""
        folder, done = self.samples(name), self.output / name / "sampled"
        if done.is_file():
            return folder
        settings = {"model_dir": self.models(name), "output_dir": folder, "label": list(CLASSES)}
        settings |= {"num_samples": list(self.protocol.samples), "batch_size": 50}
        self.run(self._bundle("inference", ["inference.yaml"], settings), self.output / name / "sampling.log")
        done.touch()
        return folder

    def audit(self, name: str, data: str) -> dict[str, Any]:
        """Audit the samples of a model against the images of a site, or of all; return the section of its file."""
        folder = self.output / name / f"audit_{data}"
        if not (folder / "audit.json").is_file():
            words = ["audit", "--dataset-dir", self.data[data], "--samples", self.samples(name)]
            words += ["--model-file", self.models(name), "--output", folder, "--no-pictures"]
            words += ["--power-images", 0, "--membership-images", 400]
            self.run(self._verb(*words), self.output / name / f"audit_{data}.log")
        return json.loads((folder / "audit.json").read_text())["audit"]

    def share(self, site: str) -> Path:
        """Pack the samples of a site; raise ``Failed`` if that is refused."""
        package, licence = self.output / site / "package.zip", self.output / "licence.txt"
        licence.write_text("For this study alone.\n")
        if not package.is_file():
            words = ["share", self.samples(site), "--model-file", self.models(site), "--audit"]
            words += [self.output / site / f"audit_{site}" / "audit.json", "--licence", licence, "--output", package]
            self.run(self._verb(*words), self.output / site / "sharing.log")
        return package

    def combine(self, packages: Sequence[Path]) -> Path:
        """Make a data set of packages; return its folder."""
        folder = self.samples(SHARED)
        words = ["prepare", "shared", *packages, "--output", folder]
        self.run(self._verb(*words), self.output / SHARED / "combining.log")
        return folder

    def run(self, words: Sequence[object], log: Path) -> dict[str, float]:
        """Run a command; return its ``seconds`` and ``cpu_seconds``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        start, before = time.monotonic(), _cpu_seconds()
        environment = {"PYTHONWARNINGS": "ignore", **os.environ}
        with log.open("ab") as lines:
            done = subprocess.run([str(word) for word in words], stdout=lines, stderr=lines, env=environment)
        if done.returncode:
            raise Failed("\n".join(log.read_text(errors="replace").splitlines()[-12:]))
        return {"seconds": time.monotonic() - start, "cpu_seconds": _cpu_seconds() - before}

    def _training(self, name: str) -> list[object]:
        folder = self.output / name
        places = {"dataset_dir": self.data[data_of(name)], "model_dir": folder / "models", "output_dir": folder / "run"}
        files = ["train.yaml", *self.protocol.overlays]
        return self._bundle("training", files, {**places, **self.protocol.site_keys(), "seed": seed_of(name)})

    def _federated(self) -> list[object]:
        protocol, folder = self.protocol, self.output / FEDERATED
        self._write_sites(folder)
        words: list[object] = [sys.executable, FEDERATED_TRAINING, "--bundle", self.configs.parent]
        words += ["--overlays", *protocol.overlays, "--sites", *SITES, "--site-files", folder / "sites"]
        for key, value in protocol.keys.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        rounds = {"autoencoder-rounds": protocol.autoencoder_rounds, "rounds": protocol.diffusion_rounds}
        for option, value in {**rounds, "steps": protocol.round_steps, "output": folder}.items():
            words += [f"--{option}", value]
        return words

    def _write_sites(self, folder: Path) -> None:
        for name in SITES:
            own = folder / "at_sites" / name
            settings = {**self.protocol.keys, "seed": seed_of(name)}
            places = {"dataset_dir": self.data[name], "model_dir": own / "models", "output_dir": own / "run"}
            write_site(folder / "sites", name, self.configs.parent, self.protocol.overlays, settings, **places)

    def _bundle(self, run_id: str, files: Sequence[str], settings: Mapping[str, object]) -> list[object]:
        config = str([str(self.configs / name) for name in files])
        words: list[object] = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", config]
        for key, value in settings.items():
            words += [f"--{key}", value]
        return words

    def _verb(self, *words: object) -> list[object]:
        return [sys.executable, "-m", "medfusion_monai", *words]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
