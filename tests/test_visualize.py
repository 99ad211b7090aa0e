import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ms_diffusion import visualize
from ms_diffusion.errors import UserError


def test_grid_puts_every_pixel_in_its_place():
    images = np.arange(5 * 6, dtype=np.uint8).reshape(5, 1, 2, 3)
    grid = np.asarray(visualize.make_grid(images, columns=3, cell=5))  # too small to be enlarged
    assert grid.shape == (2 + 2 * 4, 2 + 3 * 5)
    for index, image in enumerate(images):
        top, left = 2 + index // 3 * 4, 2 + index % 3 * 5
        assert np.array_equal(grid[top : top + 2, left : left + 3], image[0])
    assert np.all(grid[6:8, 12:15] == 255), "the place of a sixth image is blank"


def test_grid_enlarges_by_a_whole_factor():
    images = np.array([10, 200], np.uint8).reshape(2, 1, 1, 1) * np.ones((1, 1, 4, 4), np.uint8)
    grid = np.asarray(visualize.make_grid(images, cell=15))
    assert grid.shape == (2 + 14, 2 + 2 * 14)
    assert np.all(grid[2:14, 2:14] == 10) and np.all(grid[2:14, 16:28] == 200)


def test_grid_is_nearly_square_and_keeps_colour():
    images = np.zeros((10, 3, 60, 60), np.uint8)
    images[:, 0] = 200
    grid = visualize.make_grid(images)
    assert grid.mode == "RGB" and grid.size == (2 + 4 * 62, 2 + 3 * 62)
    assert grid.getpixel((5, 5)) == (200, 0, 0)


@pytest.mark.parametrize("timesteps", [2, 37, 50, 200, 1000])
def test_frame_steps(timesteps):
    steps = visualize.frame_steps(timesteps)
    assert steps[0] == 0 and steps[-1] == timesteps - 1 and len(steps) == min(50, timesteps)


def test_gif_holds_every_frame(tmp_path):
    pictures = [visualize.make_grid(np.full((1, 1, 8, 8), value, np.uint8)) for value in (0, 90, 180)]
    visualize.save_gif(pictures, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        frames = [(f.convert("L").getpixel((9, 9)), f.info["duration"]) for f in ImageSequence.Iterator(gif)]
        assert gif.info["loop"] == 0
    assert frames == [(0, 60), (90, 60), (180, 1500)]


def test_pictures_that_cannot_be_written(tmp_path):
    picture = visualize.make_grid(np.zeros((1, 1, 8, 8), np.uint8))
    for path in (tmp_path / "absent" / "a.png", tmp_path / "a.nonsense"):
        with pytest.raises(UserError, match="cannot write the picture"):
            visualize.save_picture(picture, path)
    with pytest.raises(UserError, match="cannot write the GIF"):
        visualize.save_gif([picture], tmp_path / "absent" / "a.gif")


def test_suffixes():
    assert {".png", ".jpg", ".gif"} <= set(visualize.picture_suffixes())


def test_loss_curve_leaves_out_skipped_lines(tmp_path):
    lines = [{"step": step, "loss": loss, "lr": 0.1} for step, loss in ((1, 1.0), (2, None), (3, 0.5))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    visualize.plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 100).sum()
    assert blue > 100, "the curve is not there"


def test_loss_curve_beside_a_reference(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"step": s, "loss": 0.5, "lr": 0.1}) for s in (1, 9)))
    (tmp_path / "other.json").write_text(json.dumps({"source": "other", "steps": [0, 5, 99], "loss": [1, 0.7, 0.1]}))
    visualize.plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", tmp_path / "other.json")
    with Image.open(tmp_path / "loss.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = (pixels[..., 0] - pixels[..., 2] > 120).sum()
    assert red > 100, "the other run's points are not there"


def test_a_run_of_skipped_steps_has_an_empty_curve(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 4, "loss": None, "lr": 0.1}))
    (tmp_path / "other.json").write_text(json.dumps({"source": "other", "steps": [5], "loss": [1]}))
    visualize.plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", tmp_path / "other.json")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > picture.height


def test_plot_of_the_bound(tmp_path):
    visualize.plot_bound(np.array([2.0, *np.geomspace(0.3, 1e-4, 99)]), 1e-6, tmp_path / "bound.png")
    with Image.open(tmp_path / "bound.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert (pixels[..., 2] - pixels[..., 0] > 100).sum() > 100, "L_{t-1} is not there"
    assert (pixels[..., 0] - pixels[..., 2] > 120).sum() > 10, "L_0 is not there"


def test_forward_figure(tmp_path):
    image = np.asarray(Image.open(visualize.photograph()).resize((32, 32))).transpose(2, 0, 1)
    visualize.plot_forward([image, image], [0], tmp_path / "forward.png")
    with Image.open(tmp_path / "forward.png") as picture:
        assert picture.width > 1.5 * picture.height


def test_a_row_for_each_label():
    """Six gray images whose level says which label they have, in turn."""
    images = np.array([10, 20, 30, 11, 21, 31], np.uint8).reshape(6, 1, 1, 1)
    grid = np.asarray(visualize.label_grid(images, [0, 1, 2, 0, 1, 2], cell=1))
    assert grid.shape == (2 + 3 * 3, 2 + 2 * 3)
    assert grid[2::3, 2::3].tolist() == [[10, 11], [20, 21], [30, 31]]
    for labels in ([0, 1, 2, 0, 1, 1], [4] * 6):
        plain = np.asarray(visualize.label_grid(images, labels, cell=1))
        assert np.array_equal(plain, np.asarray(visualize.make_grid(images, cell=1)))


def test_pictures_side_by_side():
    left, right = (Image.new("L", size, gray) for size, gray in (((2, 1), 10), ((1, 3), 20)))
    canvas = np.asarray(visualize.side_by_side([left, right], gap=1))
    assert canvas.tolist() == [[255, 255, 255, 20], [10, 10, 255, 20], [255, 255, 255, 20]]
