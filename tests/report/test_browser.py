import json
import re
import shutil
import subprocess

import pytest

from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.report.write import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"),
]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"),
    "--allow-file-access-from-files",  # so that the frame below can be measured
]
# A window cannot be as narrow as a phone, a frame can.
FRAME = """<!DOCTYPE html><title></title><iframe width="{width}" height="900" src="report.html"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const images = [...page.images];
  document.title = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    images: images.map(image => image.naturalWidth),
    tables: page.querySelectorAll("table").length,
    hidden: [...page.querySelectorAll(".scroll")].map(box => box.scrollWidth - box.clientWidth),
    captions: Math.max(...[...page.querySelectorAll("caption span, figcaption")].map(
      caption => caption.getBoundingClientRect().right)),
    font: parseFloat(getComputedStyle(page.querySelector("td")).fontSize),
  }});
}};</script>"""


def chromium(folder, *arguments):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()


@pytest.fixture
def report(results, pictures, tmp_path):
    """Write a report with names that are long and cannot be wrapped between words."""
    long_name = "latent_diffusion_with_guidance" * 4
    results["sets"][0]["name"] = results["fidelity"][0]["name"] = long_name
    results["fidelity"][2]["class_name"] = results["fidelity"][3]["class_name"] = "class" * 30
    results["repeat"]["commands"].append("medfusion " + "x" * 300)
    results["title"] += " " + "y" * 80
    results["warnings"].append("z" * 200)
    write_report(results, pictures, tmp_path, fidelity=fidelity_columns())
    return tmp_path / "report.html"


def measured(report, width):
    (report.parent / "frame.html").write_text(FRAME.format(width=width))
    page = chromium(report.parent, "--virtual-time-budget=5000", "--dump-dom", f"file://{report.parent}/frame.html")
    return json.loads(re.search("<title>(.*?)</title>", page)[1])


@pytest.mark.parametrize("width", [360, 390, 1200])
def test_page_is_no_wider_than_the_screen_and_shows_its_pictures(report, width):
    found = measured(report, width)
    assert found["width"] <= width
    picture, plot = found["images"]
    assert plot > 0
    assert picture == 1200
    assert found["tables"] == 9
    assert found["font"] >= 12


def test_all_columns_are_visible_on_a_wide_screen(results, pictures, tmp_path):
    for row in results["fidelity"]:
        row |= {"coverage": row["precision"], "density": {"value": 1234.567, "low": 1200.0, "high": 1250.0}}
        row["fid"] = {"value": 12345.67, "low": 10000.0, "high": 14691.34}
    for row in results["reconstructions"]:
        row |= dict.fromkeys(("ms_ssim_paper", "ssim", "lpips", "psnr"), row["ms_ssim"])
    results["features"] |= {"name": "torchvision densenet121", "is_inception": False}
    write_report(results, pictures, tmp_path, fidelity=fidelity_columns())
    assert set(measured(tmp_path / "report.html", 1200)["hidden"]) == {0}


def test_no_caption_is_cut_off_on_a_phone(report):
    assert measured(report, 390)["captions"] <= 390


def asked_of_the_network(page):
    """Return the addresses that a page requests, without the requests of the browser itself."""
    log = page.parent / "net.json"
    chromium(page.parent, f"--log-net-log={log}", "--dump-dom", f"file://{page}")
    requests = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = {request["url"] for request in requests if request.get("initiator", "not an origin") != "not an origin"}
    return sorted(url for url in asked if not url.startswith(("file:", "data:")))


def test_nothing_is_asked_of_the_network(report):
    assert asked_of_the_network(report) == []


def test_a_picture_from_elsewhere_would_be_seen(tmp_path):
    (tmp_path / "page.html").write_text("<img src='http://elsewhere.invalid/a.png'>")
    assert asked_of_the_network(tmp_path / "page.html") == ["http://elsewhere.invalid/a.png"]


def test_page_prints_to_pdf(report, tmp_path):
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}", f"file://{report}")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12
