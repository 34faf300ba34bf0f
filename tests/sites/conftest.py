"""Sites whose samples are shared."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_sites import PLANTED, audit_results, shared, write_model, write_samples

from medfusion_monai.report.write import write_report


@pytest.fixture(scope="session")
def audited(tmp_path_factory):
    """A site: folders of its model, samples and audit."""
    folder = tmp_path_factory.mktemp("hospital") / PLANTED
    model = write_model(folder / "models")
    samples = write_samples(folder / "samples", model)
    write_report(audit_results(samples, model), {}, folder / "audit", "audit")
    (folder / "licence.txt").write_text("Public domain.\n")
    return folder


@pytest.fixture(scope="session")
def two(audited, tmp_path_factory):
    """The packages of two sites; tests do not change them."""
    folder = tmp_path_factory.mktemp("packages")
    licence, audit = audited / "licence.txt", audited / "audit" / "audit.json"
    one = shared(audited / "samples", audited / "models", audit, licence, folder / "one.zip")
    model = write_model(folder / "models", scale=2.0)
    samples = write_samples(folder / "samples", model, seed=1)
    (folder / "audit.json").write_text(json.dumps(audit_results(samples, model)))
    return [one, shared(samples, model, folder / "audit.json", licence, folder / "two.zip")]


@pytest.fixture
def share(audited, tmp_path):
    """Run ``medfusion share`` on the audited site, with other files where a test names them."""

    def run(*options, samples=None, audit=None, licence=None, name="site.zip"):
        folder = audited / "samples" if samples is None else samples
        audit = audited / "audit" / "audit.json" if audit is None else audit
        licence = audited / "licence.txt" if licence is None else licence
        return shared(folder, audited / "models", audit, licence, tmp_path / name, *options)

    return run


@pytest.fixture
def pixels():
    """Return images as arrays, by name."""

    def read(folder):
        return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}

    return read
