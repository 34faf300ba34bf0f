"""A studio of a tiny model, and clients of its service."""

import pytest
from tiny_models import CLASSES, save, tiny

import medfusion_monai as mf
from medfusion_monai.studio.limits import Limits
from medfusion_monai.studio.service import Studio

SIZE = (16, 24)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The weights file of a tiny gray model."""
    return save(tiny(CLASSES, image_size=SIZE), tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="session")
def studio(weights):
    """A studio of this model with small limits."""
    studio = Studio(mf.load(weights, "cpu"), Limits(count=20, num_inference_steps=30, upload_bytes=3 * 2**20))
    yield studio
    studio.close()
