"""Latents encoded once: they train like images, and stale ones are never used."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.reading.transforms import ReadImaged
from medfusion_monai.data.training import latent_store
from medfusion_monai.data.training.flips import FlippedDataset, for_each_variant
from medfusion_monai.data.training.latent_store import LatentStore
from medfusion_monai.data.training.readable import ReadableDataset
from medfusion_monai.data.training.stream import SeededDataset, StreamSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.training import latent_encoding
from medfusion_monai.training.latent_dataset import LatentDataset
from medfusion_monai.training.latent_encoding import cached_latents
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch
from medfusion_monai.training.run import TrainingRun

CPU = torch.device("cpu")
COUNT = 10
TOLERANCE = 1e-4  # measured 1.5e-5; after some 60 steps rounding grows to 7e-3, as any other rounding does


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(latent_store, "ENTRIES_PER_SHARD", 4)


@pytest.fixture
def items(tmp_path):
    """Files of 16x8 random pixels, alternating between two classes."""
    source = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{number}.png" for number in range(COUNT)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(source.integers(0, 256, (16, 8), dtype=np.uint8)).save(path)
    return [{"image": str(path), "label": number % 2} for number, path in enumerate(paths)]


class CountedAutoencoder(Autoencoder):
    """Counts encoded images."""

    encoded = 0

    def encode(self, image):
        assert not self.training
        assert not torch.is_grad_enabled()
        type(self).encoded += len(image)
        return super().encode(image)


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    CountedAutoencoder.encoded = 0
    network = CountedAutoencoder(latent_channels=2, channels=(8, 16))
    nn.init.normal_(network.to_moments[1].weight, std=0.5)
    network.set_latent_statistics(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 2.0]))
    return network


def images_of(items, flips=(), unreadable="stop"):
    return FlippedDataset(ReadableDataset(items, ReadImaged("image", 1), unreadable, cache_num=0), flips)


def encode(autoencoder, items, folder, flips=(), unreadable="stop", **keywords):
    keywords = {"batch_size": 3, **keywords}
    return cached_latents(autoencoder, images_of(items, flips, unreadable), folder, (16, 8), **keywords)


@torch.no_grad()
def posteriors(autoencoder, images):
    batch = torch.stack([images[index]["image"] for index in range(len(images))])
    posterior = Autoencoder.encode(autoencoder.eval(), batch * 2 - 1)
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


def moments(store):
    return torch.stack([store[index]["moments"] for index in range(len(store))])


@pytest.mark.parametrize("flips", [[], ["horizontal", "both"]])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_entries_are_the_posteriors_of_the_images_and_their_flips(autoencoder, items, tmp_path, flips, num_workers):
    store = encode(autoencoder, items, tmp_path / "latents", flips, num_workers=num_workers)
    expected = posteriors(autoencoder, images_of(items, flips))
    assert len(store) == COUNT * (1 + len(flips))
    torch.testing.assert_close(moments(store), expected, rtol=2**-11, atol=1e-5)
    assert [store[index]["label"] for index in range(len(store))] == for_each_variant([0, 1] * 5, flips)


def test_each_image_is_encoded_once_and_never_again(autoencoder, items, tmp_path):
    first = moments(encode(autoencoder, items, tmp_path / "latents"))
    assert CountedAutoencoder.encoded == COUNT
    torch.testing.assert_close(moments(encode(autoencoder, items, tmp_path / "latents")), first, rtol=0, atol=0)
    assert CountedAutoencoder.encoded == COUNT


def test_images_are_not_read_again(autoencoder, items, tmp_path, monkeypatch):
    encode(autoencoder, items, tmp_path / "latents")
    monkeypatch.setattr(ReadableDataset, "__getitem__", lambda dataset, index: pytest.fail("an image was read"))
    encode(autoencoder, items, tmp_path / "latents")[3]


def test_stopped_encoding_resumes_where_it_was(autoencoder, items, tmp_path, monkeypatch):
    write = LatentStore.write

    def killed(store, number, values):
        if number == 2:
            raise KeyboardInterrupt
        write(store, number, values)

    with monkeypatch.context() as patch:
        patch.setattr(LatentStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            encode(autoencoder, items, tmp_path / "latents")
    assert CountedAutoencoder.encoded == COUNT
    store = encode(autoencoder, items, tmp_path / "latents")
    assert CountedAutoencoder.encoded == COUNT + 2  # the last shard has two entries
    torch.testing.assert_close(moments(store), posteriors(autoencoder, images_of(items)), rtol=2**-11, atol=1e-5)


def test_damaged_shard_alone_is_encoded_again(autoencoder, items, tmp_path):
    store = encode(autoencoder, items, tmp_path / "latents")
    before, path = moments(store), store.folder / "moments-00001.npy"
    del store
    path.write_bytes(path.read_bytes()[:200])
    after = moments(encode(autoencoder, items, tmp_path / "latents"))
    assert CountedAutoencoder.encoded == COUNT + 4
    torch.testing.assert_close(after, before, rtol=2**-10, atol=1e-5)


def change_weights(autoencoder, items):
    autoencoder.conv_in.get_parameter(next(iter(dict(autoencoder.conv_in.named_parameters())))).data.mul_(1.01)
    return "other weights"


def change_statistics(autoencoder, items):
    autoencoder.latent_std.mul_(2.0)
    return "other weights"


def change_an_image(autoencoder, items):
    Image.fromarray(np.zeros((16, 8), np.uint8)).save(items[4]["image"])
    return "other images"


def leave_an_image_out(autoencoder, items):
    del items[3]
    return "other images"


@pytest.mark.parametrize("change", [change_weights, change_statistics, change_an_image, leave_an_image_out])
def test_stale_latents_are_named_and_replaced(autoencoder, items, tmp_path, caplog, change):
    folder = tmp_path / "latents"
    encode(autoencoder, items, folder)
    word = change(autoencoder, items)
    store = encode(autoencoder, items, folder)
    assert f"were made from {word}: not used, and deleted" in caplog.text
    torch.testing.assert_close(moments(store), posteriors(autoencoder, images_of(items)), rtol=2**-11, atol=1e-5)
    assert [path for path in folder.iterdir() if path.is_dir()] == [store.folder]


def test_new_labels_need_no_encoding(autoencoder, items, tmp_path):
    encode(autoencoder, items, tmp_path / "latents")
    turned = [{**item, "label": 1 - item["label"]} for item in items]
    store = encode(autoencoder, turned, tmp_path / "latents")
    assert [store[index]["label"] for index in range(4)] == [1, 0, 1, 0]
    assert CountedAutoencoder.encoded == COUNT


def spoil(item):
    Path(item["image"]).write_bytes(b"no image")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_stops_with_its_name_and_keeps_earlier_latents(autoencoder, items, tmp_path, num_workers):
    spoil(items[6])
    with pytest.raises(DataError, match=r"6\.png: is not an image"):
        encode(autoencoder, items, tmp_path / "latents", num_workers=num_workers)
    (folder,) = (path for path in (tmp_path / "latents").iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["moments-00000.npy", "store.json"]


def test_stand_ins_are_those_of_the_training_from_images(autoencoder, items, tmp_path):
    spoil(items[6])
    store = encode(autoencoder, items, tmp_path / "latents", ["vertical"], "skip", num_workers=1)
    expected = posteriors(autoencoder, images_of(items, ["vertical"], "skip"))
    torch.testing.assert_close(moments(store), expected, rtol=2**-11, atol=1e-5)


def test_image_that_can_be_read_again_is_encoded_again(autoencoder, items, tmp_path, caplog):
    content = Path(items[6]["image"]).read_bytes()
    spoil(items[6])
    encode(autoencoder, items, tmp_path / "latents", unreadable="skip")
    Path(items[6]["image"]).write_bytes(content)
    store = encode(autoencoder, items, tmp_path / "latents", unreadable="skip")
    assert "were made from other images" in caplog.text
    torch.testing.assert_close(moments(store), posteriors(autoencoder, images_of(items)), rtol=2**-11, atol=1e-5)


def test_stand_ins_are_not_passed_on_to_a_training_that_stops_at_bad_images(autoencoder, items, tmp_path):
    spoil(items[6])
    encode(autoencoder, items, tmp_path / "latents", unreadable="skip")
    with pytest.raises(DataError, match=r"6\.png: is not an image"):
        encode(autoencoder, items, tmp_path / "latents")


def test_images_that_change_while_they_are_encoded_are_an_error(autoencoder, items, tmp_path, monkeypatch):
    write = LatentStore.write

    def write_and_change(store, number, values):
        write(store, number, values)
        os.utime(items[0]["image"], (number, number))

    monkeypatch.setattr(LatentStore, "write", write_and_change)
    with pytest.raises(ValueError, match="images changed while they were encoded"):
        encode(autoencoder, items, tmp_path / "latents")


def test_images_in_memory_are_refused(autoencoder, items, tmp_path):
    images = FlippedDataset(ReadableDataset(items, ReadImaged("image", 1), cache_num=2))
    with pytest.raises(ValueError, match="pass a dataset with cache_num=0, received"):
        cached_latents(autoencoder, images, tmp_path / "latents", (16, 8))


def test_images_of_another_size_are_refused(autoencoder, items, tmp_path):
    with pytest.raises(ValueError, match=r"moments of shape \(4, 4, 8, 4\) instead of \(4, 4, 8, 8\)"):
        cached_latents(autoencoder, images_of(items), tmp_path / "latents", (16, 16))


@pytest.fixture
def dataset_of_phase_two(autoencoder, items, tmp_path):
    network = Medfusion(autoencoder, nn.Identity(), ["a", "b"], (16, 8))

    def make(**settings):
        run = TrainingRun(tmp_path / "runs", tmp_path / "models")
        return LatentDataset(items, ReadImaged("image", 1), network, run, "training", **settings)

    return make


@pytest.mark.parametrize("cache_latents", [True, False])
def test_dataset_of_phase_two_is_latents_or_images(dataset_of_phase_two, tmp_path, cache_latents):
    dataset = dataset_of_phase_two(cache_latents=cache_latents, flips=["both"], cache_num=3)
    dataset.prepare("cpu")
    assert len(dataset) == 2 * COUNT
    assert ("moments" if cache_latents else "image") in dataset[5]
    assert (tmp_path / "runs" / "latents" / "training").exists() == cache_latents


def test_items_are_images_until_they_are_prepared(dataset_of_phase_two, tmp_path):
    dataset = dataset_of_phase_two(flips=["both"])
    labels = [dataset[index]["label"] for index in range(len(dataset))]
    assert dataset[5]["image"].shape == (1, 16, 8)
    assert not list(tmp_path.rglob("*.npy"))
    dataset.prepare("cpu")
    assert list(tmp_path.rglob("*.npy"))
    assert [dataset[index]["label"] for index in range(len(dataset))] == labels == dataset.labels
    item = next(iter(DataLoader(dataset, num_workers=1)))
    assert torch.equal(item["moments"][0], dataset[0]["moments"])
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1]["moments"], dataset[1]["moments"])


@pytest.mark.parametrize(
    ("settings", "caches"),
    [
        ({}, True),
        ({"random_transforms": [dict]}, False),
        ({"random_transforms": [dict], "flips": ["both"]}, True),
        ({"cache_latents": False}, False),
        ({"cache_latents": False, "flips": ["both"]}, False),
    ],
)
def test_latents_are_cached_unless_something_is_random(dataset_of_phase_two, settings, caches):
    assert dataset_of_phase_two(**settings).caches == caches


def test_images_in_memory_are_encoded_without_reading_them_again(dataset_of_phase_two, monkeypatch):
    dataset = dataset_of_phase_two(cache_num=COUNT)
    dataset.images.keep()
    monkeypatch.setattr(ReadImaged, "__call__", lambda *_: pytest.fail("an image was read"))
    dataset.prepare("cpu")
    assert len(dataset[3]["moments"]) == 4


# Training from latents and from images


def train(autoencoder, dataset, items, flips, num_workers, steps=20):
    """Train a tiny UNet and return losses and labels."""
    torch.manual_seed(1)
    unet = UNet(in_channels=2, channels=(8, 8), num_classes=2, embedding_channels=16, norm_groups=4)
    for parameter in unet.parameters():  # zero-started layers would hide most of the network at first
        nn.init.normal_(parameter, std=0.1)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    labels = for_each_variant([item["label"] for item in items], flips)
    stream = SeededDataset(dataset, seed=3, labels=labels, shares=[0.4, 0.6])
    prepare = DiffusionPrepareBatch(autoencoder, NoiseSchedule(), label_dropout=0.2)
    losses, seen = [], []
    for step, batch in enumerate(DataLoader(stream, batch_sampler=StreamSampler(6), num_workers=num_workers)):
        if step == steps:
            return torch.tensor(losses), seen
        noisy, target, _, keywords = prepare(batch, CPU)
        loss = F.l1_loss(unet(noisy, **keywords), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append(batch["label"].tolist())
    return None


def test_training_from_latents_has_the_loss_curve_of_training_from_images(autoencoder, items, tmp_path):
    flips = ["horizontal", "vertical"]
    store = encode(autoencoder, items, tmp_path / "latents", flips)
    expected, labels = train(autoencoder, images_of(items, flips), items, flips, 0)
    assert expected[-5:].mean() < 0.7 * expected[:5].mean()
    for num_workers in (0, 2):
        losses, same_labels = train(autoencoder, store, items, flips, num_workers)
        assert same_labels == labels
        torch.testing.assert_close(losses, expected, rtol=0, atol=TOLERANCE)


def test_loss_curve_differs_for_other_flips(autoencoder, items, tmp_path):
    expected, _ = train(autoencoder, images_of(items, ["horizontal"]), items, ["horizontal"], 0)
    other, _ = train(autoencoder, encode(autoencoder, items, tmp_path / "latents", ["vertical"]), items, ["both"], 0)
    assert (other - expected).abs().max() > 50 * TOLERANCE


# Several processes


def test_processes_share_the_work_and_see_all_of_it(autoencoder, items, tmp_path, two_processes):
    def work(rank):
        CountedAutoencoder.encoded = 0
        store = encode(autoencoder, items, tmp_path / "latents", ["horizontal"])
        return CountedAutoencoder.encoded, moments(store).numpy()

    (first, values), (second, same) = two_processes(work)
    assert (first, second) == (12, 8)  # three shards of four entries, and two
    assert np.array_equal(values, same)
    expected = posteriors(autoencoder, images_of(items, ["horizontal"]))
    torch.testing.assert_close(torch.from_numpy(values), expected, rtol=2**-11, atol=1e-5)


@pytest.mark.parametrize("bad", [0, 5])
def test_image_that_one_process_cannot_read_ends_all(autoencoder, items, tmp_path, two_processes, bad):
    spoil(items[bad])
    for error in two_processes(lambda rank: encode(autoencoder, items, tmp_path / "latents")):
        assert type(error) is DataError
        assert f"{bad}.png: is not an image" in str(error)


def test_full_disk_ends_all_processes(autoencoder, items, tmp_path, two_processes, monkeypatch):
    monkeypatch.setattr(LatentStore, "prepare", lambda store: (_ for _ in ()).throw(store._full([0, 1])))
    for error in two_processes(lambda rank: encode(autoencoder, items, tmp_path / "latents")):
        assert "no disk space for the latents" in str(error)


def test_folders_that_are_not_shared_are_an_error(autoencoder, items, tmp_path, two_processes, monkeypatch):
    monkeypatch.setattr(latent_encoding, "SECONDS_TO_SEE", 0.0)
    for error in two_processes(lambda rank: encode(autoencoder, items, tmp_path / f"latents{rank}")):
        assert "set --latents_dir to a folder that all hosts share" in str(error)


def test_only_the_first_process_shows_a_bar(autoencoder, items, tmp_path, two_processes, capfd):
    two_processes(lambda rank: encode(autoencoder, items, tmp_path / "latents").digits)
    assert capfd.readouterr().err.count("encoding: 100%") == 1


def test_two_runs_at_once_in_one_folder_are_both_right(autoencoder, items, tmp_path, two_processes):
    def work(rank):
        return [moments(encode(autoencoder, items, tmp_path / "latents")).numpy() for _ in range(3)][-1]

    expected = posteriors(autoencoder, images_of(items))
    for values in two_processes(work, connect=False):
        torch.testing.assert_close(torch.from_numpy(values), expected, rtol=2**-11, atol=1e-5)


def test_runs_of_other_weights_at_once_in_one_folder_are_both_right(autoencoder, items, tmp_path, two_processes):
    def work(rank):
        autoencoder.latent_mean.fill_(rank)
        autoencoder.conv_in.requires_grad_(False)
        for parameter in autoencoder.to_moments.parameters():
            parameter.data.mul_(1 + rank)
        return [moments(encode(autoencoder, items, tmp_path / "latents")).numpy() for _ in range(5)][-1]

    first, second = two_processes(work, connect=False)
    expected = posteriors(autoencoder, images_of(items))
    torch.testing.assert_close(torch.from_numpy(first), expected, rtol=2**-11, atol=1e-5)
    assert not np.allclose(first, second)
