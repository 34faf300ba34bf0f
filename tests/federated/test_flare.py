"""Federated training with NVIDIA FLARE in its simulator: three sites with tiny networks on phantoms."""

import subprocess

import pytest
import torch
from federations import PLANTED, SITES, command, environment, kept_rounds, prepare_sites, write_sites
from flare_system import end_tree, wait_until

from medfusion_monai import load

pytest.importorskip("nvflare", reason="make test-federated installs it")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """Folders of three sites."""
    folder = tmp_path_factory.mktemp("federation")
    prepare_sites(folder)
    return folder


def train(files, output, *options):
    """Run the example, and return its process when it has ended."""
    words = command(output, "--site-files", files, *options)
    return subprocess.run(words, env=environment(), cwd=files, capture_output=True, text=True, timeout=1500)


def train_until_killed_after_a_round(files, output, *options):
    """Run the example, and kill it with server and sites as soon as the server has kept a round of phase two."""
    words = command(output, "--site-files", files, *options)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, env=environment(), cwd=files, **quiet)
    try:
        wait_until(lambda: process.poll() is not None or kept_rounds(output) > 0)
        assert process.poll() is None, "it ended by itself"
    finally:
        end_tree(process)


@pytest.fixture(scope="module")
def finished(federation):
    """A run of both phases that has ended."""
    files = write_sites(federation, "files")
    output = federation / "run"
    done = train(files, output, "--autoencoder-rounds", "1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return output


def test_model_of_all_sites_can_be_sampled(finished):
    model = load(finished / "models", "cpu")
    assert model.class_names == ["no_cardiomegaly", "cardiomegaly"]
    assert model.info["training"] == {"steps": 4}
    assert model.sample(0, n=1).isfinite().all()
    assert torch.load(finished / "diffusion.pt", weights_only=True)["rounds"].item() == 2.0


def test_all_sites_have_the_same_autoencoder_and_latent_statistics(finished, federation):
    places = [federation / PLANTED / "files" / name / "models" / "autoencoder.pt" for name in SITES]
    first, *others = [torch.load(path, weights_only=True) for path in places]
    assert not torch.equal(first["latent_std"], torch.ones_like(first["latent_std"]))
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())
    model = load(finished / "models", "cpu").network.autoencoder.state_dict()
    assert all(torch.equal(value, model[name]) for name, value in first.items())


def test_server_keeps_no_path_and_no_name_of_an_image(finished):
    kept = [path for path in finished.glob("workspace/*/server/**/*") if path.is_file()]
    kept += list(finished.glob("*.pt"))
    assert len(kept) > 10
    for path in kept:
        assert PLANTED.encode() not in path.read_bytes(), path


def test_same_command_again_trains_nothing(finished, federation):
    before = (finished / "models" / "model.pt").read_bytes()
    stamp = (finished / "diffusion.pt").stat().st_mtime_ns
    assert train(federation / "files", finished, "--autoencoder-rounds", "1").returncode == 0
    assert (finished / "models" / "model.pt").read_bytes() == before
    assert (finished / "diffusion.pt").stat().st_mtime_ns == stamp


def test_site_with_other_classes_is_told_and_the_same_command_continues(finished, federation):
    wrong = write_sites(federation, "wrong", class_names=["cardiomegaly", "no_cardiomegaly"])
    own = ["--autoencoder", str(finished / "models" / "autoencoder.pt")]
    ended = train(wrong, federation / "second", *own)
    assert ended.returncode == 1
    assert "this site does not fit the federation: class_names is" in ended.stdout + ended.stderr
    assert "The run has stopped. The same command continues with the rounds left." in ended.stderr
    assert not (federation / "second" / "models" / "model.pt").exists()
    (wrong / f"{SITES[-1]}.yaml").write_text((federation / "files" / f"{SITES[-1]}.yaml").read_text())
    train_until_killed_after_a_round(wrong, federation / "second", *own)
    again = train(wrong, federation / "second", *own)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("Round 0 started") + again.stderr.count("Round 0 started") == 1
    assert "Round 1 started" not in again.stdout + again.stderr, "the finished round is not repeated"
    state = torch.load(federation / "second" / "diffusion.pt", weights_only=True)
    assert state["rounds"].item() == 2.0
    assert load(federation / "second" / "models", "cpu").sample(0, n=1).isfinite().all()
