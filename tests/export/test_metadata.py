import pytest

from medfusion_monai.export.metadata import image_text, names_classes


@pytest.mark.parametrize(
    ("text", "names", "same"),
    [
        ("0 no cardiomegaly, 1 cardiomegaly", ["no_cardiomegaly", "cardiomegaly"], True),
        ("0 MSI (microsatellite instability), 1 MSS (microsatellite stable)", ["msi", "mss"], True),
        ("0 no cardiomegaly, 1 cardiomegaly", ["cardiomegaly", "no_cardiomegaly"], False),
        ("0 no cardiomegaly, 1 cardiomegaly", ["no_cardiomegaly", "cardio"], False),
        ("0 no cardiomegaly, 1 cardiomegaly", ["no_cardiomegaly"], False),
        ("0 a, 1 b", ["a", "b", "c"], False),
        ("", ["a", "b"], False),
    ],
)
def test_classes_of_a_text_are_compared_in_order_and_in_number(text, names, same):
    assert names_classes(text, names) == same


@pytest.mark.parametrize(
    ("text", "channels", "expected"),
    [
        ("one channel, chests in [0, 1]", 1, "one channel, chests in [0, 1], 16 x 24 pixels"),
        ("one channel, chests in [0, 1], 256 x 256 pixels", 1, "one channel, chests in [0, 1], 16 x 24 pixels"),
        ("one channel, chests in [0, 1]", 3, "three channels, images in [0, 1], 16 x 24 pixels"),
        ("", 1, "one channel, images in [0, 1], 16 x 24 pixels"),
    ],
)
def test_sentence_about_images_is_kept_where_its_channels_are_right(text, channels, expected):
    assert image_text(text, "images", channels, [16, 24]) == expected
