"""Features and classifiers on devices without hardware: the host reads no more than it needs."""

import pytest
import torch
from devices import Watch, fake_cuda
from torch import nn

from medfusion_monai.evaluation.metrics.classifier import LabelledImages, train_classifier
from medfusion_monai.evaluation.metrics.feature_networks import EfficientNetFeatures, PixelFeatures
from medfusion_monai.evaluation.metrics.set_metrics import measure_images
from medfusion_monai.evaluation.metrics.similarity import ms_ssim

CHECKED = "evaluation/metrics/feature_networks.py:checked"
MEASURED = "evaluation/metrics/set_metrics.py:measure_images"
UPLOADS = {
    "evaluation/metrics/classifier.py:train_classifier": "weights before the first step, images and labels of each",
    "evaluation/metrics/classifier.py:_augment": "which images are mirrored",
}


@pytest.mark.parametrize(("extractor", "batches"), [(EfficientNetFeatures, 1), (PixelFeatures, 2)])
def test_features_are_read_once_and_the_range_of_images_once_per_batch(extractor, batches):
    network = extractor()
    allowed = {CHECKED: "images outside [0, 1] are refused", MEASURED: "the features of a set"}
    with fake_cuda(network, reads=allowed, uploads={MEASURED: "an empty state"}) as watch:
        images = torch.empty(4, 1, 32, 32, device="cuda")
        shape = [network.dimensions]
        features = measure_images(lambda at: network(images[at.start : at.stop]), 4, 4 // batches, shape, "cuda")
    assert (features.device.type, features.shape) == ("cpu", (4, *shape))
    assert watch.reads == {CHECKED: batches, MEASURED: 1}


def test_similarity_is_measured_where_the_images_are():
    with fake_cuda(uploads={"evaluation/metrics/similarity.py:ms_ssim": "windows that MONAI makes on the host"}):
        images = torch.empty(2, 1, 64, 64, device="cuda")
        assert ms_ssim(images, images).device.type == "cuda"


def test_classifier_trains_without_a_read():
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    data = LabelledImages(images, torch.arange(6) % 2)
    with Watch({}, UPLOADS):
        network = train_classifier(data, 2, steps=2, batch_size=4, size=32, flip=True, device="meta")
    assert isinstance(network, nn.Module)
