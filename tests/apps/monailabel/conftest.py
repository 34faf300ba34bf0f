import sys
from collections import namedtuple

import pytest
import torch
from label_studies import BUNDLES, SIZE, environment, write_studies
from local_servers import LOCAL, free_port, running
from tiny_models import save, tiny

import medfusion_monai as mf

Served = namedtuple("Served", "client model studies port folder")


@pytest.fixture(scope="module", params=BUNDLES)
def served(request, tmp_path_factory):
    """A server of our app with a tiny model of a bundle's form, and studies of every format."""
    from monailabel.client import MONAILabelClient

    class_names, channels = BUNDLES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = save(tiny(class_names, channels, SIZE), folder / "model.pt")
    (folder / "studies").mkdir()
    write_studies(folder / "studies", channels)
    port = free_port()
    command = [sys.executable, "-m", "medfusion_monai", "label", "--model", str(model), "--temperature", "3"]
    command += ["--studies", str(folder / "studies"), "--port", str(port)]
    with running(command, f"http://{LOCAL}:{port}/info/", folder / "server.log", 1200, env=environment()):
        torch.set_num_threads(1)
        client = MONAILabelClient(f"http://{LOCAL}:{port}", str(folder), "tester")
        yield Served(client, mf.load(model, device="cpu"), folder / "studies", port, folder)
