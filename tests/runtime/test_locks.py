import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from medfusion_monai.runtime import locks as run_lock
from medfusion_monai.runtime.locks import FolderInUseError, leave_folders, refuse_used, take_folders

HOLD = """
import sys, time
from medfusion_monai.runtime.locks import take_folders
take_folders(sys.argv[1:])
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    leave_folders()


@pytest.fixture
def other_run():
    """Starts a process that holds folders."""
    processes = []

    def start(*folders):
        command = [sys.executable, "-c", HOLD, *map(str, folders)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "taken\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("enter", [refuse_used, take_folders])
def test_second_run_is_told_who_is_there_and_since_when(enter, folder, other_run):
    other = other_run(folder)
    with pytest.raises(FolderInUseError) as caught:
        enter([folder])
    since = json.loads((folder / run_lock.LOCK).read_text())["since"]
    who = f"process {other.pid} on {socket.gethostname()}, since {since}"
    assert f"folder {folder} is in use by another run ({who})" in str(caught.value)
    assert time.strftime("%Y-") in since


def test_run_that_is_killed_leaves_no_lock(folder, other_run):
    other = other_run(folder)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (folder / run_lock.LOCK).is_file()
    refuse_used([folder])
    take_folders([folder])


def test_run_that_is_refused_one_folder_keeps_none(folder, other_run):
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    other_run(folder / "b")
    with pytest.raises(FolderInUseError):
        take_folders([folder / "a", folder / "b"])
    assert not (folder / "a" / run_lock.LOCK).exists()
    other_run(folder / "a")


def test_folder_that_was_left_has_no_trace_and_is_free(folder, other_run):
    take_folders([folder])
    leave_folders()
    assert not any(folder.iterdir())
    other_run(folder)


def test_one_process_may_take_a_folder_again_under_another_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    take_folders([folder, "."])
    take_folders([folder])
    refuse_used([folder])
    assert len(run_lock._held) == 1


def test_run_that_waited_for_a_lock_which_is_then_deleted_takes_the_new_one(folder, monkeypatch):
    take_folders([folder])
    flock = fcntl.flock

    def left_meanwhile(file, operation):
        monkeypatch.undo()
        leave_folders()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", left_meanwhile)
    lock = run_lock._lock(folder)
    with open(folder / run_lock.LOCK) as file, pytest.raises(BlockingIOError):
        flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.release()


def test_forked_worker_does_not_hold_the_lock_of_its_parent(folder, other_run):
    take_folders([folder])
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    leave_folders()
    try:
        other_run(folder)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_worker_that_outlives_its_parent_does_not_keep_the_lock(folder):
    fork = "import os\nif os.fork() == 0:\n    print('forked', flush=True)\n"
    code = HOLD.replace("time.sleep(60)", f"{fork}time.sleep(10)")
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert [parent.stdout.readline() for _ in range(2)] == ["taken\n", "forked\n"]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    take_folders([folder])


def test_worker_that_ends_does_not_leave_the_folders_of_its_parent(folder):
    fork = "import os\nif os.fork() == 0:\n    sys.exit()\nos.wait()\nprint('ended', flush=True)\n"
    code = HOLD.replace("time.sleep(60)", f"{fork}time.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert [parent.stdout.readline() for _ in range(2)] == ["taken\n", "ended\n"]
    with pytest.raises(FolderInUseError):
        take_folders([folder])
    parent.kill()
    parent.communicate()


def test_looking_makes_nothing(folder):
    refuse_used([folder, folder / "not there"])
    assert not any(folder.iterdir())


def test_other_processes_of_a_run_do_not_look(folder, other_run, monkeypatch):
    other_run(folder)
    monkeypatch.setenv("RANK", "1")
    refuse_used([folder])


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_file_system_without_locks_is_warned_of(folder, code, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        take_folders([folder])
    assert f"folder {folder} cannot be locked ({os.strerror(code)})" in caplog.text


def test_half_written_files_of_a_killed_run_are_deleted_and_others_stay(folder):
    gone = [".model.pt.12", "..diffusion_training.pt.12.12", ".cxr_0_1.png.3", ".diffusion_training.sha256.4"]
    kept = ["model.pt", ".hidden", ".vimrc.1", "manifest.1.csv", "model.pt.1"]
    for name in gone + kept:
        (folder / name).write_text("x")
    take_folders([folder])
    assert sorted(path.name for path in folder.iterdir()) == sorted([*kept, run_lock.LOCK])


def test_lock_says_no_more_than_process_host_and_time(folder):
    take_folders([folder])
    assert set(json.loads((folder / run_lock.LOCK).read_text())) == {"pid", "host", "since"}
