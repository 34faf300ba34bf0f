import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from medfusion_monai.apps.monailabel.private_files import leaving_nothing, private_temporary_files, without_folders


def tasks_removing(*paths):
    return SimpleNamespace(tasks=[SimpleNamespace(func=os.unlink, args=(path,), kwargs={}) for path in paths])


def test_temporary_files_are_private_here_and_in_other_processes_and_back_to_their_place_afterwards(tmp_path):
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with private_temporary_files(tmp_path / "files"):
        assert stat.S_IMODE((tmp_path / "files").stat().st_mode) == 0o700
        assert Path(tempfile.mkdtemp()).parent == tmp_path / "files"
        program = "import tempfile; print(tempfile.gettempdir())"
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert other.stdout.strip() == str(tmp_path / "files")
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before


@pytest.mark.parametrize("is_refused", [True, False])
def test_upload_of_a_refused_request_is_removed_at_once_and_that_of_others_after_the_answer(is_refused, tmp_path):
    upload = tmp_path / "upload.png"

    def run(background_tasks, params="{}"):
        upload.touch()
        if is_refused:
            raise ValueError("no image")
        return params

    if is_refused:
        with pytest.raises(ValueError, match="no image"):
            leaving_nothing(run)(tasks_removing(upload))
    else:
        assert leaving_nothing(run)(tasks_removing(upload), "{}") == "{}"
    assert upload.exists() != is_refused


@pytest.mark.parametrize("params", ["5", "[1]", "null", '"text"'])
def test_params_that_are_no_object_are_refused_before_a_file_is_written(params):
    with pytest.raises(ValueError, match="params must be a JSON object"):
        leaving_nothing(lambda background_tasks, params="{}": pytest.fail("ran"))(tasks_removing(), params=params)


def test_clients_learn_names_of_files_alone():
    text = "/data/studies/notes.png: no image; /tmp/app/files/a.dcm: neither; see /datastore/"
    assert without_folders(text, ["/data/studies", "/tmp/app/"]) == (
        "notes.png: no image; a.dcm: neither; see /datastore/"
    )
