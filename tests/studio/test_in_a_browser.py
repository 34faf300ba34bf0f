"""The studio as a person uses it: a real process, a real browser."""

import csv
import io
import zipfile
from urllib.parse import urlsplit

import pytest
from PIL import Image
from studio_browser import CHROMIUM, DRIVER, open_browser, running_studio, until
from tiny_models import save, tiny

from medfusion_monai.demo.phantoms.families import prepare_phantoms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        None in (CHROMIUM, DRIVER), reason="needs Debian's browser (apt-get install chromium chromium-driver)"
    ),
]
TABS = ("Generate", "Edit", "Interpolate", "Quiz", "About")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    prepare_phantoms(folder / "data", num_images=40, size=32, seed=0)
    weights = save(tiny(image_size=(32, 32)), folder / "model.pt")
    with running_studio(folder / "log.txt", "--model", str(weights), "--data", str(folder / "data")) as address:
        yield address


@pytest.fixture(scope="module")
def started(address, tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.open(address)
        yield browser


@pytest.fixture
def browser(started, address):
    started.set_width(1280)
    started.open(address)
    for file in started.downloads.glob("*"):
        file.unlink()
    return started


def write_png(path, size=(32, 32), value=120):
    Image.new("L", size, value).save(path)
    return path


def generate(browser, count=2, steps=4):
    browser.fill("Images", count)
    browser.fill("Steps", steps)
    browser.press("Generate")


def test_images_are_sampled_and_marked_as_generated(browser):
    generate(browser)
    browser.wait_for("Done in")
    figures = until(lambda: browser.all(".grid figure.generated"))
    assert [figure.text.split("\n")[0] for figure in figures] == ["Generated"] * 2
    assert all(figure.find_element("css selector", "img").get_property("naturalWidth") == 32 for figure in figures)


def test_a_job_can_be_cancelled(browser):
    generate(browser, 64, 250)
    browser.wait_for("left")
    browser.press("Cancel")
    browser.wait_for("Cancelled")
    generate(browser, 1)
    browser.wait_for("Done in")


def test_a_reload_in_the_middle_of_a_job_frees_the_studio(browser):
    generate(browser, 64, 250)
    browser.wait_for("left")
    browser.driver.refresh()
    until(lambda: browser.buttons("Generate"))
    generate(browser, 1)
    browser.wait_for("Done in")


@pytest.mark.parametrize("width", [390, 1280])
def test_no_tab_is_wider_than_the_screen(browser, width):
    browser.set_width(width)
    generate(browser)
    browser.wait_for("Done in")
    for name in TABS:
        browser.choose_tab(name)
        assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= width, name


def test_an_uploaded_image_is_edited_and_shown_with_its_difference(browser, tmp_path):
    browser.choose_tab("Edit")
    browser.upload(write_png(tmp_path / "scan.png"))
    browser.wait_for("scan.png")
    browser.choose("Class of the image", "no_cardiomegaly")
    browser.press("Apply")
    browser.wait_for("Done in")
    figures = until(lambda: browser.all(".trio figure"))
    assert [figure.text.split("\n")[-1] for figure in figures] == ["before", "after", "difference"]
    assert browser.all(".trio figure.edited")
    browser.press("Download ZIP with manifest")
    names = zipfile.ZipFile(io.BytesIO(browser.downloaded("edited.zip"))).namelist()
    assert sorted(names) == ["manifest.csv", "scan.png"]


def test_a_mask_is_drawn_with_the_pointer(browser, tmp_path):
    from selenium.webdriver import ActionChains

    browser.choose_tab("Edit")
    browser.upload(write_png(tmp_path / "scan.png"))
    browser.choose("Edit", "Inpaint: new content under a mask")
    browser.press("Apply")
    browser.wait_for("The mask is empty")
    canvas = until(lambda: browser.all("canvas"))[0]
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(browser.driver).move_to_element(canvas).click_and_hold().move_by_offset(40, 40).release().perform()
    browser.press("Apply")
    browser.wait_for("Done in")
    assert until(lambda: browser.all(".trio figure.edited"))


def test_bad_uploads_are_explained(browser, tmp_path):
    browser.choose_tab("Edit")
    (tmp_path / "notes.png").write_text("no image")
    browser.upload(tmp_path / "notes.png")
    browser.wait_for("notes.png")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(65 * 2**20)
    browser.upload(tmp_path / "large.png")
    browser.wait_for("at most 64 MB")
    browser.upload(write_png(tmp_path / "scan.png"))
    browser.wait_for("scan.png")
    browser.choose("Edit", "Inpaint: new content under a mask")
    browser.upload(write_png(tmp_path / "mask.png", (20, 20), 255), place=1)
    browser.wait_for("mask.png")
    assert browser.all("[role=alert]")


def test_frames_are_shown_by_a_slider_and_as_a_film(browser):
    from selenium.webdriver.common.keys import Keys

    browser.choose_tab("Interpolate")
    browser.fill("Frames", 3)
    browser.press("Interpolate")
    browser.wait_for("Frame 1 of 3")
    browser.all("[role=slider][aria-label=Frame] [tabindex]")[0].send_keys(Keys.ARROW_RIGHT)
    browser.wait_for("Frame 2 of 3")
    browser.press("Download film (animated PNG)")
    with Image.open(io.BytesIO(browser.downloaded("film.png"))) as film:
        assert film.n_frames == 4


def test_a_quiz_is_answered_by_keys_and_saved_as_csv(browser):
    from selenium.webdriver.common.keys import Keys

    browser.choose_tab("Quiz")
    browser.fill("Questions", 4)
    browser.press("Start")
    for number, key in enumerate(("1", "2", Keys.ARROW_LEFT, Keys.ARROW_RIGHT), 1):
        browser.wait_for(f"Question {number} of 4")
        assert not browser.all(".stage .generated")
        browser.driver.switch_to.active_element.send_keys(key)
    browser.wait_for("of 4 correct")
    browser.press("Download answers as CSV")
    rows = list(csv.DictReader(io.StringIO(browser.downloaded("quiz.csv").decode())))
    assert [row["chosen"] for row in rows] == ["left", "right", "left", "right"]
    assert f"{sum(int(row['correct']) for row in rows)} of 4 correct" in browser.all("h3")[0].text


def test_one_image_is_downloaded_as_png_and_dicom(browser):
    generate(browser)
    browser.wait_for("Done in")
    until(lambda: browser.all(".grid .card"))[0].click()
    browser.press("DICOM")
    browser.press("PNG")
    until(lambda: sorted(path.suffix for path in browser.downloads.iterdir()) == [".dcm", ".png"])


def test_everything_is_reached_by_the_keyboard_and_focus_is_visible(browser):
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(12):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.driver.switch_to.active_element
        reached.append(focused.get_attribute("aria-label") or focused.text)
        ring = "const style = getComputedStyle(arguments[0]); return [style.outlineStyle, style.boxShadow]"
        has_ring = browser.driver.execute_script(ring, focused) != ["none", "none"]
        assert has_ring or focused.tag_name == "input", reached  # a field changes its border
        if focused.text == "Generate" and focused.tag_name == "button":
            break
    assert reached == ["Generate", "Class", "Images", "Seed", "Steps", "Guidance", "Generate"]
    focused.send_keys(Keys.ENTER)
    browser.wait_for("Done in")


def test_tabs_are_changed_by_arrow_keys(browser):
    from selenium.webdriver.common.keys import Keys

    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    for name in TABS[1:]:
        browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        until(lambda name=name: browser.driver.switch_to.active_element.text == name)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    browser.wait_for("Copies of training images")


def test_without_its_token_the_page_is_refused(browser, address):
    browser.driver.delete_all_cookies()
    browser.driver.get(address.partition("?")[0])
    browser.wait_for("a token is needed")
    browser.driver.get(address[:-1] + ("A" if address[-1] != "A" else "B"))
    browser.wait_for("a token is needed")


def test_all_inputs_have_labels_and_all_images_descriptions(browser):
    generate(browser)
    browser.wait_for("Done in")
    unnamed = """return [...document.querySelectorAll("img, input:not([type=file]), button, [role=slider], canvas")]
        .filter(part => part.offsetParent && !part.alt && !part.ariaLabel && !part.innerText
                        && !(part.labels && part.labels.length))
        .map(part => part.outerHTML.slice(0, 200))"""
    for name in TABS:
        browser.choose_tab(name)
        assert browser.driver.execute_script(unnamed) == [], name


def test_no_tab_asks_another_host(browser, address):
    browser.driver.get_log("browser")  # what earlier pages had to complain of
    browser.open(address)
    for name in TABS:
        browser.choose_tab(name)
    host = urlsplit(address).netloc
    asked = [urlsplit(url) for url in browser.requests()]
    assert {url.netloc for url in asked if url.scheme not in ("data", "blob", "about")} == {host}
    assert not [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_request_to_another_host_would_be_seen(browser):
    browser.driver.get("data:text/html,<img src='http://elsewhere.invalid/a.png'>")
    until(lambda: "http://elsewhere.invalid/a.png" in browser.requests())
    browser.asked.discard("http://elsewhere.invalid/a.png")
