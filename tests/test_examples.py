"""The notebooks run from top to bottom."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def test_notebooks_are_stored_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), path.name


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_it_says(path, execute):
    notebook = execute(path)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "['no_cardiomegaly', 'cardiomegaly'] [48, 48]" in text
    assert "MS-SSIM of reconstructions" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cell_that_samples_an_unknown_class_says_which_there_are(path, execute):
    nbclient = pytest.importorskip("nbclient")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="0 no_cardiomegaly, 1 cardiomegaly"):
        execute(path, cells=2, then="model.sample('cardiomegally')")


@pytest.fixture
def execute(small_model, monkeypatch):
    """Executes a notebook on the small model, all of it or its first cells and then another, and returns it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("MEDFUSION_MODEL", str(small_model))

    def run(path, cells=None, then=None):
        notebook = nbformat.read(path, as_version=4)
        added = [] if then is None else [nbformat.v4.new_code_cell(then)]
        notebook.cells = [*notebook.cells[:cells], *added]
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(path.parent))
        return notebook

    return run


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """Weights of a training of a few steps at 48 pixels, the smallest that MS-SSIM takes."""
    from monai.bundle import run

    from medfusion_monai.demo.phantoms.families import prepare_phantoms
    from medfusion_monai.runtime.locks import leave_folders

    folder = tmp_path_factory.mktemp("small")
    prepare_phantoms(folder / "data", num_images=20, size=48)
    configs = Path(__file__).parents[1] / "bundles" / "medfusion_cxr" / "configs"
    tiny = {"image_size": [48, 48], "device": "cpu", "trial_step": False, "autoencoder_steps": 2, "diffusion_steps": 2}
    places = {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}
    files = [str(configs / "train.yaml"), str(configs / "demo.yaml")]
    run("training", config_file=files, dataset_dir=str(folder / "data"), num_inference_steps=3, **tiny, **places)
    leave_folders()
    return folder / "models" / "model.pt"
