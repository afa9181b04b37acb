"""The studio in a real browser: clicked through, in headless Chromium as Debian packages it."""

import base64
import http.client
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from small_run import CLASSES, write_run

from slowfast.datasets.motion import MotionSpec, write_dataset
from slowfast.visualization.studio.app import Limits, Studio
from slowfast.visualization.studio.server import StudioServer

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
WAIT_S = 120.0


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Two runs with networks, and one of boxes."""
    folder = tmp_path_factory.mktemp("browser")
    output, data = folder / "output", folder / "data"
    write_run(output / "first", data)
    write_run(output / "second", data)
    config = output / "second" / "config.yaml"
    config.write_text(config.read_text() + "SOLVER: {BASE_LR: 0.25}\n")
    write_boxes(output / "boxes", data / "test" / "bounce" / "00000.mp4")
    return output


def write_boxes(folder: Path, video: Path) -> None:
    folder.mkdir()
    (folder / "ap_per_class.csv").write_text("id,name,true_boxes,ap_percent\n1,walk,10,60.0\n")
    found = [{"box": [0.25, 0.25, 0.75, 0.75], "top": [["walk", 0.9]]}]
    line = {"video": "v", "second": 1.0, "file": str(video), "frame": 15, "found": found, "true": []}
    (folder / "key_frames.jsonl").write_text(json.dumps(line) + "\n")


@pytest.fixture(scope="module")
def server(output):
    app = Studio(output, limits=Limits(upload_bytes=4 << 20, seconds=30), device="cpu")
    made = StudioServer(app, "127.0.0.1", 0)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    app.warm()
    yield made
    made.shutdown()
    made.server_close()
    app.close()


class Page:
    """A browser at the studio."""

    def __init__(self, driver, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, place: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(self.url + place)
        self.settled()

    def until(self, what: str, script: str):
        """The value of ``script`` once it is true."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if value := self.driver.execute_script(f"return {script}"):
                return value
            time.sleep(0.1)
        raise AssertionError(f"{what} did not come; the page says: {self.text()[:500]}")

    def settled(self) -> None:
        self.until("the page", "document.getElementById('main')?.dataset.ready === 'yes'")

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def click(self, selector: str, number: int = 0) -> None:
        self.until(selector, f"document.querySelectorAll({json.dumps(selector)}).length > {number}")
        item = self.all(selector)[number]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", item)
        item.click()

    def text(self, selector: str = "main") -> str:
        return self.driver.execute_script(f"return document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def script(self, text: str):
        return self.driver.execute_script(text)

    def errors(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def page(server):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install 'slowfast[test]')")
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1280,800",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Page(driver, server.url)
    driver.quit()


def test_runs_are_ticked_and_compared(page):
    page.open()
    names = [link.text for link in page.all("#runs tbody a")]
    assert sorted(names) == ["boxes", "first", "second"]
    assert not page.all("#compare")[0].is_enabled()
    for name in ("first", "second"):
        page.click(f"input[aria-label='Compare {name}']")
    page.click("#compare")
    page.until("the comparison", "document.querySelector('#differences')")
    rows = {row.text.split()[0]: row.text.split()[1:] for row in page.all("#differences tbody tr")}
    assert rows == {"SOLVER.BASE_LR": ["0.003", "0.25", "0.1"]}
    assert len(page.all(".plot svg")) >= 4
    page.driver.back()
    page.until("the table", "document.querySelector('#runs')")
    assert page.errors() == []


def test_a_cell_leads_to_its_videos_and_a_video_is_watched(page):
    page.open()
    page.driver.find_element("link text", "first").click()
    page.until("the matrix", "document.querySelector('#confusion')")
    labels = [cell.get_attribute("aria-label") for cell in page.all("#confusion button")]
    assert f"2 of 2 videos of {CLASSES[2]} were taken for {CLASSES[0]}" in labels
    page.click(f"#confusion button[aria-label*='{CLASSES[2]} were taken']")
    page.until("the videos", "document.querySelectorAll('#behind a.video').length === 2")
    page.until(
        "their pictures", "[...document.querySelectorAll('#behind img')].every(i => i.complete && i.naturalWidth)"
    )
    page.click("#behind a.video")
    page.until("the scores", "document.querySelectorAll('#bars li').length === 3")
    assert "mistaken in the test" in page.text()
    assert page.until("the length", "document.querySelector('video').duration") == pytest.approx(32 / 15, abs=0.05)
    check_playing(page)
    check_maps(page)
    assert page.errors() == []


def check_playing(page: Page) -> None:
    """The cursor and the bars go with the video, and a click on the time line goes there."""
    page.script("document.querySelector('video').loop = false")
    page.click("#play")
    page.until("the end", "document.querySelector('video').ended")
    now = "Number(document.querySelector('.seek').getAttribute('aria-valuenow'))"
    assert page.until("the cursor", now) == pytest.approx(32 / 15, abs=0.1)
    page.click(".seek")  # its middle
    page.until("the middle", f"Math.abs({now} - 16 / 15) < 0.06")
    page.script("document.querySelector('.seek').focus()")
    page.driver.switch_to.active_element.send_keys("\ue011")  # Home
    page.until("the beginning", f"{now} === 0")
    scores = [float(score.text) for score in page.all("#bars .score")]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=0.003)


def check_maps(page: Page) -> None:
    """Maps are drawn for each pathway, and not when they are switched off."""
    drawn = (
        "(() => { const c = document.querySelector('.stage canvas'); "
        "const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height); "
        "return data.filter((v, k) => k % 4 === 3 && v > 0).length })()"
    )
    assert page.script(f"return {drawn}") == 0
    page.click("#explain")
    page.until("the pathways", "document.querySelectorAll('input[name=pathway]').length === 3")
    assert [choice.get_attribute("value") for choice in page.all("input[name=pathway]")] == ["fast", "slow", ""]
    page.until("a map", f"{drawn} > 1000")
    page.click("input[name=pathway][value='']")
    page.until("no map", f"{drawn} === 0")


def test_a_video_of_ones_own_is_dropped(page, tmp_path):
    write_dataset(
        tmp_path / "own", MotionSpec(classes=CLASSES[:1], train_per_class=0, val_per_class=0, test_per_class=1)
    )
    video = (tmp_path / "own" / "test" / CLASSES[0] / "00000.mp4").rename(tmp_path / "<i>holiday<i>.mp4")
    page.open()
    page.until("the table", "document.querySelector('#runs')")
    # As the browser would on a real drop, anywhere on the page.
    data = base64.b64encode(video.read_bytes()).decode()
    page.driver.execute_script(
        "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0)), transfer = new DataTransfer();"
        "transfer.items.add(new File([bytes], arguments[1], { type: 'video/mp4' }));"
        "dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, cancelable: true }));",
        data,
        video.name,
    )
    page.until("the scores", "document.querySelectorAll('#bars li').length === 3")
    assert page.text("h1") == "<i>holiday<i>.mp4"
    page.open("#/try")
    assert len(page.all("#uploads a.video")) == 1
    page.click("#uploads button")
    page.until("its end", "!document.querySelector('#uploads a.video')")
    assert page.errors() == []


def test_bad_files_are_named_and_the_page_goes_on(page, tmp_path, server):
    broken, text, huge = tmp_path / "broken.mp4", tmp_path / "text.mp4", tmp_path / "huge.mp4"
    broken.write_bytes(b"\x00\x00\x00\x18ftypisom" + bytes(20_000))
    text.write_text("#EXTM3U\nfile:///etc/passwd\n")
    huge.write_bytes(b"\x00\x00\x00\x18ftypisom" + bytes(5 << 20))
    page.open("#/try")
    for file, message in ((text, "not a video"), (huge, "at most 4 are taken")):
        page.all("#file")[0].send_keys(str(file))
        page.until(message, f"document.querySelector('#receiving').innerText.includes({json.dumps(message)})")
    page.all("#file")[0].send_keys(str(broken))
    page.until("two problems", "document.querySelectorAll('.problem').length === 2")
    assert "Preparing the video:" in page.text()
    assert "Predicting:" in page.text()
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    connection.request("GET", "/api/runs")
    assert connection.getresponse().status == 200
    page.errors()  # the refusals; what follows starts anew


def test_boxes_are_drawn_at_their_time_only(page):
    page.open()
    page.driver.find_element("link text", "boxes").click()
    page.click("a.video")
    page.until("the player", "document.querySelector('#boxes')")
    blue = (
        "(() => { const c = document.querySelector('.stage canvas'), x = Math.round(c.width / 4); "
        "const p = c.getContext('2d').getImageData(x, Math.round(c.height / 2), 1, 1).data; "
        "return p[3] > 0 && p[2] > p[0] })()"
    )
    page.until("the left side of the box", blue)
    page.script("document.querySelector('video').currentTime = 2")
    page.until("no box", f"!{blue}")
    page.click(".row button")  # back to the key frame
    page.until("the box", blue)
    page.click("#boxes")
    page.until("no box", f"!{blue}")
    assert page.errors() == []


def test_nothing_overflows_a_narrow_window_and_all_can_be_reached_by_key(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        run = page.script("return fetch('/api/runs').then((a) => a.json()).then((v) => v.runs[1].id)")
        for place in ("", "#/try", f"#/run/{run}", f"#/video/t-{run}-2x3-0"):
            page.open(place)
            assert page.script("return document.documentElement.scrollWidth <= innerWidth"), place
            unnamed = page.script(
                "return [...document.querySelectorAll('button, select, input:not([type=file]), a')].filter((item) => "
                "!(item.innerText || item.ariaLabel || item.labels?.length || item.title)).map((i) => i.outerHTML)"
            )
            assert unnamed == [], place
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
