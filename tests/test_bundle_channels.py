"""The ways by which a bundle reaches others: what a push to a hub uploads, and that what is downloaded samples."""

import shutil

import pytest
from monai.bundle import download, push_to_hf_hub, run
from tiny_models import contents, small_wheel, tool_named, used_bundle

from medfusion_monai.runtime.locks import leave_folders

pytest.importorskip("huggingface_hub")
from hub_server import hub_server

NAME, REPO = "medfusion_cxr", "somebody/medfusion_cxr"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """What `make bundles OPTIONS=--folders` writes of a bundle that was trained in."""
    tool, folder = tool_named("build_bundles"), tmp_path_factory.mktemp("dist")
    used = used_bundle(tmp_path_factory.mktemp("bundles"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "build_wheel", small_wheel)
        assert tool.main(["--output", str(folder), "--bundles", str(used), "--folders"]) == 0
    return folder


@pytest.fixture
def hub():
    with hub_server() as found:
        yield found


def sample(bundle, output):
    """Sample one image by the bundle runner, as its users do, and return its file."""
    try:
        run(
            run_id="inference",
            config_file=str(bundle / "configs" / "inference.yaml"),
            bundle_root=str(bundle),
            output_dir=str(output),
            num_samples=1,
            label=1,
        )
    finally:  # as the end of its process would
        leave_folders()
    (image,) = output.glob("*.png")
    return image


def test_push_uploads_the_built_folder_and_nothing_of_a_run(dist, hub, tmp_path):
    built = contents(shutil.copytree(dist / NAME, tmp_path / NAME))
    push_to_hf_hub(repo=REPO, name=NAME, bundle_dir=str(tmp_path), token="none", version="0.1.0")
    assert hub.files.keys() == built.keys()
    assert not any(b"planted" in content for content in hub.files.values())
    assert hub.tags == ["0.1.0"]


def test_upload_of_the_folder_keeps_its_card(dist, hub):
    hub.api().upload_folder(repo_id=REPO, folder_path=dist / NAME)
    assert hub.files == contents(dist / NAME)
    assert "license: unknown\nlibrary_name: monai\n" in hub.heads[0]


def test_bundle_samples_after_its_download_from_a_hub(dist, hub, tmp_path):
    hub.files, hub.tags = contents(dist / NAME), ["0.1.0"]
    download(name=NAME, source="huggingface_hub", repo=REPO, bundle_dir=str(tmp_path), progress=False)
    downloaded = {name: content for name, content in contents(tmp_path / NAME).items() if name in hub.files}
    assert downloaded == hub.files
    assert sample(tmp_path / NAME, tmp_path / "samples").stat().st_size > 0


@pytest.mark.parametrize("way", ["http", "file"])
def test_bundle_samples_after_its_download_as_a_zip(way, dist, hub, tmp_path):
    (archive,) = dist.glob("*.zip")
    hub.zips[archive.name] = archive.read_bytes()
    url = f"{hub.url}/zips/{archive.name}" if way == "http" else archive.as_uri()
    download(name=NAME, url=url, bundle_dir=str(tmp_path), progress=False)
    assert sample(tmp_path / NAME, tmp_path / "samples").stat().st_size > 0
