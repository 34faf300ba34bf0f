import pytest
import torch
from gaussian_model import gaussian_model
from tiny_models import save, tiny

import medfusion_monai as mf


@pytest.fixture(scope="session")
def gaussian():
    return gaussian_model()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return mf.load(save(tiny(), tmp_path_factory.mktemp("edit") / "model.pt"), device="cpu")


@pytest.fixture
def images():
    return torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(0))
