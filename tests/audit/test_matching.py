import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from medfusion_monai.audit.fingerprints import FLIPS, Prints, fingerprint
from medfusion_monai.audit.matching import MAX_SHIFT, SCALE_NEIGHBOURS, Matcher, variants_of


@pytest.fixture(scope="module")
def matcher(alike, prints):
    training, held_out = alike
    return Matcher(prints(training), prints(held_out, 1000 + torch.arange(len(held_out))))


@pytest.fixture(scope="module")
def real(matcher, alike, prints):
    """Scores of the held-out images."""
    return matcher.match(prints(alike[1], 1000 + torch.arange(len(alike[1])))).scores


def jpeg(images, quality):
    decoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray((image[0].numpy() * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
        decoded.append(torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32)) / 255)
    return torch.stack(decoded)[:, None]


def noisy(images):
    return (images + 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def turned(images, degrees=0.0, zoom=1.0):
    """Rotate and zoom by cubic splines, which the matcher does not use."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    centre = (np.array(images.shape[-2:]) - 1) / 2
    options = {"offset": centre - matrix @ centre, "mode": "nearest"}
    moved = [ndimage.affine_transform(image[0].numpy(), matrix, **options) for image in images]
    return torch.from_numpy(np.stack(moved))[:, None].clamp(0, 1)


DISGUISES = {
    "the same": lambda x: x,
    "brighter, with less contrast": lambda x: 0.7 * x + 0.25,
    "gamma": lambda x: x**1.3,
    "shifted by a pixel": lambda x: x.roll((1, -1), (2, 3)),
    "blurred": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
    "noisy": noisy,
    "JPEG": lambda x: jpeg(x, 40),
    "mirrored": lambda x: x.flip(3),
    "rotated": lambda x: turned(x, -3.0),
    "rotated by less, and mirrored": lambda x: turned(x, 1.5).flip(3),
    "zoomed in": lambda x: turned(x, zoom=1.05),
    "zoomed out": lambda x: turned(x, zoom=0.975),
    "shifted by two pixels": lambda x: F.pad(x, (2, 0, 0, 2), mode="replicate")[..., 2:, :-2],
    "larger": lambda x: F.interpolate(x, scale_factor=3, mode="bilinear"),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_disguised_copy_scores_below_all_held_out_images_and_names_its_source(matcher, real, alike, unknown, disguise):
    found = matcher.match(unknown(DISGUISES[disguise](alike[0][:15])))
    assert (found.scores < real.min()).all()
    assert found.places.tolist() == list(range(15))


def test_mirrored_copy_is_not_sought_where_no_flips_are_asked_for(alike, prints, unknown):
    training, held_out = alike
    plain = Matcher(prints(training), prints(held_out), flips="none")
    assert (plain.match(unknown(training[:10].flip(3))).scores > 0.3).all()


def test_score_is_the_geometric_mean_of_distances_over_those_to_held_out_images(alike, prints, unknown, others):
    training, held_out = alike
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(len(x), 1, 4, generator=generator) for x in (training, held_out, others)]
    matcher = Matcher(prints(training, features=features[0]), prints(held_out, features=features[1]), "none")
    found = matcher.match(unknown(others[:5], features[2][:5]))
    assert found.distances.shape == (5, 3)
    judged = (found.distances / found.scales)[:, :2]  # pixels and structure; features are reported beside them
    assert torch.allclose(found.scores, judged.log().mean(dim=1).exp())
    around = torch.cdist(features[2][:5, 0], features[1][:, 0]).sort(dim=1).values[:, :SCALE_NEIGHBOURS]
    assert torch.allclose(found.scales[:, 2], around.mean(dim=1), atol=1e-5)
    nearest = torch.cdist(features[2][:5, 0], features[0][:, 0]).amin(dim=1)
    assert torch.allclose(found.nearest[:, 2], nearest, atol=1e-5)
    rows = torch.arange(5)
    expected = torch.cdist(features[2][:5, 0], features[0][:, 0])[rows, found.places]
    assert torch.allclose(found.distances[:, 2], expected, atol=1e-5)


def test_pixel_distance_is_that_of_the_best_alignment(alike, prints, unknown):
    training, held_out = alike
    matcher = Matcher(prints(training[:1]), prints(held_out), "horizontal")
    variants = variants_of(fingerprint(held_out[:1]), FLIPS["horizontal"])[0]
    assert len(variants) == 26
    assert torch.equal(variants[0], fingerprint(held_out[:1])[0].float())
    reference = fingerprint(training[:1]).float()[0]
    inner = variants[:, MAX_SHIFT:-MAX_SHIFT, MAX_SHIFT:-MAX_SHIFT]
    size, steps = inner.shape[-1], range(2 * MAX_SHIFT + 1)
    windows = [reference[y : y + size, x : x + size] for y in steps for x in steps]
    least = min(float((inner - window).square().mean(dim=(1, 2)).sqrt().min()) for window in windows)
    assert matcher.match(unknown(held_out[:1])).distances[0, 0].item() == pytest.approx(least, rel=0.01)


def test_structural_distance_of_unrelated_noise_is_about_one_and_of_copies_zero(alike, prints, unknown):
    _, held_out = alike
    noise = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    matcher = Matcher(prints(noise[:1]), prints(held_out), "none")
    copy, other = matcher.match(unknown(noise)).distances[:, 1].tolist()
    assert copy == pytest.approx(0, abs=1e-3)
    assert 0.7 < other < 1.1


def test_images_of_the_same_patient_are_no_neighbours(alike, prints):
    training, held_out = alike
    patients = 1000 + torch.arange(len(held_out))
    query = prints(held_out[:1], patients[:1])
    doubled = torch.cat([held_out, held_out[:1]])
    scales = [
        Matcher(prints(training), prints(doubled, torch.cat([patients, torch.tensor([number])]))).match(query).scales
        for number in (1000, 5000)  # of the same patient, and of another one
    ]
    alone = Matcher(prints(training), prints(held_out, patients)).match(query).scales
    assert torch.allclose(scales[0], alone)
    assert (scales[1] < 0.9 * alone).all()


def test_each_query_is_judged_by_itself(matcher, alike, unknown, others):
    together = matcher.match(unknown(others[:20]))
    alone = [matcher.match(unknown(others[index : index + 1])) for index in (0, 7, 19)]
    assert [one.scores.item() for one in alone] == pytest.approx(together.scores[[0, 7, 19]].tolist(), rel=1e-5)
    assert [one.places.item() for one in alone] == together.places[[0, 7, 19]].tolist()


def test_images_that_are_no_copies_score_as_held_out_ones_do(matcher, real, unknown, others):
    new = matcher.match(unknown(others)).scores
    assert abs(new.median() - real.median()) < 0.1


def test_features_of_one_set_alone_are_refused(alike, prints):
    training, held_out = alike
    with pytest.raises(ValueError, match="for both or for neither"):
        Matcher(prints(training, features=torch.zeros(len(training), 1, 2)), prints(held_out))


def test_queries_without_features_are_refused_where_the_others_have_some(alike, prints, unknown):
    training, held_out = alike
    features = [torch.zeros(len(x), 1, 2) for x in alike]
    matcher = Matcher(prints(training, features=features[0]), prints(held_out, features=features[1]))
    with pytest.raises(ValueError, match="queries have no features"):
        matcher.match(unknown(training[:1]))


def test_too_few_held_out_images_are_refused(alike, prints):
    training, held_out = alike
    with pytest.raises(ValueError, match="5 held-out images: give at least 1 and 6"):
        Matcher(prints(training), prints(held_out[:5]))


def test_unknown_flips_are_refused(alike, prints):
    training, held_out = alike
    with pytest.raises(ValueError, match="use one of none, horizontal, all"):
        Matcher(prints(training), prints(held_out), "vertical")


def test_selected_prints_are_those_of_the_images(alike, prints):
    training, _ = alike
    whole = prints(training, features=torch.arange(len(training)).float()[:, None, None])
    chosen = whole.select([5, 2])
    assert isinstance(chosen, Prints)
    assert torch.equal(chosen.fine, whole.fine[[5, 2]])
    assert chosen.features.flatten().tolist() == [5, 2]
    assert chosen.patients.tolist() == [5, 2]
