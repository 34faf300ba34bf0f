"""A FLARE server and its clients as processes of their own on 127.0.0.1, with startup kits as hospitals get them."""

import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[2]
SERVER = "localhost"


class FlareSystem:
    """Provisions kits from the project of the example, and starts and kills what they are for.

    Args:
        folder: for kits and logs.
        environment: of all processes.
    """

    def __init__(self, folder, environment):
        self.folder, self.environment, self.processes = folder, environment, {}
        project = yaml.safe_load((ROOT / "examples" / "federated" / "project.yml").read_text())
        project["participants"][0]["fed_learn_port"] = free_port()
        folder.mkdir()
        (folder / "project.yml").write_text(yaml.safe_dump(project))
        command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", str(folder / "project.yml")]
        command += ["-w", str(folder / "kits")]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120, **quiet)
        self.kits = folder / "kits" / project["name"] / "prod_00"
        self.admin = self.kits / project["participants"][-1]["name"]
        local = self.kits / SERVER / "local"
        resources = (local / "resources.json.default").read_text()  # jobs would be in /tmp for all servers of a machine
        (local / "resources.json").write_text(resources.replace("/tmp/nvflare", str(self.kits / SERVER / "storage")))

    def start(self, *names, **variables):
        """Start the server or sites, as the kits' own scripts do."""
        for name in names:
            part = "server" if name == SERVER else "client"
            words = ["-u", "-m", f"nvflare.private.fed.app.{part}.{part}_train", "-m", str(self.kits / name)]
            words += ["-s", f"fed_{part}.json", "--set", "secure_train=true", "org=hospitals", "config_folder=config"]
            words += [] if name == SERVER else [f"uid={name}"]
            with self.log(name).open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, *words],
                    cwd=self.kits / name,
                    env=self.environment | variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def log(self, name):
        """Return the file of all that a part has printed, with its jobs."""
        return self.folder / f"{name}.log"

    def kill(self, name):
        """Kill a part with the processes of its jobs, as a machine that loses its power."""
        end_tree(self.processes.pop(name))

    def stop(self):
        """Kill everything, also what has outlived its parent."""
        for name in list(self.processes):
            self.kill(name)
        end_all([each for each in psutil.process_iter() if str(self.kits) in " ".join(command_of(each))])


def end_tree(process):
    """Kill a process and its descendants; FLARE starts those in sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        end_all([own, *own.children(recursive=True)])
    process.wait(timeout=60)


def end_all(processes):
    """Kill processes, and wait until they have ended."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(processes, timeout=60)


def command_of(process):
    """Return the command line of a process; empty for one that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []


def free_port():
    """Return a port of 127.0.0.1 that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, seconds=1500):
    """Return as soon as a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
