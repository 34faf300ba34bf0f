"""The demo's commands, shrunk, under faults; a table of what became of each."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from states import assert_same

from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.demo.phantoms.network import train_phantom_features

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles" / "medfusion_cxr" / "configs"
PATIENCE = 600.0
FILES = {"training": "train", "train_autoencoder": "train", "train_diffusion": "train"}
FILES |= {"inference": "inference", "evaluating": "evaluate"}
NETWORKS = {
    "image_size": [48, 48],  # the smallest that MS-SSIM takes
    "autoencoder_channels": [8, 8, 16, 16],
    "unet_channels": [16, 16, 16, 32],
    "unet_embedding_channels": 32,
    "unet_norm_groups": 8,
    "device": "$torch.device('cpu')",
}
TRAINING = NETWORKS | {
    "autoencoder_batch_size": 4,
    "diffusion_batch_size": 4,
    "autoencoder_steps": 6,
    "autoencoder_val_interval": 2,
    "autoencoder_lr_warmup": 3,
    "diffusion_steps": 6,
    "diffusion_val_interval": 2,
    "diffusion_lr_warmup": 3,
    "num_inference_steps": 3,
    "checkpoint_interval": 1,
}
SAMPLING = {"device": NETWORKS["device"], "num_inference_steps": 3, "num_samples": 6, "batch_size": 2}
MEASURING = {"device": NETWORKS["device"], "replicates": 3, "classifier_seeds": [], "neighbours": 3}


def pytest_addoption(parser):
    parser.addoption("--faults-table", help="where to write the table of faults (runs/faults.md)")


class Table:
    """What became of every try, by fault."""

    def __init__(self):
        self.rows = {}

    @contextmanager
    def attempt(self, fault):
        """Count a try; it is lost if an assertion fails within. The block fills in what the user ``sees``."""
        tries, notes = self.rows.setdefault(fault, ([], []))
        attempt = {"sees": ""}
        tries.append(False)
        index = len(tries) - 1
        yield attempt
        tries[index] = True
        if attempt["sees"] and attempt["sees"] not in notes:
            notes.append(attempt["sees"])

    @staticmethod
    def sentence(line, *folders):
        """What the user reads last, without its beginning and the folders of this try."""
        text = line.removeprefix("medfusion: error: ")
        for folder in folders:
            text = text.replace(f"{folder}/", "").replace(str(folder), "FOLDER")
        return f"`{text}`"

    def lines(self):
        yield "| fault | tries | survived | lost | what the user sees |"
        yield "|---|---|---|---|---|"
        for fault, (tries, notes) in self.rows.items():
            lost = "nothing" if all(tries) else f"see {tries.count(False)} failed"
            sees = "; ".join(notes).replace("|", "\\|")
            yield f"| {fault} | {len(tries)} | {sum(tries)} | {lost} | {sees} |"
        tries = [survived for tries, _ in self.rows.values() for survived in tries]
        yield f"| **all** | **{len(tries)}** | **{sum(tries)}** | | |"


@pytest.fixture(scope="session")
def table(request):
    table = Table()
    yield table
    target = Path(request.config.getoption("faults_table", default=None) or ROOT / "runs" / "faults.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in table.lines())
    target.write_text(text)


class Process:
    """A command that was started."""

    def __init__(self, ask, pid, log):
        self.ask, self.pid, self.log, self.code = ask, pid, Path(log), None

    def poll(self):
        if self.code is None:
            self.code = self.ask({"poll": self.pid})
        return self.code

    def wait(self):
        """Give the exit code, or the negative number of the signal that ended it."""
        self._until(lambda: self.poll() is not None)
        return self.code

    def cpu(self):
        """Seconds of CPU so far, which other programs on the machine do not change."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("inf")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def send_at(self, number, seconds):
        """Send a signal after some seconds of CPU, and give the exit code."""
        self._until(lambda: self.cpu() >= seconds or self.poll() is not None, pause=0.004)
        if self.poll() is None:
            os.kill(self.pid, number)
        return self.wait()

    def until_stopped(self):
        """Wait until it has stopped itself."""
        self._until(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def children(self):
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()

    def text(self):
        return self.log.read_text(errors="replace")

    def last_words(self):
        """Give the message at the end, on one line; a progress bar may come after it."""
        text = self.text()
        start = max(0, text.rfind("medfusion: error: "))
        return " ".join(line.strip() for line in text[start:].splitlines() if line.strip() and "%|" not in line)

    def kill(self):
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()

    def _until(self, condition, pause=0.02):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waiting for ever: {self.text()[-2000:]}"
            time.sleep(pause)


class Commands:
    """Starts the three commands, with the same settings, in folders of a try's own."""

    def __init__(self, zygote, data, features, logs):
        self.zygote, self.data, self.features, self.logs = zygote, data, features, logs
        self.started = []

    def ask(self, request):
        self.zygote.stdin.write(json.dumps(request) + "\n")
        self.zygote.stdin.flush()
        return json.loads(self.zygote.stdout.readline())

    def start(self, run_id, folder, plants=(), **overrides):
        folder = Path(folder)
        places = {"model_dir": folder / "models"}
        if run_id == "inference":
            settings = SAMPLING | {"output_dir": folder / "samples"}
        elif run_id == "evaluating":
            settings = MEASURING | {"output_dir": folder / "report", "samples_dir": folder / "samples"}
            settings |= {"dataset_dir": self.data, "features": f"phantoms:{self.features}"}
        else:
            settings = TRAINING | {"output_dir": folder / "runs", "dataset_dir": self.data}
        number = len(self.started)
        file = self.logs / f"{number}.json"
        file.write_text(json.dumps({**places, **settings, **overrides}, default=str))
        names = (FILES[run_id], "demo") if FILES[run_id] == "train" else (FILES[run_id],)
        configs = [str(CONFIGS / f"{name}.yaml") for name in names]
        argv = ["run", run_id, "--config_file", str(configs), "--args_file", str(file)]
        log = self.logs / f"{number}_{run_id}.log"
        request = {"argv": argv, "log": str(log), "cwd": str(self.logs), "plants": list(plants)}
        self.started.append(Process(self.ask, self.ask(request), log))
        return self.started[-1]

    def run(self, run_id, folder, plants=(), code=0, **overrides):
        """Run to the end, which has to come with this exit code, and give the process."""
        process = self.start(run_id, folder, plants, **overrides)
        assert process.wait() == code, process.text()[-3000:]
        return process

    def refused(self, run_id, folder, plants=(), **overrides):
        """Run to the end, which has to be an error, and give what the user reads last."""
        line = self.run(run_id, folder, plants, code=1, **overrides).last_words()
        assert line.startswith("medfusion: error: "), line
        return line


@pytest.fixture(scope="session")
def features_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.pt"
    train_phantom_features("cxr", path, num_images=32, steps=4)
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare_phantoms(folder, num_images=40, size=48, seed=0)
    return folder


@pytest.fixture(scope="session")
def zygote():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def commands(zygote, data_dir, features_file, tmp_path_factory):
    commands = Commands(zygote, data_dir, features_file, tmp_path_factory.mktemp("logs"))
    yield commands
    for process in commands.started:
        process.kill()


@pytest.fixture(scope="session")
def whole(zygote, data_dir, features_file, tmp_path_factory):
    """A folder of the three commands without a fault, and the seconds of CPU and the renamed files of each."""
    folder = tmp_path_factory.mktemp("whole")
    commands = Commands(zygote, data_dir, features_file, tmp_path_factory.mktemp("logs"))
    seconds, renamed = {}, {}
    for run_id in ("training", "inference", "evaluating"):
        names = folder / f"renamed_{run_id}"
        process = commands.start(run_id, folder, [("count_renames", {"report": str(names)})])
        while process.poll() is None:
            seconds[run_id] = process.cpu()
            time.sleep(0.01)
        assert process.code == 0, process.text()[-3000:]
        renamed[run_id] = len(names.read_text().splitlines())
    return folder, seconds, renamed


def moments(count, seed=0):
    """Shares of a run, one drawn at random from each of ``count`` equal parts."""
    draw = random.Random(seed)
    return [(index + draw.random()) / count for index in range(count)]


WEIGHTS = ("models/autoencoder.pt", "models/model.pt", "runs/checkpoints/autoencoder_best.pt")
CHECKPOINTS = tuple(f"runs/checkpoints/{phase}_training.pt" for phase in ("autoencoder", "diffusion"))


def same_training(folder, expected):
    """Compare weights, averaged weights, optimizers, best values and positions; look for leftovers."""
    for name in (*WEIGHTS, *CHECKPOINTS):
        states = [torch.load(place / name, weights_only=True) for place in (folder, expected)]
        assert_same(*states, where=name)
    assert (folder / "models/model.json").read_text() == (expected / "models/model.json").read_text()
    no_leftovers(folder, ["models", "runs", "runs/checkpoints", "runs/pictures"])


def same_files(folder, expected):
    """Compare all files of two folders byte by byte."""
    contents = [{path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, expected)]
    assert contents[0].keys() == contents[1].keys()
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == []


def same_report(folder, expected):
    """Compare the figures of two reports."""
    reports = [json.loads((place / "report/report.json").read_text()) for place in (folder, expected)]
    for report in reports:
        report.pop("repeat", None)  # versions and the command
    assert_same(*reports, where="report")
    assert (folder / "report/report.html").stat().st_size > 1000
    no_leftovers(folder, ["report"])


def no_leftovers(folder, names):
    """Nothing half-written and no lock is left."""
    for name in names:
        hidden = [path.name for path in (folder / name).glob(".*")]
        assert hidden == [], f"{name}: {hidden}"


class Compare:
    training, files, report = staticmethod(same_training), staticmethod(same_files), staticmethod(same_report)
    moments = staticmethod(moments)


@pytest.fixture(scope="session")
def compare():
    return Compare


@pytest.fixture
def prepared(whole, tmp_path):
    """Makes a folder as it is before a command: with what the commands before it have written."""
    source = whole[0]

    def make(*names, into=tmp_path):
        for name in names:
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (source / name).is_dir() else shutil.copy2)(source / name, target)
        return into

    return make


PHASE_ONE = (
    "models/autoencoder.pt",
    "runs/checkpoints/autoencoder_best.pt",
    "runs/checkpoints/autoencoder_training.pt",
    "runs/checkpoints/autoencoder_training.sha256",
)


@pytest.fixture
def before_phase_two(prepared):
    """Makes a folder in which phase one is finished."""
    return lambda **where: prepared(*PHASE_ONE, **where)


@pytest.fixture
def disk():
    """Mounts small disks of their own; needs to be root, perhaps by ``unshare -rm``."""
    mounted = []

    def mount(folder, mib):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={int(mib * 1024)}k", "tmpfs", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"no disk can be mounted ({result.stderr.strip()}): run as root, or after unshare -rm")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)
