"""Federated training with a FLARE server and clients in processes of their own, with tiny networks on phantoms."""

import json
import re
import subprocess
import zipfile

import psutil
import pytest
import torch
import yaml
from federations import PLANTED, ROOT, SITES, command, environment, kept_rounds, prepare_sites, write_sites
from flare_system import SERVER, FlareSystem, end_tree, wait_until

from medfusion_monai import load

pytest.importorskip("nvflare", reason="make test-federated installs it")
pytestmark = pytest.mark.slow

STOPPED = "The run has stopped. The same command continues with the rounds left."


class Federation:
    """A FLARE system whose sites have images, and the trainings over it.

    Args:
        folder: for everything.
    """

    def __init__(self, folder):
        self.folder = folder
        prepare_sites(folder)
        self.files = write_sites(folder, "files")
        self.system = FlareSystem(folder / "flare", environment(MEDFUSION_SITES=str(self.files)))
        self.trainings = []

    def begin(self, output, *options, **numbers):
        """Begin a training; what it prints is in a file beside its output."""
        words = command(output, "--server", self.system.admin, *options, **numbers)
        with self.printed(output).open("ab") as log:
            training = subprocess.Popen(words, env=environment(), cwd=self.folder, stdout=log, stderr=log)
        self.trainings.append(training)
        return training

    def train(self, output, *options, **numbers):
        """Train to the end, and return the exit status."""
        return self.begin(output, *options, **numbers).wait(timeout=1500)

    def printed(self, output):
        """Return the file of what the trainings of an output have printed."""
        return output.with_suffix(".txt")

    def wait_for_round(self, training, output, rounds=1):
        """Return when the server has kept so many rounds of phase two."""
        wait_until(lambda: training.poll() is not None or kept_rounds(output) >= rounds)
        assert training.poll() is None, self.printed(output).read_text()[-3000:]

    def wait_for_words(self, training, output, words):
        """Return when a training has printed some words."""
        wait_until(lambda: training.poll() is not None or words in self.printed(output).read_text())
        assert words in self.printed(output).read_text()

    def stop(self):
        """End everything that is left."""
        for training in self.trainings:
            end_tree(training)
        self.system.stop()


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """A running server with three connected sites."""
    made = Federation(tmp_path_factory.mktemp("federation"))
    try:
        made.system.start(SERVER, *SITES)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def finished(federation):
    """A run of both phases that has ended."""
    output = federation.folder / "run"
    status = federation.train(output, "--autoencoder-rounds", "1")
    assert status == 0, federation.printed(output).read_text()[-3000:]
    return output


@pytest.fixture
def own(finished):
    """Options that take the place of phase one."""
    return ["--autoencoder", finished / "models" / "autoencoder.pt"]


def kept_by_server(federation, *outputs):
    """Return the bytes of every file of the server, its archives opened, and of some outputs."""
    folders = [federation.system.kits / SERVER, *outputs]
    contents = {}
    for path in [path for folder in folders for path in folder.rglob("*") if path.is_file()]:
        contents[str(path)] = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents |= {f"{path}:{name}": archive.read(name) for name in archive.namelist()}
    return contents | {"printed": federation.system.log(SERVER).read_bytes()}


def aggregated(federation, start=0):
    """Return how many sites were in each average, in order, from a place of the server's log on."""
    text = federation.system.log(SERVER).read_bytes()[start:].decode()
    averages = re.findall(r"Round \d+ started|Aggregated (\d)/", text)
    return [int(before) for before, after in zip(averages, [*averages[1:], ""], strict=True) if before and not after]


def test_server_and_sites_train_both_phases(finished):
    model = load(finished / "models", "cpu")
    assert model.class_names == ["no_cardiomegaly", "cardiomegaly"]
    assert model.info["training"] == {"steps": 4}
    assert model.sample(0, n=1).isfinite().all()
    assert torch.load(finished / "diffusion.pt", weights_only=True)["rounds"].item() == 2.0


def test_server_listens_to_this_machine_alone(finished, federation):
    ports = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=False).stdout
    pids = {f"pid={process.pid}," for process in federation.system.processes.values()}
    own = [line.split()[3] for line in ports.splitlines() if any(pid in line for pid in pids)]
    assert own
    assert all(address.startswith("127.0.0.1:") for address in own), own


def test_kits_of_the_example_keep_logs_at_the_sites(federation):
    for site in SITES:
        text = (federation.system.kits / site / "local" / "resources.json.default").read_text()
        assert json.loads(text)["allow_log_streaming"] is False


def test_site_that_would_send_its_log_refuses(federation, finished, own):
    place = federation.system.kits / SITES[-1] / "local" / "resources.json"
    resources = json.loads(place.with_name("resources.json.default").read_text())
    place.write_text(json.dumps({**resources, "allow_log_streaming": True}))
    federation.system.kill(SITES[-1])
    federation.system.start(SITES[-1])
    try:
        assert federation.train(federation.folder / "streaming", *own) == 1
    finally:
        place.unlink()
        federation.system.kill(SITES[-1])
        federation.system.start(SITES[-1])
    text = federation.system.log(SITES[-1]).read_text()
    assert "this site would send its error log to the server: set allow_log_streaming to false" in text


def test_site_with_other_classes_is_refused_at_the_site_with_both_values(federation, finished, own):
    place = federation.files / f"{SITES[-1]}.yaml"
    right = place.read_text()
    site = yaml.safe_load(right)
    site["settings"]["class_names"] = ["cardiomegaly", "no_cardiomegaly"]
    place.write_text(yaml.safe_dump(site))
    output = federation.folder / "wrong"
    try:
        assert federation.train(output, *own) == 1
    finally:
        place.write_text(right)
    assert STOPPED in federation.printed(output).read_text()
    names = '"no_cardiomegaly", "cardiomegaly"', '"cardiomegaly", "no_cardiomegaly"'
    told = f"class_names is [{names[0]}] for all sites and here [{names[1]}]"
    assert told in federation.system.log(SITES[-1]).read_text()
    assert told.encode() not in b"".join(kept_by_server(federation, output).values())


def test_site_that_drops_out_is_left_out_and_takes_part_again_when_it_is_back(federation, finished, own):
    output = federation.folder / "dropped"
    start = federation.system.log(SERVER).stat().st_size
    training = federation.begin(output, *own, "--min-sites", "2", rounds=12, steps=150)
    federation.wait_for_round(training, output)
    federation.system.kill(SITES[-1])
    try:
        federation.wait_for_words(training, output, f"{SITES[-1]} has dropped out")
        reached = kept_rounds(output)
        federation.wait_for_round(training, output, reached + 1)
    finally:
        federation.system.start(SITES[-1])
    assert training.wait(timeout=1500) == 0, federation.printed(output).read_text()[-3000:]
    averages = aggregated(federation, start)
    assert averages[0] == 3
    assert 2 in averages[1:], averages
    assert averages[-1] == 3, averages
    assert len(averages) == 12, "an unfinished round is repeated, not counted"
    state = torch.load(output / "diffusion.pt", weights_only=True)
    assert state["rounds"].item() == 12.0
    assert load(output / "models", "cpu").sample(0, n=1).isfinite().all()


def test_site_whose_job_alone_is_killed_takes_part_again(federation, finished, own):
    """FLARE ends a job one of whose processes has failed while its client lives."""
    output = federation.folder / "job"
    training = federation.begin(output, *own, "--min-sites", "2", rounds=3, steps=150)
    federation.wait_for_round(training, output)
    [job] = psutil.Process(federation.system.processes[SITES[-1]].pid).children()
    job.kill()
    assert training.wait(timeout=1500) == 0, federation.printed(output).read_text()[-3000:]
    assert "beginning the round again" in federation.printed(output).read_text()
    assert kept_rounds(output) == 3


def test_run_that_needs_all_sites_ends_without_one(federation, finished, own):
    output = federation.folder / "all"
    training = federation.begin(output, *own, rounds=3, steps=300)
    federation.wait_for_round(training, output)
    federation.system.kill(SITES[-1])
    try:
        assert training.wait(timeout=1500) == 1
    finally:
        federation.system.start(SITES[-1])
    text = federation.printed(output).read_text()
    assert f"{SITES[-1]} had dropped out" in text
    assert STOPPED in text


def test_same_command_joins_the_job_of_one_that_was_killed(federation, finished, own):
    output = federation.folder / "joined"
    training = federation.begin(output, *own, rounds=3, steps=150)
    federation.wait_for_round(training, output)
    end_tree(training)
    assert federation.train(output, *own, rounds=3, steps=150) == 0, federation.printed(output).read_text()[-3000:]
    assert federation.printed(output).read_text().count("Submitted job") == 1
    assert kept_rounds(output) == 3


def test_killed_server_continues_by_the_same_command(federation, finished, own):
    output = federation.folder / "killed"
    training = federation.begin(output, *own, rounds=3, steps=300)
    federation.wait_for_round(training, output)
    federation.system.kill(SERVER)
    try:
        assert training.wait(timeout=1500) == 1
        reached = kept_rounds(output)
    finally:
        federation.system.start(SERVER)
    text = federation.printed(output).read_text()
    assert "does not answer" in text
    assert STOPPED in text
    start = federation.system.log(SERVER).stat().st_size
    assert federation.train(output, *own, rounds=3, steps=300) == 0, federation.printed(output).read_text()[-3000:]
    assert len(aggregated(federation, start)) == 3 - reached, "finished rounds are not repeated"
    assert kept_rounds(output) == 3


def test_server_keeps_no_path_and_no_name_of_an_image(federation, finished):
    """After all that went wrong above, too."""
    outputs = [path for path in federation.folder.iterdir() if (path / "run.json").is_file()]
    contents = kept_by_server(federation, *outputs)
    assert len(contents) > 20
    for place, content in contents.items():
        assert PLANTED.encode() not in content, place


def test_folder_without_an_administrator_is_refused(federation):
    words = command(federation.folder / "none", "--server", ROOT, "--autoencoder-rounds", "1")
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert "is not the startup kit of an administrator" in ended.stderr
    words = command(federation.folder / "none", "--server", ROOT, "--autoencoder-rounds", "1", "--min-sites", "4")
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert "--min-sites 4 is more than the 3 of --sites" in ended.stderr
