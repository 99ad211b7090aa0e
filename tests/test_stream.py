"""Folders that stay on the disk: the same bits as in memory, ahead of the training, and no trace left."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ms_diffusion import data, randomness, runtime, stream
from ms_diffusion.config import DataConfig
from ms_diffusion.data import FolderDataset, ImageDataset, make_dataset
from ms_diffusion.errors import UserError

ROOT = Path(__file__).parents[1]
SIZE = 16


@pytest.fixture
def folder(tmp_path):
    """Forty pictures of many sizes, modes and formats; some are turned by EXIF."""
    path = tmp_path / "pictures"
    path.mkdir()
    generator = np.random.default_rng(0)
    modes = itertools.cycle([("RGB", ".jpg"), ("L", ".png"), ("RGBA", ".png"), ("RGB", ".gif"), ("CMYK", ".jpg")])
    for i, (mode, suffix) in zip(range(40), modes):
        height, width = generator.integers(SIZE // 2, 4 * SIZE, 2)
        pixels = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = i % 8 + 1
        options = {"exif": exif} if suffix != ".gif" else {}
        Image.fromarray(pixels, "RGBA").convert(mode).save(path / f"{i:02}{suffix}", **options)
    return path


def config(folder, **options) -> DataConfig:
    return DataConfig(name="images", folder=str(folder), image_size=SIZE, **options)


def plan(num_images, steps, start=0, batch=6):
    """What a training loop asks for: a function of seed and step."""
    for step in range(start, steps):
        generator = randomness.step_generator(3, step)
        flip = generator.random(batch) < 0.5 if step % 2 else None
        yield randomness.batch_indices(3, step, batch, num_images), flip


TWO = pytest.param(2, marks=pytest.mark.skipif(runtime.cores() < 2, reason="needs two cores"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [None, 1, TWO])
def test_the_bits_are_those_of_the_folder_in_memory(folder, channels, workers):
    in_memory, streamed = (make_dataset(config(folder, memory=memory), channels) for memory in (1.0, 0.0))
    assert isinstance(in_memory, ImageDataset) and isinstance(streamed, FolderDataset)
    assert len(in_memory) == len(streamed) == 40 and in_memory.name == streamed.name == "images"
    expected = [in_memory.batch(*step) for step in plan(40, 15)]
    for dataset in (in_memory, streamed):
        batches = list(stream.batches(dataset, plan(40, 15), workers))
        assert len(batches) == 15
        for batch, wanted in zip(batches, expected):
            assert batch.dtype == np.float32 and batch.flags.c_contiguous and batch.shape == (6, channels, SIZE, SIZE)
            np.testing.assert_array_equal(batch, wanted)


def test_resuming_in_the_middle_gives_the_same_batches(folder):
    dataset = make_dataset(config(folder, memory=0), 3)
    whole = list(stream.batches(dataset, plan(40, 12)))
    rest = list(stream.batches(dataset, plan(40, 12, start=7)))
    assert len(rest) == 5
    np.testing.assert_array_equal(rest, whole[7:])


def test_only_what_fits_into_the_memory_granted_is_kept_there(folder):
    decoded = 40 * 3 * SIZE * SIZE / 2**30
    assert isinstance(make_dataset(config(folder, memory=decoded), 3), ImageDataset)
    assert isinstance(make_dataset(config(folder, memory=decoded * 0.999), 3), FolderDataset)
    assert isinstance(make_dataset(config(folder, memory=decoded * 0.999), 1), ImageDataset)


def test_batches_of_different_sizes_and_an_empty_plan(folder):
    dataset = make_dataset(config(folder, memory=0), 1)
    sizes = [3, 1, 8]
    batches = list(stream.batches(dataset, ((np.arange(size), None) for size in sizes)))
    assert [len(batch) for batch in batches] == sizes
    assert list(stream.batches(dataset, iter(()))) == []


def test_a_folder_refuses_the_indices_that_memory_refuses(folder):
    for dataset in (make_dataset(config(folder, memory=memory), 1) for memory in (0, 1)):
        for indices, flip in (([True], None), ([[0]], None), ([0.5], None), ([0, 1], [1, 0]), ([0, 1], [True])):
            with pytest.raises(ValueError):
                dataset.batch(indices, flip)
        with pytest.raises(IndexError):
            dataset.batch([40])
        np.testing.assert_array_equal(dataset.batch([-1]), dataset.batch([39]))


# Bad pictures


def damage(path: Path) -> Path:
    """Cuts the file in half, so that its header stays whole."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def in_turn(num_images, batch=4):
    """Every picture in the order of the paths, without end."""
    for step in itertools.count():
        yield np.arange(step * batch, (step + 1) * batch) % num_images, None


def test_a_bad_header_is_refused_before_the_first_step(folder):
    (folder / "07.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="1 of 40 pictures cannot be decoded, the first is .*07.png .not a picture"):
        make_dataset(config(folder, memory=0), 3)


@pytest.mark.parametrize("lost", [False, True], ids=["truncated", "deleted"])
def test_a_picture_that_goes_bad_in_mid_run_ends_it_at_its_step_with_one_line(folder, lost):
    dataset = make_dataset(config(folder, memory=0), 3)
    in_memory = make_dataset(config(folder), 3)
    bad = damage(folder / "10.jpg")
    if lost:
        bad.unlink()
    batches = stream.batches(dataset, in_turn(40))
    for k in range(2):  # the batches before it come, although the bad one is already decoded by then
        np.testing.assert_array_equal(next(batches), in_memory.batch(np.arange(4 * k, 4 * k + 4)))
        time.sleep(0.1)
    with pytest.raises(UserError) as refused:
        next(batches)
    message = str(refused.value)
    assert message.startswith(f"{bad} cannot be decoded (") and "\n" not in message
    assert ("No such file" if lost else "truncated") in message and "data.undecodable=skip" in message
    assert message.count("10.jpg") == 1


def test_skipped_pictures_are_replaced_by_the_next_good_one_whatever_came_before(folder, capsys):
    in_memory = make_dataset(config(folder), 3)
    bad = [damage(folder / "10.jpg"), folder / "11.png", damage(folder / "39.jpg")]
    bad[1].unlink()
    (folder / "11.png").symlink_to("nowhere")
    good = {**{i: i for i in range(40)}, 10: 12, 11: 12, 39: 0}
    for start in (0, 3):  # as if resumed there: other pictures were met before
        dataset = make_dataset(config(folder, memory=0, undecodable="skip"), 3)
        assert len(dataset) == 40
        steps = itertools.islice(in_turn(40), start, 20)
        for step, batch in enumerate(stream.batches(dataset, steps), start):
            wanted = [good[i % 40] for i in range(4 * step, 4 * step + 4)]
            np.testing.assert_array_equal(batch, in_memory.batch(wanted))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3  # twice met, once named
        for path, replacement in zip(bad, ("12.png", "12.png", "00.jpg")):
            beginning = f"warning: {path} is replaced by {folder / replacement}, it cannot be decoded ("
            assert len([line for line in lines if line.startswith(beginning)]) == 1


def test_a_folder_that_is_gone_ends_the_run_with_one_line(folder, capsys):
    dataset = make_dataset(config(folder, memory=0, undecodable="skip"), 3)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(UserError, match="none of the 40 pictures can be decoded any more"):
        next(stream.batches(dataset, in_turn(40)))
    assert capsys.readouterr().err == ""


def test_an_error_of_the_plan_is_raised_at_its_step(folder):
    def broken():
        yield np.arange(3), None
        raise ZeroDivisionError("in the plan")

    batches = stream.batches(make_dataset(config(folder, memory=0), 1), broken())
    assert next(batches).shape == (3, 1, SIZE, SIZE)
    with pytest.raises(ZeroDivisionError, match="in the plan"):
        next(batches)


# Threads


def test_more_workers_than_cores_are_refused(folder):
    dataset, cores = make_dataset(config(folder, memory=0), 1), runtime.cores()
    with pytest.raises(UserError, match=f"data.workers is {cores + 1}, and this process may use {cores} cores"):
        stream.batches(dataset, plan(40, 1), cores + 1)
    assert next(stream.batches(dataset, plan(40, 1), cores)).shape == (6, 1, SIZE, SIZE)  # MindSpore agrees


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (4, 3), (9, 8), (64, 8)])
def test_the_default_leaves_one_core_to_the_training(folder, monkeypatch, cores, expected):
    asked = []
    monkeypatch.setattr(runtime, "cores", lambda: cores)
    monkeypatch.setattr(stream, "_ahead", lambda dataset, plan, workers: asked.append(workers))
    stream.batches(make_dataset(config(folder, memory=0), 1), plan(40, 1))
    assert asked == [expected]


@pytest.mark.parametrize("workers", [1, TWO])
def test_workers_decode_at_once_and_no_further_ahead_than_said(folder, monkeypatch, workers):
    dataset = make_dataset(config(folder, memory=0), 1)
    decoded, threads, decode = [], set(), data._decode

    def observed(path, channels, size):
        decoded.append(path)
        threads.add(threading.get_ident())
        time.sleep(0.002)
        return decode(path, channels, size)

    monkeypatch.setattr(data, "_decode", observed)
    batches = stream.batches(dataset, in_turn(40, batch=1), workers)
    next(batches)
    before = -1
    while len(decoded) > before:  # until it stands still
        before = len(decoded)
        time.sleep(0.5)
    batches.close()
    assert len(threads) == workers and threading.get_ident() not in threads
    assert workers <= before - 1 <= 3 * workers + 6


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_close_ends_the_threads_and_the_pipelines_setting_is_as_before(folder):
    dataset = make_dataset(config(folder, memory=0), 1)
    before = stream.pipelines.config.get_prefetch_size()
    list(stream.batches(dataset, plan(40, 2)))  # whatever MindSpore keeps after its first pipeline
    threads = threads_of_this_process()
    batches = stream.batches(dataset, in_turn(40))
    next(batches)
    assert threads_of_this_process() > threads
    batches.close()
    deadline = time.monotonic() + 10
    while threads_of_this_process() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads_of_this_process() == threads
    assert stream.pipelines.config.get_prefetch_size() == before


ENDS = {
    "returns": ("", 0, None),
    "raises": ("raise ValueError('boom')", 1, None),
    "exits": ("sys.exit(3)", 3, None),
    "interrupted": ("for _ in batches: pass", 130, signal.SIGINT),
    "terminated": ("for _ in batches: pass", -signal.SIGTERM, signal.SIGTERM),
    "killed": ("for _ in batches: pass", -signal.SIGKILL, signal.SIGKILL),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_at_once_however_it_ends(folder, end):
    last, status, sent = ENDS[end]
    program = f"""
import itertools, sys
import numpy as np
from ms_diffusion import config, data, errors, stream
options = config.DataConfig(name="images", folder={str(folder)!r}, image_size=16, memory=0)
def main():
    global batches
    batches = stream.batches(data.make_dataset(options, 3), ((np.arange(8), None) for _ in itertools.count()))
    next(batches)
    print("running", flush=True)
    {last}
errors.exit_on_user_error(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "running\n"
        if sent is not None:
            time.sleep(0.2)
            process.send_signal(sent)
        process.communicate(timeout=60)
        assert process.returncode == status
        with pytest.raises(ProcessLookupError):  # nobody is left of its group
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            process.kill()


# Waiting


def test_a_step_that_takes_longer_than_decoding_does_not_wait(folder, monkeypatch):
    """Sleeping stands for work, on both sides, so that a busy machine changes little."""
    dataset = make_dataset(config(folder, memory=0), 1)
    decode = data._decode

    def slow(path, channels, size):
        time.sleep(0.005)
        return decode(path, channels, size)

    monkeypatch.setattr(data, "_decode", slow)
    waits = {}
    ways = {"ahead": stream.batches(dataset, in_turn(40), 1), "when asked": (dataset.batch(*s) for s in in_turn(40))}
    for name, batches in ways.items():
        next(batches)
        waits[name] = []
        for _ in range(15):
            time.sleep(0.06)  # the training step; four pictures take 20 ms and little more
            began = time.perf_counter()
            next(batches)
            waits[name].append(time.perf_counter() - began)
        batches.close()
    ahead, when_asked = (np.median(waits[name]) for name in ways)
    assert when_asked > 0.02 and ahead < when_asked / 4
