import io
import json
import logging
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ms_diffusion.errors import UserError
from ms_diffusion.metrics import Metrics

NAMES = ("loss", "lr", "grad_norm", "loss_scale", "skipped", "skipped_total", "images_per_second", "seconds_per_step",
         "memory_mb")


def figures(step):
    """Others at each step, of the sizes that they have in a run."""
    values = np.random.default_rng(step).random(len(NAMES))
    return dict(zip(NAMES, values * [1, 1e-4, 10, 65536, 1, 1, 1e4, 1, 1e4]))


def jsonl(folder):
    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def shown(folder):
    """What TensorBoard shows: tag -> [(step, value)], without its thinning out."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events, {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def agree(folder):
    """Is every scalar of metrics.jsonl, and no other, in TensorBoard, in float32? Returns the lines."""
    lines, (_, scalars) = jsonl(folder), shown(folder)
    expected = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and value is not None:
                expected.setdefault(name, []).append((line["step"], float(np.float32(value))))
    assert scalars == expected
    return lines


def test_tensorboard_shows_every_figure_of_metrics_jsonl(tmp_path):
    metrics = Metrics(tmp_path)
    for step in range(10, 60, 10):
        metrics.write(step, figures(step))
        assert agree(tmp_path)[-1] == {"step": step, **figures(step)}, "at once, not at the end"
    assert list(agree(tmp_path)[0]) == ["step", *NAMES]


def test_what_is_no_number_is_null_and_left_out(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.write(1, {"loss": math.nan, "grad_norm": math.inf, "lr": None, "skipped": 3})
    metrics.write(2, {"loss": 0.5, "grad_norm": -math.inf, "lr": 0.1, "skipped": 0})
    assert agree(tmp_path) == [
        {"step": 1, "loss": None, "grad_norm": None, "lr": None, "skipped": 3},
        {"step": 2, "loss": 0.5, "grad_norm": None, "lr": 0.1, "skipped": 0},
    ]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_pictures(shape, tmp_path):
    grid = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Metrics(tmp_path).image(40, grid)
    (image,) = shown(tmp_path)[0].Images("samples")
    assert (image.step, image.height, image.width) == (40, 5, 7)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), grid)


def test_a_pil_picture_is_one(tmp_path):
    Metrics(tmp_path).image(1, Image.new("RGB", (7, 5), "red"))
    assert shown(tmp_path)[0].Images("samples")[0].width == 7


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    """Ended behind its checkpoint, three times: at step 50 from 0, at 40 from 20, at 30 from 20."""
    for start, end in ((0, 50), (20, 40), (20, 30)):
        metrics = Metrics(tmp_path, start)
        for step in range(start + 10, end + 1, 10):
            metrics.write(step, {"loss": step + end / 1000})
            metrics.image(step, np.full((2, 2), step, np.uint8))
    assert [line["loss"] for line in agree(tmp_path)] == [10.05, 20.05, 30.03]
    assert [image.step for image in shown(tmp_path)[0].Images("samples")] == [10, 20, 30]


@pytest.mark.parametrize(
    "torn", [b'{"step": 30, "lo', b'{"step": 30, "loss": 1.0}', b"\0\0\0\0", b"\xff\xfe\n", b"3\n", b"{}\n"]
)
def test_a_torn_last_line_is_dropped(torn, tmp_path):
    whole = b'{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(whole + torn)
    Metrics(tmp_path, 40, tensorboard=False).write(50, {"loss": 0.25})
    assert [line["step"] for line in jsonl(tmp_path)] == [10, 20, 50]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(whole)


def test_a_torn_event_hides_nothing_written_later(tmp_path):
    Metrics(tmp_path).write(10, {"loss": 1.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    Metrics(tmp_path, 10).write(20, {"loss": 2.0})
    file.write_bytes(content + content[-30:-3])
    assert shown(tmp_path)[1] == {"loss": [(10, 1.0), (20, 2.0)]}


def test_without_tensorboard(tmp_path):
    metrics = Metrics(tmp_path, tensorboard=False)
    metrics.write(1, {"loss": 1.0})
    metrics.image(1, np.zeros((2, 2), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_costs_lines_and_one_warning_a_file(tmp_path, caplog):
    metrics = Metrics(tmp_path)
    files = [tmp_path / "metrics.jsonl", tmp_path / "tensorboard" / "events.out.tfevents.000000"]
    for file in files:
        file.symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        metrics.write(1, {"loss": 1.0})
        metrics.write(2, {"loss": 2.0})
        metrics.image(2, np.zeros((2, 2), np.uint8))
    assert sorted(record.args[0] for record in caplog.records) == files
    for file in files:
        file.unlink()
    metrics.write(3, {"loss": 3.0})
    assert [line["step"] for line in agree(tmp_path)] == [3]


def test_a_folder_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(UserError, match="cannot write .*tensorboard"):
        Metrics(tmp_path)


def test_tensorboards_own_command_reads_it(tmp_path):
    metrics = Metrics(tmp_path)
    for step in (10, 20):
        metrics.write(step, figures(step))
    command = [sys.executable, "-m", "tensorboard.main", "--inspect", "--logdir", str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    tags, statistics = output.split("Event statistics")
    assert all(f"   {name}\n" in tags for name in NAMES), output
    (scalars,) = re.findall(r"^scalars\n((?:   .*\n)+)", statistics, flags=re.M)
    assert dict(line.split(maxsplit=1) for line in scalars.splitlines()) == {
        "first_step": "10", "last_step": "20", "max_step": "20", "min_step": "10", "num_steps": "2",
        "outoforder_steps": "[]",
    }
