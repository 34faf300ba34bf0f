"""A studio in a process of its own, and Chromium to use it as a person would."""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
PATIENCE = 90.0
"""Seconds to wait for anything: a busy machine is slow."""


@contextmanager
def running_studio(log, *arguments):
    """Run ``medfusion studio`` on a free port, and yield the address that it prints."""
    command = [sys.executable, "-m", "medfusion_monai", "studio", "--port", "0", *arguments]
    with open(log, "w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            yield until(lambda: _address(log, process), seconds=300)
        finally:
            process.terminate()


def _address(log, process):
    assert process.poll() is None, log.read_text()
    found = re.search(r"http://\S+", log.read_text())
    return found and found[0]


def until(condition, seconds=PATIENCE):
    """Return what a condition gives once it holds; an exception counts as not yet."""
    end, problem = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except AssertionError:
            raise
        except Exception as error:
            problem = error
        time.sleep(0.2)
    raise TimeoutError(f"nothing after {seconds:g} s") from problem


@contextmanager
def open_browser(folder):
    """Start Chromium with an empty profile whose downloads go to a folder."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_page_load_timeout(PATIENCE)
        driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder / "downloads")}
        )
        driver.get("about:blank")
        driver.get_log("performance")  # of the browser's own first page
        yield Browser(driver, folder / "downloads")
    finally:
        driver.quit()


class Browser:
    """What a person sees and does."""

    def __init__(self, driver, downloads):
        self.driver, self.downloads, self.asked = driver, downloads, set()

    def set_width(self, width, height=900):
        """Take the screen of a phone or a desk."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def open(self, address):
        """Open a page and wait for it."""
        self.driver.get(address)
        until(lambda: self.buttons("Generate"))
        time.sleep(0.5)  # for the connection of the page, after which its buttons work

    def all(self, selector):
        """Return the visible elements of a CSS selector."""
        return [element for element in self.driver.find_elements("css selector", selector) if element.is_displayed()]

    def buttons(self, title):
        return [button for button in self.all("button") if button.text.strip() == title]

    def press(self, title):
        """Click a button."""
        button = until(lambda: self.buttons(title))[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def choose_tab(self, name):
        next(tab for tab in self.all("[role=tab]") if tab.text == name).click()
        until(lambda: self.all("[role=tab][aria-selected=true]")[0].text == name)
        time.sleep(0.5)

    def field(self, label):
        return until(lambda: self.all(f"input[aria-label='{label}']")[0])

    def fill(self, label, value):
        """Write into a field."""
        from selenium.webdriver.common.keys import Keys

        self.field(label).send_keys(Keys.CONTROL, "a")
        self.field(label).send_keys(str(value))

    def choose(self, label, option):
        """Choose from a list."""
        until(lambda: [field for field in self.all(".q-select") if field.text.split("\n")[0] == label])[0].click()
        until(lambda: [item for item in self.all("[role=option]") if item.text == option])[0].click()
        until(lambda: not self.all("[role=option]"))

    def upload(self, path, place=0):
        """Choose a file of one of the visible upload buttons' inputs."""
        panel = self.all("[role=tabpanel]")[0]
        panel.find_elements("css selector", "input[type=file]")[place].send_keys(str(path))

    def wait_for(self, words):
        """Wait until the page says something."""
        body = self.driver.find_element("css selector", "body")
        try:
            until(lambda: words in body.text)
        except TimeoutError as error:
            raise AssertionError(f"'{words}' does not appear; the page says: {body.text}") from error

    def downloaded(self, name):
        """Return the content of a downloaded file."""
        path = self.downloads / name
        return until(lambda: path.is_file() and path.read_bytes())

    def requests(self):
        """Return the addresses that pages have asked for since the browser was started."""
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                self.asked.add(event["params"].get("url") or event["params"]["request"]["url"])
        return self.asked
