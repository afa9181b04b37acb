import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_job import (
    CLASSES,
    read_grey_frames,
    write_config,
    write_job,
    write_multi_label_test,
    write_test,
    write_training,
)
from PIL import Image

from slowfast.visualization.report import accuracy_table, choose_videos, training_seconds, write_pictures, write_report
from slowfast.visualization.results import VideoResult, ViewTest, read_job

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Node:
    """One element: tag, attributes, children (nodes and text)."""

    def __init__(self, tag, attributes=()):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    @property
    def text(self):
        return " ".join("".join(c if isinstance(c, str) else c.text + " " for c in self.children).split())

    def walk(self):
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag=None, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        for node in self.walk():
            names = node.attributes.get("class", "").split()
            if tag in (None, node.tag) and all(
                value in names if name == "class" else node.attributes.get(name) == value
                for name, value in wanted.items()
            ):
                yield node

    def one(self, tag=None, **attributes):
        found = list(self.all(tag, **attributes))
        assert len(found) == 1, f"{tag} {attributes}: {len(found)} found"
        return found[0]

    def rows(self):
        return [[cell.text for cell in row.all("td")] for row in self.one("tbody").all("tr")]


class Tree(HTMLParser):
    """Parses a page and insists that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.root = Node("document")
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], [node.tag for node in self.open]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, attrs)
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, attrs))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(path):
    return Tree(path.read_text(encoding="utf-8")).root


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job") / "out")


@pytest.fixture(scope="module")
def page(job):
    return parse(write_report(job, read_frames=read_grey_frames))


def test_report_is_one_file_that_loads_nothing(page):
    for node in page.walk():
        for name in ("src", "href", "xlink:href"):
            value = node.attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (node.tag, value)
    assert not list(page.all("link"))
    assert "url(http" not in page.one("style").text


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [node.attributes["id"] for node in page.walk() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    links = [node.attributes["href"] for node in page.one("nav").all("a")]
    assert links == [f"#{section.attributes['id']}" for section in page.all("section")]


def test_accuracy_is_counted_from_the_results_per_video(page):
    table = page.one("table", id="accuracy")
    assert [head.text for head in table.all("th")] == ["views", "top-1 %", "top-5 %", "videos"]
    assert table.rows() == [["1 x 1", "66.67", "83.33", "24"], ["3 x 3", "83.33", "83.33", "24"]]
    cards = {card.one(class_="label").text: card.one(class_="value").text for card in page.all(class_="card")}
    assert cards["Top-1 accuracy"] == "83.3 %"
    assert cards["Chance"] == "12.5 %"
    assert cards["Test videos"] == "24"
    assert cards["Parameters"] == "31.70 M"
    assert cards["FLOPs per view"] == "6.4 G"
    assert "20 right, 4 wrong, 1 skipped" in page.one(id="results").text
    assert cards["Epochs trained"] == "6"
    assert cards["Training time"] == "72 s"  # 6 epochs of 20 steps of 0.5 s and one validation of 2 s each


def test_curves_hold_the_logged_values(page):
    drawn = {node.attributes["aria-label"]: node for node in page.one(id="training").all(class_="plot")}
    assert list(drawn) == [
        f"{name} over epochs" for name in ("Loss", "Top-1 error, %", "Top-5 error, %", "Learning rate")
    ]
    train, val = json.loads(drawn["Top-1 error, % over epochs"].attributes["data-curves"])
    assert (train["label"], val["label"]) == ("train", "validation")
    assert train["x"] == [epoch / 4 for epoch in range(1, 25)]  # a line every 5 of 20 iterations, from stdout.log
    assert val["x"] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(val["y"], 87.5 * np.exp(-np.arange(1, 7) / 2), rtol=1e-3)
    assert all(len(list(node.all("svg"))) == 1 for node in drawn.values())


def test_confusion_matrix_holds_the_counts(page):
    plot = page.one(id="confusion").one(class_="plot")
    counts = np.zeros((8, 8), dtype=int)
    for row, column, videos in json.loads(plot.attributes["data-counts"]):
        counts[row, column] = videos
    expected = np.diag([3, 3, 3, 3, 2, 2, 2, 2])
    for label in (4, 5, 6, 7):
        expected[label, (label + 1) % 8] = 1
    np.testing.assert_array_equal(counts, expected)
    assert json.loads(plot.attributes["data-names"]) == CLASSES
    names = [node.text for node in plot.all("text")]
    assert all(names.count(name) == 2 for name in CLASSES)


def test_confused_pairs_and_classes_are_named_and_escaped(page):
    pairs = page.one("table", id="confused-pairs").rows()
    assert pairs[0] == ["turn <clockwise>", "turn & back", "1", "33 %"]
    assert len(pairs) == 4
    classes = {row[0]: row[1:] for row in page.one("table", id="class-table").rows()}
    assert set(classes) == set(CLASSES)
    assert classes["move left"] == ["3", "100.0", ""]
    assert classes["bounce"] == ["3", "66.7", "move left (1)"]


def test_test_videos_show_frames_and_best_predictions(page):
    videos = list(page.one(id="videos").all("article"))
    assert [video.attributes["data-kind"] for video in videos] == ["right"] * 4 + ["wrong"] * 4
    first = videos[0]
    guesses = list(first.all(class_="guess"))
    assert len(guesses) == 3
    assert "good" in guesses[0].attributes["class"]
    images = list(first.all("img"))
    values = []
    for image in images:
        data = base64.b64decode(image.attributes["src"].partition(",")[2])
        values.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).mean())
    np.testing.assert_allclose(values, [20, 40, 60, 80, 100, 120], atol=4)  # frames 1, 3, 5, ... of 12


def test_videos_that_are_gone_or_damaged_are_said_so(page):
    wrong = [video for video in page.one(id="videos").all("article") if video.attributes["data-kind"] == "wrong"]
    notes = [video.text for video in wrong if not list(video.all("img"))]
    assert any("video_23.mp4" in text and "the file is not there" in text for text in notes)
    assert any("video_22.mp4" in text and "cannot be read any more" in text for text in notes)


def test_bad_videos_and_changed_settings_are_listed(page, job):
    assert page.one("table", id="bad-table").rows() == [["train", "2", "/data/<odd> name.mp4", "no video stream", "3"]]
    changed = {row[0]: row[1:] for row in page.one("table", id="config-changes").rows()}
    assert changed["MODEL.NUM_CLASSES"] == ["8", "400"]
    assert changed["OUTPUT_DIR"] == [str(job), "."]
    assert "NUM_GPUS" not in changed
    assert "SOLVER.BASE_LR: 0.1" in page.one("pre").text


def test_report_reads_frames_with_the_package_s_own_reader(job, tmp_path):
    videos = list(parse(write_report(job, tmp_path / "own.html", num_videos=2)).one(id="videos").all("article"))
    assert len(list(videos[0].all("img"))) == 6


def test_job_without_training_says_so(tmp_path):
    write_test(tmp_path, clips=1, crops=1, right={0, 1, 2})
    page = parse(write_report(tmp_path))
    assert "No training in this folder" in page.one(id="training").text
    assert "No config.yaml" in page.one(id="config").text
    assert page.one("table", id="accuracy").rows() == [["1 x 1", "12.50", "50.00", "24"]]
    assert page.one("table", id="class-table").rows()[0][0] == "3"  # classes go by number


def test_job_without_test_says_so(tmp_path):
    write_config(tmp_path)
    write_training(tmp_path)
    page = parse(write_report(tmp_path))
    assert "No test result" in page.one(id="results").text
    assert "No test results per video" in page.one(id="videos").text
    assert not list(page.all(id="confusion"))
    assert "None" in page.one(id="bad-videos").text


def test_final_lines_serve_where_results_per_video_are_missing(tmp_path):
    lines = [
        'json_stats: {"split": "test_final", "views": "1x3", "videos": 9, "top1_acc": "75.60", "top5_acc": "92.00"}',
        'json_stats: {"split": "test_final", "views": "2x3", "videos": 9, "top1_acc": "76.00", "top5_acc": "93.00"}',
        'json_stats: {"split": "test_final", "views": "2x3", "videos": 9, "top1_acc": "77.00", "top5_acc": "94.00"}',
        "json_stats: {broken",
    ]
    (tmp_path / "json_stats.log").write_text("\n".join(lines))
    page = parse(write_report(tmp_path))
    expected = [["1 x 3", "75.60", "92.00", "9"], ["2 x 3", "77.00", "94.00", "9"]]
    assert page.one("table", id="accuracy").rows() == expected
    assert "1 damaged lines" in page.one(id="results").text


def test_multi_label_job_shows_average_precisions(tmp_path):
    write_multi_label_test(tmp_path)
    page = parse(write_report(tmp_path))
    assert page.one("table", id="accuracy").rows() == [["1 x 1", "75.00", "4"]]
    classes = {row[0]: row[1:] for row in page.one("table", id="class-table").rows()}
    assert classes == {"0": ["2", "100.0"], "1": ["2", "75.0"], "2": ["1", "50.0"]}
    assert not list(page.all(id="confusion"))


def test_folder_without_a_job_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="OUTPUT_DIR"):
        write_report(tmp_path)


def test_pictures_are_png_files(job, tmp_path):
    paths = write_pictures(job, tmp_path / "pictures", num_videos=2, read_frames=read_grey_frames)
    assert [path.name for path in paths] == ["training.png", "classes.png", "confusion.png", "video_0.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_resumed_epochs_replace_what_they_repeat(tmp_path):
    write_training(tmp_path, epochs=6)
    write_training(tmp_path, epochs=6, first=4)
    job = read_job(tmp_path)
    assert [x for x, _ in job.history("val_epoch")] == [1, 2, 3, 4, 5, 6]
    assert len(job.history("train_iter")) == 24
    assert training_seconds(job) == pytest.approx(72)


def test_accuracy_table_lines_up():
    rows = [
        {"clips": 1, "crops": 1, "videos": 240, "top1_acc": 75.0, "top5_acc": "99.17"},
        {"clips": 10, "crops": 3, "videos": 240, "top1_acc": 90.4167, "top5_acc": 100},
    ]
    assert accuracy_table(rows).split("\n") == [
        " views  top-1 %  top-5 %  videos",
        "------  -------  -------  ------",
        " 1 x 1    75.00    99.17     240",
        "10 x 3    90.42   100.00     240",
    ]
    assert accuracy_table([{"views": 30, "map": 42.155}]) == "views  mAP %\n-----  -----\n   30  42.16"
    assert accuracy_table([]) == "no test result"


@pytest.mark.parametrize(
    ("num_right", "num_wrong", "shown"), [(10, 10, (3, 3)), (1, 10, (1, 5)), (10, 1, (5, 1)), (2, 0, (2, 0))]
)
def test_chosen_videos_are_a_mix(num_right, num_wrong, shown):
    right = [VideoResult(f"r{i}", (i % 3,), 1, ((i % 3, 0.5 + i / 100),)) for i in range(num_right)]
    wrong = [VideoResult(f"w{i}", (0,), 1, ((1, 0.5 + i / 100),)) for i in range(num_wrong)]
    chosen = choose_videos(ViewTest(1, 1, wrong + right, None, False), 6)
    assert (sum(v.right for v in chosen), sum(not v.right for v in chosen)) == shown
    mistakes = [video.path for video in chosen if not video.right]
    assert mistakes == [f"w{i}" for i in range(num_wrong - 1, num_wrong - 1 - len(mistakes), -1)]
    if num_right == 10 and num_wrong == 10:
        assert len({video.predicted for video in chosen if video.right}) == 3


def test_accuracy_table_of_a_pretraining_shows_its_loss():
    assert accuracy_table([{"views": "1x1", "loss": "0.1234567"}]).split("\n") == [
        "views     loss",
        "-----  -------",
        "1 x 1  0.12346",
    ]
