"""The page without a browser: what its tabs show, refuse and ask of the studio."""

import asyncio
import base64
import csv
import io
import time
import zipfile
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import medfusion_monai as mf

pytest.importorskip("nicegui", reason="needs the extra studio")

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement
from nicegui.elements.upload_files import SmallFileUpload
from nicegui.testing.user_interaction import UserInteraction
from nicegui.testing.user_simulation import user_simulation

from medfusion_monai.audit.guard import Verdict
from medfusion_monai.studio import tasks
from medfusion_monai.studio.pages.edit_settings import USED, WORDS
from medfusion_monai.studio.pages.frame import show_frame
from medfusion_monai.studio.pages.mask_editor import MaskCanvas, decoded
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.service import Studio
from medfusion_monai.studio.tasks import Neighbour, class_task

SIZE = (16, 24)


class RealImages(SimpleNamespace):
    """Real images that are white, which no generated image is."""

    counts = (3, 3)

    def image(self, label, place):
        return torch.ones(1, *SIZE)


class Tab:
    """A tab of the page, or the dialog of a picture, as a user sees it."""

    def __init__(self, user, name):
        self.user, self.visit = user, user.visit
        panels = user.find(ui.dialog if name == "dialog" else ui.tab_panel).elements
        self.panel = next(panel for panel in panels if panel.props.get("name", "dialog") == name)

    def all(self, kind, named=""):
        """Return the visible elements of a kind whose label or text contains something."""
        names = ("text", "label")
        return [
            element
            for element in self.panel.descendants()
            if isinstance(element, kind)
            and all(other.visible for other in (element, *element.ancestors()))
            and any(named in str(getattr(element, name, "") or element.props.get("label", "")) for name in names)
        ]

    def field(self, label):
        return next(field for field in self.all((ui.number, ui.select, ui.input)) if field.props["label"] == label)

    def slider(self, label):
        return next(slider for slider in self.all(ui.slider) if slider.props["aria-label"] == label)

    def press(self, title):
        self.click(next(button for button in self.all(ui.button) if button.text == title))

    def click(self, element):
        UserInteraction(self.user, {element}, None).click()

    def says(self, words):
        return any(words in element.text for element in self.all(TextElement))

    async def until(self, words, seconds=60.0):
        """Wait until the tab says something."""
        end = time.monotonic() + seconds
        while not self.says(words):
            assert time.monotonic() < end, [element.text for element in self.all(TextElement)]
            await asyncio.sleep(0.05)

    def pictures(self, tag):
        """Return the alternative texts of the figures with a mark."""
        figures = [element for element in self.all(ui.element) if {"shot", tag} <= set(element.classes)]
        return [part.props["alt"] for figure in figures for part in figure.descendants() if isinstance(part, ui.image)]

    async def upload(self, content, name, place=0):
        """Choose a file for an upload button."""
        upload = self.panel.descendants()
        uploads = [element for element in upload if isinstance(element, ui.upload)]
        await uploads[place].handle_uploads([SmallFileUpload(name, "image/png", content)])
        await asyncio.sleep(0.3)


@pytest.fixture(scope="module")
def model(weights):
    return mf.load(weights, device="cpu")


@pytest.fixture
def studio(model):
    """A studio without real images, unless a test adds some."""
    studio = Studio(model)
    studio.data = None
    yield studio
    studio.close()


def visiting(studio, name, steps):
    """Have a user without a browser open the page and take steps, a coroutine function of a tab."""
    visits = []

    def root():
        visits.append(Visit(studio))
        show_frame(visits[-1])

    async def visit():
        async with user_simulation(root=root) as user:
            await user.open("/")
            user.visit = visits[-1]
            try:
                await steps(Tab(user, name))
            except Exception as error:  # raised outside, or NiceGUI would not end its tasks
                return error
        return None

    problem = asyncio.run(visit())
    if problem is not None:
        raise problem


def png(size=SIZE, value=120):
    file = io.BytesIO()
    Image.new("L", size[::-1], value).save(file, "PNG")
    return file.getvalue()


async def generate(tab, count):
    tab.field("Images").set_value(count)
    tab.press("Generate")
    await tab.until("Done in")


def open_picture(tab):
    """Open the first generated image and return its dialog."""
    tab.click(next(card for card in tab.all(ui.element) if "card" in card.classes))
    return Tab(tab.user, "dialog")


def test_generated_images_are_those_of_the_model_and_are_marked(studio):
    async def steps(tab):
        tab.field("Class").set_value(1)
        tab.field("Seed").set_value(3)
        await generate(tab, 2)
        assert tab.pictures("generated") == [f"Generated image {number}, cardiomegaly" for number in (1, 2)]
        made = torch.stack([picture.image for picture in tab.visit.generated])
        torch.testing.assert_close(made, studio.model.sample("cardiomegaly", 2, 3), atol=1 / 255, rtol=0)

    visiting(studio, "Generate", steps)


def test_a_number_out_of_range_is_explained_and_nothing_starts(studio):
    async def steps(tab):
        for label, value, said in (
            ("Steps", 2.5, "Steps must be a whole number, received 2.5"),
            ("Seed", None, "Seed must be between 0 and"),
            ("Images", 65, "Images must be between 1 and 64"),
        ):
            tab.field(label).set_value(value)
            tab.press("Generate")
            assert tab.says(said)
        assert not tab.visit.generated

    visiting(studio, "Generate", steps)


def test_an_unexpected_error_of_a_request_is_shown(studio, monkeypatch):
    def broken(*args, **options):
        raise KeyError("index")

    async def steps(tab):
        monkeypatch.setattr(tasks, "sample", broken)
        tab.press("Generate")
        assert tab.says("Unexpected KeyError: 'index'. See the terminal")

    visiting(studio, "Generate", steps)


def test_cancelling_ends_a_job_and_another_can_start(studio):
    async def steps(tab):
        tab.field("Images").set_value(64)
        tab.field("Steps").set_value(250)
        tab.press("Generate")
        tab.press("Cancel")
        await tab.until("Cancelled")
        tab.field("Steps").set_value(2)
        await generate(tab, 1)
        assert len(tab.visit.generated) == 1

    visiting(studio, "Generate", steps)


def test_closing_the_page_cancels_its_jobs(studio):
    started = []

    async def steps(tab):
        tab.field("Images").set_value(64)
        tab.field("Steps").set_value(250)
        tab.press("Generate")
        started.extend(tab.visit._jobs)
        tab.user.client.delete()

    visiting(studio, "Generate", steps)
    assert started[0].wait(60)
    assert started[0].state == "cancelled"


def test_zip_holds_all_images_in_the_chosen_format_with_their_manifest(studio):
    async def steps(tab):
        await generate(tab, 3)
        tab.field("Format").set_value("dicom")
        tab.press("Download ZIP with manifest")
        answer = await tab.user.download.next()
        names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
        assert sum(name.endswith(".dcm") for name in names) == 3
        assert "manifest.csv" in names

    visiting(studio, "Generate", steps)


def test_a_generated_image_can_be_edited(studio):
    async def steps(tab):
        await generate(tab, 1)
        open_picture(tab).press("Edit this image")
        editor = Tab(tab.user, "Edit")
        assert editor.pictures("generated") == ["Image: no_cardiomegaly"]
        assert editor.field("Class of the image").value == 0
        assert editor.field("Show as class").value == 1

    visiting(studio, "Generate", steps)


def test_the_nearest_training_images_are_shown_as_real_with_their_distance(studio, monkeypatch):
    found = [[Neighbour(torch.ones(1, *SIZE), "cardiomegaly", 0.8126)]]
    monkeypatch.setattr(tasks, "nearest", lambda studio, images: studio.jobs.submit("nearest", lambda job: found))
    studio.data = RealImages()

    async def steps(tab):
        await generate(tab, 1)
        dialog = open_picture(tab)
        dialog.press("Nearest training images")
        await dialog.until("cardiomegaly · distance 0.813")
        assert dialog.pictures("real") == ["Training image"]

    visiting(studio, "Generate", steps)


def test_without_data_no_nearest_training_images_are_offered(studio):
    async def steps(tab):
        await generate(tab, 1)
        assert not open_picture(tab).all(ui.button, "Nearest")

    visiting(studio, "Generate", steps)


def test_images_are_checked_for_copies_where_an_audit_has_a_guard(studio, monkeypatch):
    verdict = Verdict(torch.tensor([False, True]), torch.tensor([0.9, 0.1]), torch.tensor([0, 0]))
    monkeypatch.setattr(tasks, "check_copies", lambda studio, images: studio.jobs.submit("check", lambda job: verdict))
    studio.audit = SimpleNamespace(guard="a guard", verdict="No copy was found.")

    async def steps(tab):
        assert tab.says("Audit of the weights: No copy was found.")
        await generate(tab, 2)
        await tab.until("1 image may be a copy of a training image: number 2.")

    visiting(studio, "Generate", steps)


@pytest.mark.parametrize("edit", [name for name in USED if name not in ("classify", "anomaly_map")])
def test_an_uploaded_image_is_shown_before_and_after_an_edit_with_the_difference(studio, edit):
    async def steps(tab):
        await tab.upload(png(), "scan.png")
        tab.field("Edit").set_value(edit)
        if edit in ("counterfactual", "variations"):
            tab.field("Class of the image").set_value(0)  # which need not be found then
        if edit == "inpaint":
            tab.all(MaskCanvas)[0].mask[..., 4:8, 4:8] = True
        if edit == "variations":
            tab.field("Images").set_value(1)
        tab.press("Apply")
        await tab.until("Done in")
        assert tab.pictures("uploaded")[-1] == "Before the edit"
        assert tab.pictures("edited") == ["After the edit"]
        assert tab.says("brighter by")

    visiting(studio, "Edit", steps)


def test_an_anomaly_map_has_a_score_and_a_legend(studio):
    async def steps(tab):
        await tab.upload(png(), "scan.png")
        tab.field("Edit").set_value("anomaly_map")
        tab.press("Apply")
        await tab.until("Done in")
        assert tab.says("Score 0.")
        assert tab.says("changed by")

    visiting(studio, "Edit", steps)


def test_classes_are_shown_with_probabilities_that_are_said_to_be_uncalibrated(studio, monkeypatch):
    monkeypatch.setattr(class_task, "CLASSIFY_LEVELS", 2)

    async def steps(tab):
        await tab.upload(png(), "scan.png")
        tab.field("Edit").set_value("classify")
        tab.press("Apply")
        await tab.until("Not calibrated")
        assert tab.says("no_cardiomegaly")
        assert sum(element.text.endswith("%") for element in tab.all(TextElement)) == 2

    visiting(studio, "Edit", steps)


def test_an_edit_shows_the_settings_that_it_uses_and_no_others(studio):
    titles = {"strength": "Strength", "guidance_scale": "Guidance", "smoothing": "Smoothing, in pixels"}

    async def steps(tab):
        for edit, used in USED.items():
            tab.field("Edit").set_value(edit)
            shown = {slider.props["aria-label"] for slider in tab.all(ui.slider)} - {"Brush width"}
            assert shown == {title for name, title in titles.items() if name in used}
            assert tab.says(WORDS[edit][1])

    visiting(studio, "Edit", steps)


def test_a_file_that_is_no_image_is_named_and_refused(studio):
    async def steps(tab):
        for content, name in ((b"no image", "notes.png"), (b"", "empty.png")):
            await tab.upload(content, name)
            await tab.until(name)
        tab.press("Apply")
        assert tab.says("Choose an image first")

    visiting(studio, "Edit", steps)


def test_a_mask_of_another_size_is_refused(studio):
    async def steps(tab):
        await tab.upload(png(), "scan.png")
        tab.field("Edit").set_value("inpaint")
        await tab.upload(png((16, 16), 255), "mask.png", place=1)
        await tab.until("mask.png")
        assert not tab.all(MaskCanvas)[0].mask.any()

    visiting(studio, "Edit", steps)


def test_an_empty_mask_is_refused(studio):
    async def steps(tab):
        await tab.upload(png(), "scan.png")
        tab.field("Edit").set_value("inpaint")
        tab.press("Apply")
        assert tab.says("The mask is empty")

    visiting(studio, "Edit", steps)


def test_a_drawn_mask_is_true_where_it_is_opaque():
    picture = Image.new("RGBA", (3, 2))
    picture.putpixel((2, 0), (0, 0, 0, 255))
    picture.putpixel((0, 1), (0, 0, 0, 100))
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert decoded(url, (2, 3)).tolist() == [[[[False, False, True], [False, False, False]]]]
    with pytest.raises(ValueError, match="mask must be 4 x 4 pixels"):
        decoded(url, (4, 4))


def test_frames_between_two_seeds_are_shown_one_at_a_time_and_as_a_film(studio):
    async def steps(tab):
        tab.field("Frames").set_value(3)
        tab.press("Interpolate")
        await tab.until("Frame 1 of 3")
        assert tab.pictures("generated") == ["A frame of the interpolation"]
        tab.slider("Frame").set_value(3)
        assert tab.says("Frame 3 of 3")
        tab.press("Download film (animated PNG)")
        answer = await tab.user.download.next()
        with Image.open(io.BytesIO(answer.content)) as film:
            assert film.n_frames == 4

    visiting(studio, "Interpolate", steps)


def test_frames_between_images_are_marked_as_edited(studio):
    async def steps(tab):
        await generate(tab, 2)
        film = Tab(tab.user, "Interpolate")
        film.all(ui.radio)[0].set_value("images")
        for place, title in enumerate(("First image", "Last image")):
            film.click(film.all(ui.button, "Use generated")[place])
            film.click(film.all(ui.menu_item)[-1])  # of the menu that was opened last
            assert film.pictures("generated")[place] == f"{title}: no_cardiomegaly"
        film.field("Frames").set_value(2)
        film.press("Interpolate")
        await film.until("Frame 1 of 2")
        assert film.pictures("edited") == ["A frame of the interpolation"]

    visiting(studio, "Generate", steps)


def test_a_quiz_is_answered_by_keys_and_ends_with_score_and_csv(studio):
    studio.data = RealImages()

    async def steps(tab):
        tab.field("Questions").set_value(4)
        tab.field("Reader (optional)").set_value("R1")
        tab.press("Start")
        stage = next(element for element in tab.all(ui.element) if "stage" in element.classes)
        for question in range(1, 5):
            await tab.until(f"Question {question} of 4")
            assert not tab.pictures("generated")
            UserInteraction(tab.user, {stage}, None).trigger("keydown", {"key": "x", "repeat": False})
            UserInteraction(tab.user, {stage}, None).trigger("keydown", {"key": "ArrowLeft", "repeat": False})
        assert tab.says("2 of 4 correct")
        assert tab.says("95% interval 15% to 85%")
        assert len(tab.pictures("generated")) == len(tab.pictures("real")) == 4
        tab.press("Download answers as CSV")
        rows = list(csv.DictReader(io.StringIO((await tab.user.download.next()).text)))
        assert [row["question"] for row in rows] == ["1", "2", "3", "4"]
        assert {row["reader"] for row in rows} == {"R1"}
        assert {row["chosen"] for row in rows} == {"left"}
        assert sorted(row["real"] for row in rows) == ["left", "left", "right", "right"]

    visiting(studio, "Quiz", steps)


def test_without_data_the_quiz_says_what_it_needs(studio):
    async def steps(tab):
        assert tab.says("--data DIR")
        assert not tab.all(ui.button)

    visiting(studio, "Quiz", steps)


def test_the_model_and_its_limits_are_described(studio):
    async def steps(tab):
        for words in ("24 x 16 pixels, gray", "557 images", "not for diagnosis", "still shows its patient"):
            assert tab.says(words)

    visiting(studio, "About", steps)
