import hashlib
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.state_dict import (
    file_sha256,
    load_weights,
    read_safetensors_metadata,
    read_state,
    save_atomically,
    save_safetensors,
    save_weights,
)


class Armed:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def make_network(width=3):
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def filled_network():
    torch.manual_seed(0)
    network = make_network()
    network[1].running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    return network


def test_weights_and_buffers_come_back_bit_for_bit(tmp_path):
    network = filled_network()
    save_weights(network, tmp_path / "new" / "weights.pt")
    other = make_network()
    assert load_weights(other, tmp_path / "new" / "weights.pt") is other
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("name", ["model.safetensors", "weights.bin"])
def test_safetensors_come_back_bit_for_bit_whatever_they_are_called(tmp_path, name):
    network = filled_network()
    save_safetensors(network, tmp_path / "new" / name)
    other = load_weights(make_network(), tmp_path / "new" / name)
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_what_torch_saved_is_read_even_if_it_is_called_safetensors(tmp_path):
    network = filled_network()
    save_weights(network, tmp_path / "model.safetensors")
    other = load_weights(make_network(), tmp_path / "model.safetensors")
    assert torch.equal(other[0].weight, network[0].weight)
    assert read_safetensors_metadata(tmp_path / "model.safetensors") == {}


def test_safetensors_are_read_by_their_own_library_and_by_hand(tmp_path):
    network = filled_network()
    save_safetensors(network, tmp_path / "model.safetensors", {"z": "größer", "a": '"quoted"\n', "m": ""})
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt", "z": "größer", "a": '"quoted"\n', "m": ""}
        assert torch.equal(file.get_tensor("1.running_mean"), network[1].running_mean)
    content = (tmp_path / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:end])["0.weight"]
    start, stop = entry["data_offsets"]
    values = np.frombuffer(content[end:][start:stop], "<f4").reshape(entry["shape"])
    assert np.array_equal(values, network[0].weight.detach().numpy())


def test_safetensors_of_the_same_weights_and_texts_are_the_same_bytes(tmp_path):
    texts = {name: name * 3 for name in "qwertzuiop"}
    contents = set()
    for index, order in enumerate([list(texts), sorted(texts), sorted(texts, reverse=True)]):
        save_safetensors(filled_network(), tmp_path / str(index), {name: texts[name] for name in order})
        contents.add((tmp_path / str(index)).read_bytes())
    assert len(contents) == 1


def test_safetensors_may_be_read_by_whoever_may_read_other_files(tmp_path):
    (tmp_path / "other").touch()
    save_safetensors(make_network(), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_safetensors_that_cannot_be_written_leave_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_safetensors(filled_network(), path)
    before = path.read_bytes()

    def fail_halfway(state, target, metadata):
        target.write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("medfusion_monai.weights.state_dict.save_file", fail_halfway)
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be written: .*No space left.*Make room"):
        save_safetensors(make_network(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_are_views_of_others_are_written_whole(tmp_path):
    network = make_network()
    network[0].weight.data = torch.arange(6.0).reshape(2, 3).T
    save_safetensors(network, tmp_path / "model.safetensors")
    other = load_weights(make_network(), tmp_path / "model.safetensors")
    assert other[0].weight.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


@pytest.mark.parametrize("cut", [0, 5, 100, -4])
def test_damaged_safetensors_are_named(tmp_path, cut):
    path = tmp_path / "model.safetensors"
    save_safetensors(filled_network(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read: damaged"):
        load_weights(make_network(), path)
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read: damaged"):
        read_safetensors_metadata(path)


def test_safetensors_that_do_not_fit_are_named(tmp_path):
    save_safetensors(make_network(width=4), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"do not fit this network: .* of another shape \(0\.weight \(4, 2\)"):
        load_weights(make_network(), tmp_path / "model.safetensors")


def test_file_is_a_plain_state_dict_with_nothing_beside_it(tmp_path):
    network = filled_network()
    save_weights(network, tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert list(state) == list(network.state_dict())
    assert not any(value.requires_grad for value in state.values())
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_missing_file_is_named_with_what_makes_it(tmp_path):
    with pytest.raises(WeightsError, match=r"model\.pt do not exist: run training first"):
        load_weights(make_network(), tmp_path / "model.pt", "run training")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None], ids=["empty", "web page", "cut off"])
def test_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "model.pt"
    save_weights(filled_network(), path)
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(WeightsError, match=r"model\.pt cannot be read"):
        load_weights(make_network(), path)


def remove(state):
    del state["0.bias"]


def add(state):
    state["2.weight"] = torch.zeros(1)


def reshape(state):
    state["0.weight"] = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, r"1 missing \(0\.bias\)"),
        (add, r"1 surplus \(2\.weight\)"),
        (reshape, r"1 of another shape \(0\.weight \(3, 4\) instead of \(3, 2\)\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path, change, message):
    state = filled_network().state_dict()
    change(state)
    torch.save(state, tmp_path / "model.pt")
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"model\.pt do not fit this network: {message}\."):
        load_weights(network, tmp_path / "model.pt")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_all_kinds_of_misfit_are_reported_at_once(tmp_path):
    state = filled_network().state_dict()
    for change in (remove, add, reshape):
        change(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"1 missing .*; 1 surplus .*; 1 of another shape"):
        load_weights(make_network(), tmp_path / "model.pt")


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {"0.weight": torch.zeros(3, 2)}}, [torch.zeros(1)], {0: torch.zeros(1)}],
    ids=["nested", "list", "numbered"],
)
def test_file_that_is_not_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt are not a plain state dict of tensors: save only network"):
        load_weights(make_network(), tmp_path / "model.pt")


@pytest.mark.parametrize(
    "write",
    [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))],
    ids=["torch", "pickle"],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_file_with_code_is_refused_and_the_code_is_not_run(tmp_path, write, name):
    path, target = tmp_path / name, tmp_path / "harm"
    write({"0.weight": Armed(target)}, path)
    with pytest.raises(WeightsError, match=rf"{name} cannot be read"):
        load_weights(make_network(), path)
    assert not target.exists()


def test_pickle_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "code.pkl").write_bytes(pickle.dumps(print, protocol=4))
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        with pytest.raises(WeightsError, match=r"code\.pkl cannot be read: damaged, or not a plain file of tensors"):
            read_state(tmp_path / "code.pkl")
    assert caught_warnings == []


def test_code_of_the_test_before_would_run_if_it_were_let(tmp_path):
    pickle.loads(pickle.dumps(Armed(tmp_path / "harm"))).close()
    assert (tmp_path / "harm").exists()


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_weights(filled_network(), path)
    before = path.read_bytes()

    def fail_halfway(state, target):
        target.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail_halfway)
    with pytest.raises(OSError, match="No space left"):
        save_weights(make_network(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_new_file_is_renamed_into_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "state.pt"
    save_atomically({"value": 1}, path)
    before = path.read_bytes()
    with open(path, "rb") as reader:  # who reads the old file while it is replaced gets all of it
        save_atomically({"value": 2}, path)
        assert reader.read() == before
    assert torch.load(path, weights_only=True) == {"value": 2}


@pytest.mark.parametrize("size", [0, 5, 3_000_000])
def test_checksum_is_that_of_hashlib(tmp_path, size):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_weights_that_are_not_floating_point_are_refused(tmp_path, kind, save):
    network = make_network()
    save({name: value.to(kind) for name, value in network.state_dict().items()}, tmp_path / "a.safetensors")
    words = rf"not floating point: 6 of 6 \(0\.(weight|bias) {str(kind)[6:]}, "
    with pytest.raises(WeightsError, match=words):
        read_state(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=words):
        load_weights(network, tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_floating_point_types_are_read(tmp_path, kind):
    network = filled_network()
    torch.save(network.to(kind).state_dict(), tmp_path / "a.pt")
    loaded = load_weights(make_network(), tmp_path / "a.pt")
    torch.testing.assert_close(loaded[0].weight, network[0].weight.float())


def test_buffer_of_another_kind_of_type_is_refused(tmp_path):
    network = filled_network()
    torch.save({**network.state_dict(), "1.num_batches_tracked": torch.tensor(1.5)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"1 of another type \(1\.num_batches_tracked float32 instead of int64\)"):
        load_weights(make_network(), tmp_path / "a.pt")


class WithStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.autoencoder = nn.Module()
        self.autoencoder.register_buffer("latent_std", torch.ones(2))
        self.autoencoder.register_buffer("latent_mean", torch.zeros(2))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_standard_deviation_of_latents_that_is_none_is_refused(tmp_path, value):
    mean = {"autoencoder.latent_mean": torch.zeros(2)}
    torch.save({"autoencoder.latent_std": torch.tensor([1.0, value]), **mean}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"1 out of range \(autoencoder\.latent_std "):
        load_weights(WithStatistics(), tmp_path / "a.pt")
    torch.save({"autoencoder.latent_std": torch.ones(2, dtype=torch.int64), **mean}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"1 of another type \(autoencoder\.latent_std int64 instead of float32"):
        load_weights(WithStatistics(), tmp_path / "a.pt")
    torch.save({"autoencoder.latent_std": torch.tensor([1.0, 1e-3]), **mean}, tmp_path / "a.pt")
    load_weights(WithStatistics(), tmp_path / "a.pt")
