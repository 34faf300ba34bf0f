import os
import pickle
import subprocess
import sys
import types
import zipfile
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.published import load_published


@pytest.fixture
def gray(published_state):
    return published_state("autoencoder_gray_4ch")


class RunsCommand:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


class MakesFolder(RunsCommand):
    def __reduce__(self):
        return os.makedirs, (str(self.mark), 0o700, True)


class RunsProgram(RunsCommand):
    def __reduce__(self):
        return subprocess.call, (["touch", str(self.mark)],)


class RunsPython(RunsCommand):
    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def lightning_file(path, state_dict, **extra):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "1.8.0",
        "state_dict": state_dict,
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_path": "x.ckpt", "best": torch.ones(())}},
    }
    torch.save({**content, **extra}, path)
    return path


def assert_same_weights(actual, expected):
    pairs = zip(actual.state_dict().items(), expected.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_weights_load_from_a_lightning_file(tmp_path, gray):
    network = load_published(lightning_file(tmp_path / "vae.ckpt", gray))
    assert isinstance(network, Autoencoder)
    assert_same_weights(network, load_published(gray))
    assert_same_weights(network, load_published(str(tmp_path / "vae.ckpt")))


def test_weights_load_from_a_safetensors_file(tmp_path, gray):
    save_file(gray, tmp_path / "vae.safetensors")
    assert_same_weights(load_published(tmp_path / "vae.safetensors"), load_published(gray))


def test_weights_stored_as_parameters_or_as_views_of_one_storage_load(tmp_path, gray):
    flat = torch.cat([value.reshape(-1) for value in gray.values()])
    sizes = [value.numel() for value in gray.values()]
    views = {k: part.view(v.shape) for (k, v), part in zip(gray.items(), flat.split(sizes), strict=True)}
    views["outc.conv.bias"] = torch.nn.Parameter(gray["outc.conv.bias"].clone())
    assert_same_weights(load_published(lightning_file(tmp_path / "a.ckpt", views)), load_published(gray))


def test_half_precision_weights_load_as_float32(tmp_path, gray):
    half = {name: value.half() for name, value in gray.items()}
    network = load_published(lightning_file(tmp_path / "a.ckpt", half))
    assert torch.equal(network.conv_out.weight, half["outc.conv.weight"].float())


@pytest.mark.parametrize("kind", [RunsProgram, RunsPython])
def test_code_that_is_pickled_in_a_file_is_not_run(kind, tmp_path, gray):
    mark = tmp_path / "ran"
    path = lightning_file(tmp_path / "evil.ckpt", gray, hyper_parameters={"lr": kind(mark)}, first=kind(mark))
    assert_same_weights(load_published(path), load_published(gray))
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the file would have run it
    assert mark.exists()


@pytest.mark.parametrize(("kind", "named"), [(RunsCommand, "(posix|nt).system"), (MakesFolder, "os.makedirs")])
def test_file_with_functions_of_the_operating_system_is_refused_unrun(kind, named, tmp_path, gray):
    mark = tmp_path / "ran"
    path = lightning_file(tmp_path / "evil.ckpt", gray, hyper_parameters={"lr": kind(mark)})
    with pytest.raises(WeightsError, match=rf"evil\.ckpt cannot be read without running code .* it names {named}"):
        load_published(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the file would have run it
    assert mark.exists()


@pytest.fixture
def gone(monkeypatch):
    """A module of classes that is there while a file is written and not while it is read."""
    module = types.ModuleType("published_code")
    for name, base in {"Options": dict, "Items": list, "Plain": object}.items():
        setattr(module, name, type(name, (base,), {"__module__": "published_code"}))

    def write(path, state_dict, hyper_parameters):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "published_code", module)
            return lightning_file(path, state_dict, hyper_parameters=hyper_parameters)

    return SimpleNamespace(**vars(module), write=write)


def test_objects_of_classes_that_are_gone_are_passed_over(tmp_path, gray, gone):
    plain = gone.Plain()
    plain.extra = gone.Plain()
    path = gone.write(tmp_path / "a.ckpt", gray, {"plain": plain, "class": gone.Options, "set": {1, 2}})
    assert "published_code" not in sys.modules
    assert_same_weights(load_published(path), load_published(gray))


@pytest.mark.parametrize("kind", ["Options", "Items"])
def test_dictionaries_and_lists_of_classes_of_their_own_are_refused_by_name(kind, tmp_path, gray, gone):
    value = gone.Options(a=1) if kind == "Options" else gone.Items([1, 2])
    path = gone.write(tmp_path / "a.ckpt", gray, {"value": value})
    with pytest.raises(WeightsError, match=rf"a\.ckpt cannot be read .* it names published_code\.{kind}\. If you"):
        load_published(path)


def test_placeholders_are_for_one_file_alone(tmp_path, gray):
    before = set(torch.serialization.get_safe_globals())
    load_published(lightning_file(tmp_path / "a.ckpt", gray, hyper_parameters={"optimizer": torch.optim.Adam}))
    assert set(torch.serialization.get_safe_globals()) == before


def test_pickle_cannot_change_the_reader(tmp_path, gray):
    attributes = b"N}(X\x04\x00\x00\x00readK\x01X\x08\x00\x00\x00__call__K\x01u\x86b0"
    names = (b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter", b"os\nsystem")
    attack = b"\x80\x02" + b"".join(b"c" + name + b"\n" + attributes for name in names) + b"}."
    with zipfile.ZipFile(tmp_path / "evil.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", attack)
    with pytest.raises(WeightsError, match="cannot be read without running code"):
        load_published(tmp_path / "evil.ckpt")
    assert_same_weights(load_published(lightning_file(tmp_path / "good.ckpt", gray)), load_published(gray))


def test_weight_that_is_not_a_tensor_is_named(tmp_path, gray):
    path = lightning_file(tmp_path / "a.ckpt", gray | {"outc.conv.bias": RunsProgram(tmp_path / "ran")})
    with pytest.raises(WeightsError, match="'outc.conv.bias' is not a tensor"):
        load_published(path)
    assert not (tmp_path / "ran").exists()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.ckpt do not exist: choose another file"):
        load_published(tmp_path / "gone.ckpt")


def test_file_of_old_torch_is_refused(tmp_path, gray):
    torch.save({"state_dict": gray}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"old\.ckpt is not a zip file"):
        load_published(tmp_path / "old.ckpt")


def test_plain_pickle_is_refused_unread(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(RunsCommand(tmp_path / "ran")))
    with pytest.raises(WeightsError, match="is not a zip file"):
        load_published(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


def test_other_zip_file_is_refused_with_its_content(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("images/1.png", b"")
    with pytest.raises(WeightsError, match=r"a\.ckpt is not a torch checkpoint.*images/1\.png"):
        load_published(tmp_path / "a.ckpt")


def test_file_without_state_dict_is_refused_with_its_entries(tmp_path):
    torch.save({"model": {}, "epoch": 3}, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match=r"a\.ckpt has no 'state_dict' but the entries \['model', 'epoch'\]"):
        load_published(tmp_path / "a.ckpt")


def test_damaged_file_is_refused_by_name(tmp_path, gray):
    path = lightning_file(tmp_path / "a.ckpt", gray)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "b.ckpt", "w") as torn:
        for name in whole.namelist():
            content = whole.read(name)
            torn.writestr(name, content[: len(content) // 2] if "/data/" in name else content)
    with pytest.raises(WeightsError, match=r"b\.ckpt cannot be read"):
        load_published(tmp_path / "b.ckpt")


def test_weights_with_a_changed_bit_are_refused(tmp_path, gray):
    path = lightning_file(tmp_path / "a.ckpt", gray)
    content = bytearray(path.read_bytes())
    content[content.index(gray["outc.conv.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.ckpt cannot be read: .*/data/.* is damaged\. Fetch the file again"):
        load_published(path)
