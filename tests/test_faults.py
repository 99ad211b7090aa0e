"""Trainings that are killed, stopped, damaged, starved of disk and disturbed end as the one that never was.

Most of them are processes of their own: scripts/train.py on a tiny network, with the native kernels where they are.
"""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ms_diffusion import batches, caches, checkpoint
from ms_diffusion.config import Config, DataConfig, DiffusionConfig, ModelConfig, RuntimeConfig, TrainConfig
from ms_diffusion.data import ImageDataset, make_dataset
from ms_diffusion.errors import UserError
from ms_diffusion.training import train

TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"
STEPS, EVERY = 120, 2
WORDS = [
    "--model.dim=8", "--model.dim_mults=[1]", "--model.convnext_mult=1", "--diffusion.timesteps=30",
    "--train.batch_size=4", "--train.sample_every=0", "--train.log_every=1", "--runtime.device=CPU",
    f"--train.steps={STEPS}", f"--train.checkpoint_every={EVERY}",
]


def heed_sigint():
    """Also where the tests were started in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """Start scripts/train.py with these words: returns the process."""
    cache = tmp_path_factory.mktemp("cache")
    native = caches.cache_folder("native")
    if native.is_dir():
        (cache / "native").symlink_to(native)  # built kernels are the user's; compiled graphs are not
    environment = {**os.environ, "MS_DIFFUSION_CACHE": str(cache), "MS_DIFFUSION_GRAPHS": "1"}
    started = []

    def start(*words, before=(), graphs=True, prepare=heed_sigint):
        command = [*before, sys.executable, TRAIN, *words]
        started.append(subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
            env={**environment, **({} if graphs else {"MS_DIFFUSION_GRAPHS": "0"})},
        ))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process):
    """Its exit status, and what it wrote to stderr."""
    _, err = process.communicate(timeout=240)
    return process.returncode, err


def steps(folder):
    """The steps in metrics.jsonl, but for a last line that is not whole yet."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith(b"\n")]


def wait_for_step(process, folder, step):
    while not steps(folder) or steps(folder)[-1] < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def newest(folder):
    """The step of the newest checkpoint, 0 where there is none."""
    path = checkpoint.latest_checkpoint(folder)
    return 0 if path is None else int(path.stem[len("step_"):])


def last_tensors(folder):
    step, tensors = checkpoint.read_checkpoint(checkpoint.latest_checkpoint(folder))
    return {"step": np.array(step), **tensors}


def differences(folder, other):
    """The names of all in the newest checkpoints that is not the same, bit for bit."""
    one, two = last_tensors(folder), last_tensors(other)
    assert one.keys() == two.keys() and len(one) > 100
    return [name for name in one if one[name].dtype != two[name].dtype or one[name].tobytes() != two[name].tobytes()]


def assert_same_end(folder, other):
    """The same tensors in the end, and the same figures of each step, once and in order, also for TensorBoard."""
    assert differences(folder, other) == []
    runs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (folder, other)]
    figures = [[[line[name] for name in ("step", "loss", "lr", "grad_norm", "loss_scale", "skipped_total")]
                for line in lines] for lines in runs]
    assert figures[0] == figures[1]
    assert [line["step"] for line in runs[0]] == list(range(1, STEPS + 1))
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(line["step"], float(np.float32(line["loss"]))) for line in runs[0]]


@pytest.fixture(scope="module")
def uninterrupted(begin, tmp_path_factory):
    """The run that never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    status, err = end(begin("--out", folder, *WORDS))
    assert status == 0, err
    names = {name.split(".")[0] for name in last_tensors(folder)}
    assert names == {"step", "model", "ema", "optimizer", "loss_scaler", "data"}
    return folder


@pytest.fixture
def copied(uninterrupted, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


# ---- kill -9 ----


def refused(begin, folder):
    """Is --resume refused, in one line, where there is no checkpoint?"""
    status, err = end(begin("--resume", folder))
    mends = ("it has no config.yaml", f"start it anew with --out {folder} --overwrite")
    return status == 2 and err.startswith("error: ") and err.count("\n") == 1 and any(mend in err for mend in mends)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_is_the_uninterrupted_one(kills, begin, uninterrupted, tmp_path):
    """Every second kill falls into the start, from the interpreter's to the first steps; the others among the steps."""
    dice, folder, early, writing, lost = random.Random(kills), tmp_path / "run", 0, 0, []
    for kill in range(kills):
        saved = newest(folder)
        if saved == 0 and early == 1:
            assert refused(begin, folder)
        words = ("--resume", folder) if saved else ("--out", folder, "--overwrite", *WORDS)
        process = begin(*words)
        if kill % 2 == 0:
            moment = time.perf_counter() + dice.uniform(0, 6 if saved else 1)
            while time.perf_counter() < moment and (steps(folder) or [0])[-1] < saved + EVERY + 1:
                time.sleep(0.01)
        else:
            wait_for_step(process, folder, saved + dice.uniform(1, 2 * (STEPS - 40 - saved) / (kills - kill)))
            time.sleep(dice.uniform(0, 0.02))
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
        assert end(process)[0] == -signal.SIGKILL
        early += newest(folder) == 0
        lost.append((steps(folder) or [0])[-1] - newest(folder))
        writing += bool(list(folder.rglob("*.partial")))
    print(f"{early} before the first checkpoint, {writing} while writing one, the last after {newest(folder)}: {lost}")
    assert early and max(lost) <= EVERY
    status, err = end(begin("--resume", folder))
    assert status == 0, err
    assert_same_end(folder, uninterrupted)
    assert not list(folder.rglob("*.partial"))


# ---- SIGTERM and SIGINT ----


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_a_checkpoint_of_its_step(number, status, begin, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = begin("--out", folder, *WORDS)
    wait_for_step(process, folder, 7)
    process.send_signal(number)
    ended, err = end(process)
    assert ended == status and "Traceback" not in err
    stopped = steps(folder)[-1]
    assert 7 <= stopped < STEPS and newest(folder) == stopped
    assert f"stopped after step {stopped} and saved: go on with --resume {folder}" in err
    assert end(begin("--resume", folder))[0] == 0
    assert_same_end(folder, uninterrupted)


def wait_for_log(process, folder, words):
    log = folder / "logs" / "rank_0.log"
    while not log.exists() or words not in log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_sigterm_while_the_first_step_is_compiled(begin, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = begin("--out", folder, *WORDS, graphs=False)
    wait_for_log(process, folder, "the first step compiles")
    process.terminate()
    assert end(process)[0] == 0 and newest(folder) == 1
    assert end(begin("--resume", folder))[0] == 0
    assert_same_end(folder, uninterrupted)


def test_sigterm_while_a_picture_is_drawn(begin, uninterrupted, tmp_path):
    """32 batches of 30 reverse steps take much longer than the answer may."""
    folder = tmp_path / "run"
    process = begin("--out", folder, *WORDS, "--train.sample_every=3", "--train.sample_num=2048")
    wait_for_log(process, folder, "step 3:")
    time.sleep(0.5)
    began = time.perf_counter()
    process.terminate()
    status, err = end(process)
    assert status == 0 and time.perf_counter() - began < 5
    assert "the picture after step 3 is left out" in err and newest(folder) == 4
    assert not list((folder / "samples").iterdir())
    assert end(begin("--resume", folder, "--train.sample_every=0"))[0] == 0
    assert_same_end(folder, uninterrupted)


def test_a_second_sigint_ends_a_run_at_once(begin, tmp_path):
    folder = tmp_path / "run"
    process = begin("--out", folder, *WORDS, "--train.batch_size=1024")
    wait_for_step(process, folder, 3)  # so that the checkpoint of step 2 is whole
    process.send_signal(signal.SIGINT)
    said = b""
    while b"finishing the step" not in said:  # two signals at once count as one
        said += os.read(process.stderr.fileno(), 4096)
    process.send_signal(signal.SIGINT)
    status, err = end(process)
    assert status == 130 and err.endswith("interrupted\n") and "Traceback" not in err
    assert newest(folder) == 2


def test_a_run_that_was_started_to_ignore_sigint_ignores_it(begin, uninterrupted, tmp_path):
    """MindSpore would end it."""
    folder = tmp_path / "run"
    process = begin("--out", folder, *WORDS, prepare=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    for step in (1, 10, 20):
        wait_for_step(process, folder, step)
        process.send_signal(signal.SIGINT)
    assert end(process)[0] == 0
    assert_same_end(folder, uninterrupted)


# ---- Damaged checkpoints ----


def test_damaged_checkpoints_are_named_and_the_one_before_them_is_used(begin, uninterrupted, copied):
    last, before, _ = sorted((copied / "checkpoints").iterdir(), reverse=True)
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    os.truncate(before, before.stat().st_size - 1)
    status, err = end(begin("--resume", copied))
    assert status == 0, err
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and str(last) in warnings[0] and str(before) in warnings[1]
    assert_same_end(copied, uninterrupted)


# ---- A full disk ----

def test_a_full_disk_behind_the_terminal_does_not_end_a_run(begin, uninterrupted, tmp_path):
    """nohup and batch systems put a file there."""
    folder = tmp_path / "run"
    assert end(begin("--out", folder, *WORDS, before=["sh", "-c", 'exec "$@" 2>/dev/full', "sh"])) == (0, "")
    assert_same_end(folder, uninterrupted)


FULL = """
mount -t tmpfs -o size=1m tmpfs "$DISK" || exit 9
"$@" --out "$DISK/run" 2> "$KEPT/first"; echo $? > "$KEPT/first_status"
cp -r "$DISK/run" "$KEPT/full"
mount -o remount,size=64m "$DISK"
"$@" --resume "$DISK/run" 2> "$KEPT/second"; echo $? > "$KEPT/second_status"
cp -r "$DISK/run" "$KEPT/run"
"""


def assert_one_line(err, message):
    """Warnings of lost figures aside."""
    errors = [line for line in err.splitlines() if "error: " in line]
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0] and "Traceback" not in err, err
    assert message in errors[0]


def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(begin, uninterrupted, tmp_path):
    """All checkpoints are kept, so 1 MiB is full after a few."""
    unshare = ["unshare", "-rm", "sh", "-c"]
    try_out = [*unshare, 'mount -t tmpfs -o size=1m tmpfs "$0"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(try_out, capture_output=True).returncode:
        pytest.skip("this machine allows no mount of a small file system")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    shell = ["env", f"DISK={disk}", f"KEPT={kept}", *unshare, FULL, "sh"]
    assert end(begin(*WORDS, "--train.keep_checkpoints=0", before=shell)) == (0, "")
    assert (kept / "first_status").read_text() == "2\n"
    assert_one_line((kept / "first").read_text(), "No space left on device; the earlier checkpoints are whole")
    saved = sorted((kept / "full" / "checkpoints").iterdir())
    assert len(saved) in (2, 3) and [checkpoint.read_checkpoint(path)[0] for path in saved] == [2, 4, 6][:len(saved)]
    assert (kept / "second_status").read_text() == "0\n", (kept / "second").read_text()
    assert_same_end(kept / "run", uninterrupted)


def test_a_file_that_may_grow_no_further_ends_a_run_that_goes_on_when_it_may(begin, uninterrupted, copied):
    whole, *later = sorted((copied / "checkpoints").iterdir())
    for path in later:
        path.unlink()
    before, size = whole.read_bytes(), whole.stat().st_size
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))  # noqa: E731
    status, err = end(begin("--resume", copied, prepare=limit))
    assert status == 2
    assert_one_line(err, f"step_{STEPS - EVERY:08d}.safetensors: File too large; the earlier checkpoints are whole")
    assert [path.name for path in (copied / "checkpoints").iterdir()] == [whole.name] and whole.read_bytes() == before
    assert end(begin("--resume", copied))[0] == 0
    assert_same_end(copied, uninterrupted)


# ---- Two runs in one folder ----


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_undisturbed(
    begin, run_script, uninterrupted, tmp_path
):
    folder = tmp_path / "run"
    process = begin("--out", folder, *WORDS)
    wait_for_step(process, folder, 3)
    process.send_signal(signal.SIGSTOP)  # it holds its lock, and its files keep still
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for words, message in (
        (["--out", folder, *WORDS], f"{folder} is not empty"),
        (["--out", folder, *WORDS, "--overwrite"], f"{folder} is in use: process {process.pid} on "),
        (["--resume", folder], f"{folder} is in use: process {process.pid} on "),
        (["--resume", folder, "--train.steps=190"], f"{folder} is in use: process {process.pid} on "),
    ):
        status, _, err = run_script("train", *words)
        assert status == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    process.send_signal(signal.SIGCONT)
    status, err = end(process)
    assert status == 0, err
    assert_same_end(folder, uninterrupted)


# ---- Resume with other options, in this process ----

SMALL = Config(
    model=ModelConfig(dim=8, dim_mults=(1,), convnext_mult=1),
    diffusion=DiffusionConfig(timesteps=30),
    train=TrainConfig(
        steps=8, batch_size=4, lr_decay_steps=8, log_every=1, checkpoint_every=3, sample_every=0, sample_num=4
    ),
)


def with_train(config, **options):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **options))


def pixels(count=10):
    return np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


def new_run(config, folder, dataset=None):
    checkpoint.create_run(folder, config, {})
    return train(config, dataset or ImageDataset(pixels(), "noise"), folder)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--train.lr=0.5"], "train.lr is 0.0001 in the run and 0.5 on the command line"),
        (["--train.seed=1", "--train.steps=190"], "train.seed is 0 in the run and 1 on the command line"),
        (["--model.dim=16"], "model.dim is 8 in the run and 16 on the command line"),
        (["--data.horizontal_flip=true"], "data.horizontal_flip is False in the run and True on the command line"),
        (["--train.precision=fp16"], "train.precision is 'fp32' in the run and 'fp16' on the command line"),
        (["--train.batch_size=8", "--train.steps=190"], "whole_batch was 4 and is 8"),
        (["--train.log_every=5"], f"has made its {STEPS} steps: give more --train.steps to go on"),
    ],
)
def test_a_refused_resume_names_both_values_and_changes_nothing(words, message, uninterrupted, run_script):
    def files():
        kept = (path for path in uninterrupted.rglob("*") if path.is_file() and path.parent.name != "logs")
        return {path: path.read_bytes() for path in kept if path.name != "lock"}

    before = files()
    status, _, err = run_script("train", "--resume", uninterrupted, *words)
    assert status == 2
    assert_one_line(err, message)
    assert files() == before


def test_another_number_of_pictures_is_refused(run_script, tmp_path):
    pictures, folder = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for index, picture in enumerate(pixels(6)):
        Image.fromarray(picture[0]).save(pictures / f"{index}.png")
    words = [*WORDS, "--data.name=images", f"--data.folder={pictures}", "--train.steps=1"]
    assert run_script("train", "--out", folder, *words)[0] == 0
    before = (folder / "config.yaml").read_bytes()
    (pictures / "3.png").unlink()
    status, _, err = run_script("train", "--resume", folder, "--train.steps=2")
    assert status == 2
    assert_one_line(err, f"{folder} cannot be resumed: images was 6 and is 5")
    assert (folder / "config.yaml").read_bytes() == before
    # The same number elsewhere is allowed, read while training too; not with more threads than there are cores.
    Image.fromarray(pixels()[0, 0]).save(pictures / "a.png")
    moved = [f"--data.folder={pictures.rename(tmp_path / 'moved')}", "--train.steps=2"]
    status, _, err = run_script("train", "--resume", folder, *moved, "--data.workers=4096", "--data.memory=0")
    assert status == 2 and (folder / "config.yaml").read_bytes() == before
    assert err.splitlines()[-1].startswith("error: data.workers is 4096, and this process may use")
    assert run_script("train", "--resume", folder, *moved, "--data.memory=0")[0] == 0 and newest(folder) == 2


def test_a_run_with_more_steps_and_other_intervals_goes_on_as_if_it_had_had_them(tmp_path):
    """The learning rate's decay has its own option: left to itself it follows the steps."""
    more = with_train(
        SMALL, steps=12, log_every=2, checkpoint_every=5, keep_checkpoints=1, keep_every=5, sample_every=6,
        sample_num=2, tensorboard=False,
    )
    new_run(more, tmp_path / "whole")
    new_run(SMALL, tmp_path / "parts")
    assert train(more, ImageDataset(pixels(), "noise"), tmp_path / "parts", resume=True) == 0
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    assert checkpoint.read_config(tmp_path / "parts") == more
    assert steps(tmp_path / "parts") == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert (tmp_path / "parts" / "samples" / "step_00000012.png").exists()


def test_a_run_divided_otherwise_goes_on_alike(tmp_path):
    more = with_train(SMALL, steps=12, lr_decay_steps=12)
    new_run(more, tmp_path / "whole")
    new_run(with_train(more, steps=8), tmp_path / "parts")
    divided = with_train(more, batch_size=2, accumulate=2)
    assert train(divided, ImageDataset(pixels(), "noise"), tmp_path / "parts", resume=True) == 0
    whole, parts = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    worst = max(np.abs(whole[name] - parts[name]).max() for name in whole)
    assert 0 < worst < 1e-5


# ---- Exact resume of all that a step may change, in this process ----


def stopped_at(step, monkeypatch):
    """From now on SIGTERM comes while training step number `step` gets its noise."""
    draw = batches.draw_noise

    def draw_noise(config, made, *ranks):
        if made + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(config, made, *ranks)

    monkeypatch.setattr(batches, "draw_noise", draw_noise)


AVERAGED = {"accumulate": 2, "batch_size": 2, "ema_start": 2, "ema_every": 3}
OVERFLOWING = {"precision": "fp16", "loss_scale": 2.0**24, "loss_scale_factor": 16, "loss_scale_window": 3}


@pytest.mark.parametrize(
    "options, mode",
    [
        pytest.param(AVERAGED, "graph", id="averaged, graph"),
        pytest.param(AVERAGED, "pynative", id="averaged, pynative", marks=pytest.mark.slow),
        pytest.param(OVERFLOWING, "graph", id="overflowing, graph", marks=pytest.mark.slow),
        pytest.param(OVERFLOWING, "pynative", id="overflowing, pynative"),
    ],
)
def test_stopped_at_any_step_it_goes_on_bit_for_bit(options, mode, tmp_path, monkeypatch):
    """With micro-batches, a late and rare average, mirrored pictures read while training; and through overflows."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, picture in enumerate(pixels()):
        Image.fromarray(picture[0]).save(pictures / f"{index}.png")
    data = DataConfig(name="images", folder=str(pictures), horizontal_flip=True, memory=0, workers=1)
    config = dataclasses.replace(with_train(SMALL, **options), data=data, runtime=RuntimeConfig(mode=mode))

    def dataset():
        return make_dataset(data, 1)

    assert new_run(config, tmp_path / "whole", dataset()) == 0
    whole = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    skipped = "".join(str(line["skipped"]) for line in whole)
    assert skipped == ("11100010" if "precision" in options else "00000000")
    parts = tmp_path / "parts"
    checkpoint.create_run(parts, config, {})
    for step in (2, 5):
        with monkeypatch.context() as patch:
            stopped_at(step, patch)
            assert train(config, dataset(), parts, resume=step > 2) == 0
        assert newest(parts) == step
    assert train(config, dataset(), parts, resume=True) == 0
    assert differences(tmp_path / "whole", parts) == []
    assert steps(parts) == list(range(1, 9))


def test_sigterm_while_every_step_is_skipped(tmp_path, monkeypatch):
    """It saves as ever, and counts on: the run ends where it would have, and with its last checkpoint.

    A learning rate beyond all reason: the first step makes weights of 1e30, and every loss after it is NaN.
    """
    config = with_train(SMALL, steps=100, lr=1e30, max_grad_norm=0.0, max_skipped_steps=5, checkpoint_every=1)
    with monkeypatch.context() as patch:
        stopped_at(4, patch)
        assert new_run(config, tmp_path / "run") == 0
    assert newest(tmp_path / "run") == 4
    with pytest.raises(UserError, match="step 7: the loss is nan, and so for 6 steps in a row, more than"):
        train(config, ImageDataset(pixels(), "noise"), tmp_path / "run", resume=True)
    assert newest(tmp_path / "run") == 4 and steps(tmp_path / "run") == list(range(1, 8))
    first, last = (checkpoint.read_checkpoint(path)[1] for path in sorted((tmp_path / "run" / "checkpoints").iterdir()))
    weights = [name for name in first if name.startswith(("model.", "ema."))]
    assert all(first[name].tobytes() == last[name].tobytes() for name in weights)
