"""The batch script for SLURM: what it starts on each node, and after which exit codes it queues the job again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import TINY_NETWORKS

from medfusion_monai.demo.phantoms.families import prepare_phantoms

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "slurm" / "torchrun.sbatch"
CONFIGS = ROOT / "bundles" / "medfusion_cxr" / "configs"
COMMAND = ["-m", "monai.bundle", "run", "training"]
STEPS = {
    "autoencoder_steps": 100_000,
    "autoencoder_val_interval": 10,
    "diffusion_steps": 4,
    "diffusion_val_interval": 2,
}

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
echo $$ >"$SEEN/task"
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf 'localhost\\nelsewhere\\n'; else echo "$@" >>"$SEEN/scontrol"; fi
"""
TORCHRUN = """#!/bin/bash
echo "$@" >"$SEEN/torchrun"
[[ -z $CODE ]] && exec sleep 60
[[ $CODE == 0 ]] && exit 0
echo '{"message": {"message": "it ended", "errorCode": '"$CODE"'}}' >"$TORCHELASTIC_ERROR_FILE"
exit 1
"""


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path):
    """Environment of a job on a cluster that consists of this machine; ``SEEN`` is a folder of what was asked of it."""
    programs, seen = tmp_path / "programs", tmp_path / "seen"
    programs.mkdir()
    seen.mkdir()
    write_program(programs / "srun", SRUN)
    write_program(programs / "scontrol", SCONTROL)
    write_program(programs / "torchrun", TORCHRUN)
    own = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SEEN": str(seen)}
    own |= {"SLURM_GPUS_ON_NODE": "4", "PYTHON": str(programs / "torchrun"), "TMPDIR": str(tmp_path)}
    return {**os.environ, **own, "PATH": f"{programs}:{os.environ['PATH']}", "CODE": ""}


def requeued(environment):
    file = Path(environment["SEEN"]) / "scontrol"
    return file.read_text().splitlines() if file.exists() else []


def test_script_is_free_of_errors_of_syntax():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


@pytest.mark.parametrize("code", [0, 1, 74, 75, 137, 750])
def test_only_exit_code_75_queues_the_job_again(code, cluster):
    result = subprocess.run(["bash", SCRIPT, *COMMAND], env=cluster | {"CODE": str(code)}, check=False)
    assert result.returncode == (code if code in (0, 75) else 1)
    assert requeued(cluster) == ([f"requeue {cluster['SLURM_JOB_ID']}"] if code == 75 else [])
    assert not list(Path(cluster["TMPDIR"]).glob("*.error"))


def test_earlier_exit_code_does_not_queue_the_job_again(cluster):
    left = Path(cluster["TMPDIR"]) / f"torchrun.{cluster['SLURM_JOB_ID']}.error"
    left.write_text('{"message": {"errorCode": 75}}')
    write_program(Path(cluster["PYTHON"]), "#!/bin/bash\nexit 1\n")
    assert subprocess.run(["bash", SCRIPT, *COMMAND], env=cluster, check=False).returncode == 1
    assert requeued(cluster) == []


def test_nodes_meet_on_the_first_of_them(cluster):
    words = [*COMMAND, "--dataset_dir", "/data/x y"]
    subprocess.run(["bash", SCRIPT, *words], env=cluster | {"CODE": "0"}, check=True)
    started = (Path(cluster["SEEN"]) / "torchrun").read_text()
    port = 20000 + int(cluster["SLURM_JOB_ID"]) % 10000
    assert f"--nnodes=2 --nproc_per_node=4 --rdzv_id={cluster['SLURM_JOB_ID']}.0 " in started
    assert f"--rdzv_backend=c10d --rdzv_endpoint=localhost:{port} {' '.join(words)}\n" in started


def wait_for(condition, process, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_two_processes_that_are_warned_are_queued_again_and_resume(number, again, cluster, tmp_path):
    """With torchrun itself; SIGTERM stands for a cancelled job, which must save as well but not come back."""
    prepare_phantoms(tmp_path / "data", num_images=40, size=32, seed=0)
    folders = {
        "dataset_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path),
        "model_dir": str(tmp_path / "models"),
    }
    settings = TINY_NETWORKS | STEPS | folders | {"autoencoder_batch_size": 4, "diffusion_batch_size": 4}
    settings |= {"trial_step": False, "num_inference_steps": 3, "precision": "float32"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    files = str([str(CONFIGS / "train.yaml"), str(CONFIGS / "demo.yaml")])
    command = ["bash", SCRIPT, *COMMAND, "--config_file", files, "--args_file", tmp_path / "settings.json"]
    own = {"PYTHON": sys.executable, "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen(command, env=cluster | own, stdout=file, stderr=file)
        wait_for(lambda: b"phase one" in log.read_bytes(), process, 300)
        os.kill(int((Path(cluster["SEEN"]) / "task").read_text()), number)
        code = process.wait(300)
    text = log.read_text()
    assert "stopped by SIGTERM after step" in text, text[-3000:]
    assert (code == 75) == again
    assert requeued(cluster) == ([f"requeue {cluster['SLURM_JOB_ID']}"] if again else [])
    done = torch.load(tmp_path / "checkpoints" / "autoencoder_training.pt", weights_only=True)["iteration"]
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"autoencoder_steps": (done // 10 + 2) * 10}))
    second = subprocess.run(command, env=cluster | own, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr[-3000:]
    assert (tmp_path / "models" / "model.pt").is_file()
