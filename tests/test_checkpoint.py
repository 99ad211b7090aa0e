import numpy as np
import pytest

from ms_diffusion import checkpoint, load_run
from ms_diffusion.checkpoint import create_run, latest_checkpoint, read_checkpoint, save_checkpoint
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


def test_a_checkpoint_that_fails_leaves_the_earlier_ones(folder, monkeypatch):
    path = save_checkpoint(folder, 5, {"model.a": np.ones(2)}, CONFIG)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(folder, 10, {"model.a": np.zeros(2)}, CONFIG)
    assert latest_checkpoint(folder) == path
    assert read_checkpoint(path)[1]["model.a"].tolist() == [1, 1]
    assert not list(folder.rglob("*.partial"))


def test_damaged_and_foreign_files_are_named(folder):
    path = save_checkpoint(folder, 5, checkpoint.model_tensors(network()), CONFIG)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot read the checkpoint .*step_00000005"):
        load_run(folder)
    checkpoint.save_file({"a": np.ones(1)}, path, {"format": "pt"})
    with pytest.raises(UserError, match="is no checkpoint of 'ms_diffusion 1': its format is 'pt'"):
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
    checkpoint.check_resumable(CONFIG, load(None, ["--model.dim=8", "--model.dim_mults=[1,2]", "--train.steps=9000"]))
    with pytest.raises(UserError, match=r"train.lr is 0.0001 in the run and 0.5 on the command line"):
        checkpoint.check_resumable(CONFIG, load(None, ["--model.dim=8", "--model.dim_mults=[1,2]", "--train.lr=0.5"]))
