import pytest
from tiny_models import info_of, tiny

from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import save_weights


@pytest.fixture
def save_model():
    """Write weights of a tiny chest model that say of themselves what is given."""

    def save(path, **parts):
        network = tiny()
        info = info_of(network)
        save_weights(network, path)
        write_model_info(path, {**info, **{name: {**info[name], **changed} for name, changed in parts.items()}})
        return path

    return save
