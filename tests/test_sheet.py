"""The results sheet: one page that needs nothing else."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from course.grader import sheet
from course.grader.check import Both
from course.grader.grade import ExerciseResult, Row
from course.grader.submission import File
from ms_diffusion import checkpoint
from ms_diffusion.config import Config
from ms_diffusion.errors import UserError
from ms_diffusion.visualize import make_grid

TINY = [
    "--model.dim=8", "--model.dim_mults=[1]", "--model.convnext_mult=1", "--diffusion.timesteps=30",
    "--train.batch_size=4", "--train.sample_every=0", "--train.log_every=1", "--train.steps=2", "--runtime.device=CPU",
    "--runtime.mode=pynative",
]
RESULTS = [
    ExerciseResult(
        1, Both("Schedules", "调度"), [Row("1.1", "linear", 2, 2), Row("1.2", "cosine", 0, 3, Both("a<b", "甲<乙"))]
    ),
    ExerciseResult(2, Both("Noise", "噪声"), [Row("2.1", "extract", 4, 4)]),
]
FILES = {1: File("ex01_schedule.py", b"one"), 2: File("ex02_q_sample.py", b"two")}


class Page(HTMLParser):
    """Checks that tags are closed in order; collects text by tag, images, and what would be fetched."""

    VOID = ("meta", "img", "link")

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.images, self.fetched = [], {}, [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes["src"])
        self.fetched += [value for key, value in attributes.items() if key in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        self.text[tag] = f"{self.text.get(tag, '')}{data}\n"


def picture(source):
    kind, _, content = source.partition("base64,")
    assert kind == "data:image/png;"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    image.load()
    return image


@pytest.fixture
def run(tmp_path):
    """A run folder with figures and a picture, and no checkpoint."""
    (tmp_path / "samples").mkdir()
    checkpoint.write_config(tmp_path, Config())
    lines = [{"step": step, "loss": 1 / step, "lr": 1e-3} for step in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, gray in ((50, 0), (100, 255)):
        make_grid(np.full((4, 1, 8, 8), gray, np.uint8)).save(tmp_path / "samples" / f"step_{step:08d}.png")
    return tmp_path


def test_the_page_has_everything_and_fetches_nothing(run):
    page = sheet.render(RESULTS, FILES, 7, "Li <Lei> & 李雷", sheet.read_training(str(run)))
    parsed = Page(page)
    text = "".join(parsed.text.values())
    assert "Li <Lei> & 李雷" in text and "a<b" in text and "甲<乙" in text and "<Lei>" not in page
    assert "6 / 9" in text and "2 / 5" in text and "4 / 4" in text
    assert "mindspore 2." in text and re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d", text)
    assert "digits" in text and "100" in text
    late = np.mean([1 / step for step in range(91, 101)])
    assert float(re.search(r"([\d.]+) \(l2\)", text)[1]) == pytest.approx(late, 1e-3)
    assert all(source.startswith("data:image/png;") for source in parsed.fetched) and len(parsed.images) == 2
    assert not re.search(r"https?:|@import|url\(|<script", page)
    curve, samples = map(picture, parsed.images)
    assert curve.width > 400
    assert np.asarray(samples.convert("L")).min() > 200  # the newest picture, which is white


def test_the_page_without_a_training_says_so():
    page = sheet.render(RESULTS, FILES, 7, None, None)
    assert "No training was handed in." in page and Page(page).images == []


def test_a_run_without_pictures_is_sampled(run_script, tmp_path):
    run = tmp_path / "run"
    assert run_script("train", "--out", run, *TINY)[0] == 0
    assert not list((run / "samples").glob("*.png"))
    training = sheet.read_training(str(run))
    assert "sampled for this sheet after step 2: DDIM, 20 steps" in training.caption.en
    image = Image.open(io.BytesIO(training.samples))
    assert image.width == image.height == 5 * 58 + 2  # 25 images of 8x8, seven times enlarged


@pytest.mark.parametrize("name, content, message", [
    ("metrics.jsonl", b"<script>", "holds no figures"), ("metrics.jsonl", b"", "holds no figures"),
    ("metrics.jsonl", b'{"step": 1, "loss": "<b>", "lr": 1}\n', "holds no figures"),
    ("metrics.jsonl", b'{"step": 1}\n', "holds no figures"), ("metrics.jsonl", b"\xff", "holds no figures"),
    ("samples/step_00000100.png", b"GIF89a", "cannot be read as a picture"),
    ("samples/step_<b>.png", b"", "cannot be read as a picture"), ("metrics.jsonl", b"[" * 100_000, "holds no figures"),
    ("config.yaml", b"model: {dim: !!python/object/apply:os.system [true]}", "config.yaml"),
])
def test_a_run_that_cannot_be_read_is_a_mistake_of_one_line(run, name, content, message):
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        sheet.read_training(str(run))
    assert "\n" not in str(raised.value)


def test_the_command_writes_the_sheet(run_script, run, tmp_path):
    (tmp_path / "work").mkdir()
    source = Path(__file__).parent / "solutions" / "plain" / "ex01_schedule.py"
    (tmp_path / "work" / "ex01_schedule.py").write_bytes(source.read_bytes())
    status, out, _ = run_script(
        "grade", tmp_path / "work", "--exercise", 1, "--report", tmp_path / "sheet.html", "--name", "李雷", "--run", run
    )
    assert status == 0 and "sheet.html" in out
    page = Page((tmp_path / "sheet.html").read_text(encoding="utf-8"))
    assert "8 / 8" in page.text["th"] and "李雷" in page.text["td"] and len(page.images) == 2
    for words, message in [
        (["--name", "Li Lei"], "add --report"), (["--report", tmp_path / "sheet.pdf"], "must end in .html"),
        (["--report", tmp_path / "sheet.html", "--run", tmp_path / "nothing"], "nothing"),
    ]:
        status, _, err = run_script("grade", tmp_path / "work", *words)
        assert status == 2 and message in err and err.count("\n") == 1
