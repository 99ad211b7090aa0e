import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ms_diffusion import checkpoint, load_run
from ms_diffusion import config as configuration
from ms_diffusion.checkpoint import create_run, latest_checkpoint, newest_checkpoint, read_checkpoint, save_checkpoint
from ms_diffusion.config import Config, ModelConfig, load
from ms_diffusion.errors import UserError
from ms_diffusion.unet import Unet, build_unet, init_weights

CONFIG = Config(model=ModelConfig(dim=8, dim_mults=(1, 2)))


def network(seed=0, **options):
    model = Unet(**{"dim": 8, "dim_mults": (1, 2), **options})
    init_weights(model, np.random.default_rng(seed))
    return model


@pytest.fixture
def folder(tmp_path):
    return create_run(tmp_path / "run", CONFIG, {"python": "3"})


def test_a_run_folder_says_what_it_is(folder):
    assert load(folder / "config.yaml") == CONFIG
    assert '"python": "3"' in (folder / "versions.json").read_text()


def test_a_run_round_trips(folder):
    model = network()
    for step in (5, 20, 100):
        save_checkpoint(folder, step, checkpoint.model_tensors(network(step)), CONFIG)
    save_checkpoint(folder, 1000, checkpoint.model_tensors(model), CONFIG)
    run = load_run(folder)
    assert run.step == 1000 and run.config == CONFIG and run.diffusion.timesteps == CONFIG.diffusion.timesteps
    for (name, ours), (other, theirs) in zip(model.parameters_and_names(), run.model.parameters_and_names()):
        assert name == other and np.array_equal(ours.asnumpy(), theirs.asnumpy())
    assert not list(folder.rglob("*.partial"))


def test_something_in_the_way_is_not_overwritten(folder, tmp_path):
    with pytest.raises(UserError, match="is not empty: .*--resume.*--overwrite"):
        create_run(folder, CONFIG, {})
    save_checkpoint(folder, 5, {"model.a": np.ones(2)}, CONFIG)
    create_run(folder, CONFIG, {}, overwrite=True)
    assert latest_checkpoint(folder) is None
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="would delete .*home, which is no run"):
        create_run(precious, CONFIG, {}, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        create_run(tmp_path / "file", CONFIG, {})


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    assert create_run(tmp_path / "empty", CONFIG, {}).is_dir()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder .*file/run: Not a directory"):
        create_run(tmp_path / "file" / "run", CONFIG, {})


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def steps(folder):
    return sorted(int(path.stem[5:]) for path in (folder / "checkpoints").glob("step_*.safetensors"))


def fails(error):
    def fail(*_, **__):
        raise error

    return fail


def ones(step):
    return {"model.a": np.full((2, 3), step, np.float32), "count": np.array(step)}


# ---- Writing ----


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_earlier_ones(folder, call, monkeypatch):
    """At the flush, at the new name; a full file system is below."""
    save_checkpoint(folder, 5, ones(5), CONFIG)
    before = content(folder)
    monkeypatch.setattr(checkpoint.os, call, fails(OSError(28, "No space left on device")))
    whole = "step_00000010.safetensors: No space left on device; the earlier checkpoints are whole"
    with pytest.raises(UserError, match=f"cannot write the checkpoint .*{whole}"):
        save_checkpoint(folder, 10, ones(10), CONFIG, keep=1)
    assert content(folder) == before


def test_what_a_failing_disk_would_not_remove_is_removed_later(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", fails(OSError(28, "No space left on device")))
        patch.setattr(checkpoint.Path, "unlink", fails(OSError(5, "Input/output error")))
        with pytest.raises(UserError, match="No space left on device"):
            save_checkpoint(folder, 10, ones(10), CONFIG)
    assert len(list(folder.rglob("*.partial"))) == 1
    save_checkpoint(folder, 10, ones(10), CONFIG)
    assert not list(folder.rglob("*.partial")) and newest_checkpoint(folder)[1] == 10


def test_the_newest_are_kept_and_those_asked_for(folder):
    for step in range(10, 130, 10):
        save_checkpoint(folder, step, ones(step), CONFIG, keep=2, keep_every=50)
        assert newest_checkpoint(folder)[1] == step
    assert steps(folder) == [50, 100, 110, 120]
    for step in (130, 140, 150):
        save_checkpoint(folder, step, ones(step), CONFIG, keep=0, keep_every=7)
    assert steps(folder) == [50, 100, 110, 120, 130, 140, 150]
    save_checkpoint(folder, 160, ones(160), CONFIG, keep=1)
    assert steps(folder) == [160]


def test_a_later_damaged_one_does_not_cost_the_whole_ones(folder):
    """Steps 100 to 300, the last damaged; the run goes on from 200 and saves at 250."""
    for step in (100, 200, 300):
        save_checkpoint(folder, step, ones(step), CONFIG)
    latest_checkpoint(folder).write_bytes(b"nothing")
    save_checkpoint(folder, 250, ones(250), CONFIG, keep=1)
    assert steps(folder) == [250, 300] and newest_checkpoint(folder)[1] == 250
    save_checkpoint(folder, 300, ones(300), CONFIG, keep=1)
    assert steps(folder) == [300] and newest_checkpoint(folder)[1] == 300


def test_nothing_is_deleted_for_a_checkpoint_that_cannot_be_read_back(folder, monkeypatch):
    save_checkpoint(folder, 5, ones(5), CONFIG)
    monkeypatch.setattr(checkpoint, "write_whole", lambda path, content: path.write_bytes(content[:-1] + b"?"))
    with pytest.raises(UserError, match="step_00000010.safetensors is damaged"):
        save_checkpoint(folder, 10, ones(10), CONFIG, keep=1)
    assert steps(folder) == [5, 10] and newest_checkpoint(folder)[1] == 5


def test_an_old_one_that_cannot_be_deleted_does_not_end_the_training(folder, monkeypatch, capsys):
    save_checkpoint(folder, 5, ones(5), CONFIG)
    monkeypatch.setattr(checkpoint.Path, "unlink", fails(PermissionError(13, "Denied")))
    save_checkpoint(folder, 10, ones(10), CONFIG, keep=1)
    assert capsys.readouterr().err.startswith("warning: cannot delete the old checkpoint ")
    assert steps(folder) == [5, 10]


def test_the_configuration_is_replaced_whole_or_not_at_all(folder, monkeypatch):
    before = content(folder)
    monkeypatch.setattr(checkpoint.os, "replace", fails(OSError(28, "No space left")))
    with pytest.raises(UserError, match="cannot write .*config.yaml: No space left"):
        checkpoint.write_config(folder, Config())
    assert content(folder) == before


# ---- Reading ----


def test_every_damaged_byte_and_every_lost_end_is_seen(folder):
    path = save_checkpoint(folder, 5, ones(5), CONFIG)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(0)
    for position in [*range(0, 400), *range(400, header, 5), *range(header, len(whole))]:
        bad = bytearray(whole)
        bad[position] ^= generator.choice([0x01, 0x03, 0x80, 0xFF])
        path.write_bytes(bad)
        with pytest.raises(UserError):
            read_checkpoint(path)
    for length in [*range(0, 16), *range(16, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError):
        read_checkpoint(path)
    path.write_bytes(whole)
    step, tensors = read_checkpoint(path)
    assert step == 5 and {name: (value.dtype, value.tolist()) for name, value in tensors.items()} == {
        "model.a": (np.float32, [[5.0] * 3] * 2), "count": (np.int64, 5)
    }


def metadata_of(path):
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data, tensors: tensors["model.a"].__setitem__((1, 2), 0), "checksum"),
        (lambda data, tensors: tensors.update({"model.a": tensors["model.a"].reshape(3, 2)}), "checksum"),
        (lambda data, tensors: tensors.update({"model.a": tensors["model.a"].view(np.int32)}), "checksum"),
        (lambda data, tensors: tensors.update({"model.b": tensors.pop("model.a")}), "checksum"),
        (lambda data, tensors: tensors.pop("count"), "checksum"),
        (lambda data, tensors: data.update(config=data["config"].replace("lr: 0.0001", "lr: 0.0002")), "checksum"),
        (lambda data, tensors: data.update(step="6"), "checksum"),
        (lambda data, tensors: data.pop("step"), "checksum"),
        (lambda data, tensors: data.pop("sha256"), "checksum"),
        (lambda data, tensors: data.update(format="ms_diffusion 1"), "checksum"),
        (lambda data, tensors: data.update(format="pt"), "is no checkpoint of 'ms_diffusion 2': its format is 'pt'"),
        (lambda data, tensors: data.clear(), "its format is None"),
    ],
)
def test_the_checksum_covers_everything(folder, change, message):
    """The file is written anew by another program: it is sound, but what it says has changed."""
    path = save_checkpoint(folder, 5, ones(5), CONFIG)
    data, tensors = metadata_of(path), load_file(path)
    save_file(tensors, path, data)
    assert read_checkpoint(path)[0] == 5
    change(data, tensors)
    save_file(tensors, path, data)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)


def test_a_damaged_newest_is_named_and_the_one_before_it_taken(folder, capsys):
    for step in (10, 20, 30, 40, 50):
        save_checkpoint(folder, step, checkpoint.model_tensors(network(step)), CONFIG)
    paths = [folder / "checkpoints" / f"step_000000{step}.safetensors" for step in (50, 40, 30, 20, 10)]
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-100])
    paths[1].write_bytes(whole)  # the name and the step in it disagree
    paths[2].write_bytes(b"")
    assert load_run(folder).step == 20
    lines = capsys.readouterr().err.splitlines()
    assert [path.name in line for path, line in zip(paths, lines)] == [True] * 3 == [len(lines) == 3] * 3
    assert all(line.startswith("warning: ") and line.endswith("taking the checkpoint before it") for line in lines)
    assert "it says that its step is '50'" in lines[1]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint that is whole, damaged are step_00000050.*step_00000010.*--out"):
        load_run(folder)


def test_steps_are_compared_as_numbers_and_other_files_left_alone(folder):
    for step in (99_999_999, 100_000_000, 8):
        save_checkpoint(folder, step, ones(0), CONFIG)
    (folder / "checkpoints" / "step_best.safetensors").write_text("mine")
    assert newest_checkpoint(folder)[1] == 100_000_000 and latest_checkpoint(folder).stem == "step_100000000"
    save_checkpoint(folder, 100_000_001, ones(0), CONFIG, keep=2)
    assert {path.stem for path in (folder / "checkpoints").iterdir()} == {
        "step_best", "step_100000000", "step_100000001"
    }


def test_what_was_written_before_the_checksum_is_read(folder, capsys):
    tensors = checkpoint.model_tensors(network(3))
    metadata = {"format": "ms_diffusion 1", "step": "7", "config": configuration.to_yaml(CONFIG)}
    path = folder / "checkpoints" / "step_00000007.safetensors"
    save_file(tensors, path, metadata)
    assert load_run(folder).step == 7 and not capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot read the checkpoint .*step_00000007"):
        read_checkpoint(path)


def test_a_reader_survives_that_what_it_was_about_to_read_is_deleted(folder, monkeypatch, capsys):
    save_checkpoint(folder, 5, ones(5), CONFIG)
    read_bytes, trained = Path.read_bytes, []

    def train_first(path):
        if not trained:
            trained.append(save_checkpoint)
            monkeypatch.undo()
            save_checkpoint(folder, 10, ones(10), CONFIG, keep=1)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", train_first)
    assert newest_checkpoint(folder)[1] == 10 and trained
    assert steps(folder) == [10] and not capsys.readouterr().err


def test_the_moving_average_is_taken_where_there_is_one(folder):
    last, averaged = network(1), network(2)
    tensors = checkpoint.model_tensors(last)
    save_checkpoint(folder, 5, tensors, CONFIG)
    assert load_run(folder).weights == load_run(folder, "model").weights == "model"
    with pytest.raises(UserError, match="holds no moving average .*ema_decay"):
        load_run(folder, "ema")
    tensors.update({f"ema.{name}": value.asnumpy() for name, value in averaged.parameters_and_names()})
    save_checkpoint(folder, 6, tensors, CONFIG)
    for asked, kind, model in ((None, "ema", averaged), ("ema", "ema", averaged), ("model", "model", last)):
        run = load_run(folder, asked)
        assert run.weights == kind
        assert np.array_equal(run.model.init_conv.weight.asnumpy(), model.init_conv.weight.asnumpy())
    del tensors["ema.init_conv.weight"]
    save_checkpoint(folder, 7, tensors, CONFIG)
    with pytest.raises(UserError, match="init_conv.weight is missing"):
        load_run(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("model.init_conv.bias"), "init_conv.bias is missing"),
        (lambda w: w.update({"model.extra": np.ones(1)}), "extra is not in the network"),
        (lambda w: w.update({"model.init_conv.bias": np.ones(3)}), r"init_conv.bias is \(3,\), not \(4,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_none_is_loaded(change, message, tmp_path):
    tensors = checkpoint.model_tensors(network(1))
    change(tensors)
    model = build_unet(CONFIG.model)
    init_weights(model, np.random.default_rng(0))
    before = model.init_conv.weight.asnumpy().copy()
    with pytest.raises(UserError, match=message):
        checkpoint.load_weights(model, tensors, tmp_path)
    assert np.array_equal(before, model.init_conv.weight.asnumpy())


def test_no_run_and_no_checkpoint_are_told_apart(folder, tmp_path):
    with pytest.raises(UserError, match="no run folder: it has no config.yaml"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_run(folder)


def test_resume_may_change_only_what_makes_sense():
    def resume(word):
        checkpoint.check_resumable(CONFIG, load(None, ["--model.dim=8", "--model.dim_mults=[1,2]", word]))

    for name in ("steps", "log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "sample_every"):
        resume(f"--train.{name}=9000")
    resume("--runtime.mode=pynative")
    with pytest.raises(UserError, match=r"train.lr is 0.0001 in the run and 0.5 on the command line"):
        resume("--train.lr=0.5")
    with pytest.raises(UserError, match=r"train.seed is 0 in the run and 1 on the command line"):
        resume("--train.seed=1")
    with pytest.raises(UserError, match=r"runtime.deterministic is False in the run and True on the command line"):
        resume("--runtime.deterministic=true")


# ---- Processes that are killed, that race, that fill the disk ----

PRELUDE = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np
from ms_diffusion import checkpoint
from ms_diffusion.config import Config
from ms_diffusion.errors import UserError

folder = Path(sys.argv[1])

def save(step, size=1000, keep=0):
    return checkpoint.save_checkpoint(folder, step, {"model.a": np.full(size, step, np.float32)}, Config(), keep)
"""


def start(code, *words, before=()):
    """A process that has imported the module and runs `code`; `words` are its arguments, `before` starts it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [*before, sys.executable, "-c", PRELUDE + code, *map(str, words)], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert not err, err
    return json.loads(out)


def test_a_process_killed_at_any_moment_loses_nothing_that_was_saved(folder):
    """30 times kill -9 at a random moment; meanwhile a reader finds a whole checkpoint each time it looks."""
    found = finish(start("""
random.seed(1)
save(0, 200_000)
rounds = []
for count in range(30):
    begin = checkpoint.newest_checkpoint(folder)[1]
    reports, report = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(begin + 1, 10**6):
            save(step, 200_000, keep=1 + count % 2)
            os.write(report, b"%d\\n" % step)
    os.close(report)
    end, read = time.monotonic() + random.uniform(0.01, 0.08), [begin]
    while time.monotonic() < end:
        read.append(checkpoint.newest_checkpoint(folder)[1])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    reported = [begin, *map(int, os.fdopen(reports).read().split())]
    _, step, tensors = checkpoint.newest_checkpoint(folder)
    right = bool((tensors["model.a"] == step).all()) and read == sorted(read)
    rounds.append((reported[-1], step, right))
save(10**6, keep=1)
print(json.dumps([rounds, os.listdir(folder / "checkpoints")]))
""", folder))
    rounds, left = found
    assert len(rounds) == 30 and rounds[-1][0] > 10
    assert all(step - reported in (0, 1) and right for reported, step, right in rounds), rounds
    assert left == ["step_01000000.safetensors"], "what the killed ones left is cleared away"


def test_a_process_killed_before_the_rename_leaves_a_file_that_the_next_removes(folder):
    path = save_checkpoint(folder, 5, ones(5), CONFIG)
    process = start("""
def stuck(*_):
    print("flushing", flush=True)
    time.sleep(60)
os.fsync = stuck
save(10, keep=1)
""", folder)
    assert process.stdout.readline() == "flushing\n"
    process.kill()
    process.communicate()
    assert {item.name for item in path.parent.iterdir()} == {path.name, "step_00000010.safetensors.partial"}
    assert newest_checkpoint(folder)[0] == path
    save_checkpoint(folder, 6, ones(6), CONFIG)
    assert steps(folder) == [5, 6] and not list(folder.rglob("*.partial"))


FILL = """
limit = int(sys.argv[2])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
else:
    checkpoint.create_run(folder, Config(), {})
before = {}
for step in (1, 2):
    path = save(step, 75_000)
    before[path.name] = path.read_bytes()
try:
    save(3, 150_000, keep=1)
except UserError as error:
    message = str(error)
after = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
print(json.dumps([message, before == after, checkpoint.newest_checkpoint(folder)[1]]))
"""


def test_a_full_file_system_leaves_the_earlier_ones(tmp_path):
    """1 MiB holds two checkpoints of 300 kB, and half of one of 600 kB."""
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount of a small file system")
    message, same, step = finish(start(FILL, tmp_path / "run", 0, before=mount))
    assert message == (
        f"cannot write the checkpoint {tmp_path}/run/checkpoints/step_00000003.safetensors: No space left on device; "
        "the earlier checkpoints are whole"
    )
    assert same and step == 2


def test_a_file_that_may_grow_no_further_leaves_the_earlier_ones(folder):
    message, same, step = finish(start(FILL, folder, 400_000))
    assert "step_00000003.safetensors: File too large; the earlier checkpoints are whole" in message
    assert same and step == 2


# ---- The lock ----

HOLD = """
with checkpoint.lock(folder):
    child = os.fork()
    if child == 0:
        os.close(0), os.close(1), os.close(2)
        time.sleep(60)
        os._exit(0)
    print(json.dumps(child), flush=True)
    sys.stdin.read()
os.kill(child, signal.SIGKILL)
"""


def test_a_second_training_in_a_folder_is_refused_until_the_first_ends(folder):
    save_checkpoint(folder, 5, checkpoint.model_tensors(network()), CONFIG)
    process = start(HOLD, folder)
    json.loads(process.stdout.readline())
    before = content(folder)
    holder = f"run is in use: process {process.pid} on {socket.gethostname()} trains in it"
    for second in (
        lambda: checkpoint.lock(folder),
        lambda: checkpoint.open_run(folder),
        lambda: checkpoint.new_run(folder, CONFIG, {}, overwrite=True),
    ):
        with pytest.raises(UserError, match=holder), second():
            pass
    assert content(folder) == before, "nothing may be deleted before the lock is held"
    assert load_run(folder).step == 5, "a reader needs no lock"
    process.communicate("")
    with checkpoint.open_run(folder) as config, pytest.raises(UserError, match=f"process {os.getpid()} on"):
        assert config == CONFIG
        create_run(folder, CONFIG, {}, overwrite=True)
    create_run(folder, CONFIG, {}, overwrite=True)
    assert latest_checkpoint(folder) is None


def test_the_lock_of_a_killed_process_is_free_though_its_child_lives(folder):
    process = start(HOLD, folder)
    child = json.loads(process.stdout.readline())
    try:
        with pytest.raises(UserError, match="is in use"), checkpoint.lock(folder):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with checkpoint.lock(folder):
            assert (folder / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_of_two_starts_at_the_same_moment_one_gets_the_folder(tmp_path):
    results = finish(start("""
results = []
for count in range(20):
    run = folder / str(count // 2)
    (wait, go), (answers, answer), (rest, end) = os.pipe(), os.pipe(), os.pipe()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os.close(go), os.close(end)
            os.read(wait, 1)
            try:
                with checkpoint.new_run(run, Config(), {}, overwrite=count % 2 == 1):
                    (run / "samples" / "mine").write_text(str(os.getpid()))
                    os.write(answer, b"w")
                    os.read(rest, 1)
                    kept = (run / "samples" / "mine").read_text() == str(os.getpid())
                    os._exit(0 if kept else 3)
            except UserError:
                os.write(answer, b"r")
                os._exit(0)
            except BaseException:
                os.write(answer, b"x")
                os._exit(4)
        children.append(child)
    os.close(go)
    both = os.read(answers, 1) + os.read(answers, 1)
    os.close(end)
    results.append(["".join(sorted(both.decode())), [os.waitpid(child, 0)[1] for child in children]])
print(json.dumps(results))
""", tmp_path))
    assert results == [["rw", [0, 0]]] * 20


def test_a_file_system_without_locks_gets_a_warning(folder, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint.fcntl, "flock", fails(OSError(errno.ENOLCK, "No locks available")))
    with checkpoint.lock(folder):
        pass
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "lock cannot be locked (No locks available): start no second training" in err


def test_a_refused_start_leaves_no_lock_behind(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(UserError):
            create_run(tmp_path, CONFIG, {}, overwrite=overwrite)
    with pytest.raises(UserError, match="is no run folder"), checkpoint.open_run(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_overwriting_that_was_killed_can_be_done_again(folder, monkeypatch):
    """config.yaml goes last and comes first: at each moment the folder is empty or a run."""
    save_checkpoint(folder, 5, ones(5), CONFIG)
    (folder / "link").symlink_to(folder / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", fails(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            create_run(folder, CONFIG, {}, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_config", fails(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            create_run(folder, CONFIG, {}, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["lock"]
    create_run(folder, CONFIG, {})
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.yaml", "lock", "samples", "versions.json"
    ]
