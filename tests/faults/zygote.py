"""Starts commands of the bundle runner as processes that have imported the libraries already.

Importing them takes longer than the shrunk runs. A process that starts here runs ``python -m monai.bundle`` from its
first line on, in a session of its own, with faults planted by ``plants``. Requests come as lines of JSON.
"""

import json
import os
import runpy
import signal
import sys

import monai.bundle  # noqa: F401
import plants
import torch
import torch.utils.tensorboard

import medfusion_monai.data.reading.transforms
import medfusion_monai.evaluation.evaluate_bundle
import medfusion_monai.evaluation.metrics.features
import medfusion_monai.training
import medfusion_monai.training.handlers
import medfusion_monai.training.preflight  # noqa: F401


def serve():
    """Answer requests; returns in the forked processes alone, with what they are to do."""
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer), flush=True)
    return None


def become(request):
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(file, number)
    os.chdir(request["cwd"])
    torch.set_num_threads(1)
    sys.argv = ["monai.bundle", *request["argv"]]
    for name, arguments in request["plants"]:
        getattr(plants, name)(**arguments)
    signal.set_wakeup_fd(-1)


request = serve()
if request is not None:
    become(request)
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
