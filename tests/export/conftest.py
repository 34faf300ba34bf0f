import pytest
from tiny_models import save, tiny

from medfusion_monai.export.programs import export_programs
from medfusion_monai.model import Model


@pytest.fixture(scope="session")
def network():
    return tiny()


@pytest.fixture(scope="session")
def model_file(network, tmp_path_factory):
    return save(network, tmp_path_factory.mktemp("models") / "model.pt")


@pytest.fixture(scope="session")
def sampler(model_file):
    """The default sampler of the tiny model."""
    return Model(model_file).sampler


@pytest.fixture(scope="session")
def exported(model_file, tmp_path_factory):
    """Return the folder of the tiny model's export to a format, made once."""
    folders = {}

    def export(file_format):
        if file_format not in folders:
            folders[file_format] = tmp_path_factory.mktemp(file_format)
            export_programs(model_file, folders[file_format], file_format)
        return folders[file_format]

    return export
