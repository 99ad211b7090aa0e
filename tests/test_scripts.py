"""The commands a person types, and the mistakes they make."""

import inspect
import json
import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ms_diffusion import checkpoint, data, samplers

ROOT = Path(__file__).parents[1]
TINY = [
    "--model.dim=8", "--model.dim_mults=[1]", "--model.convnext_mult=1", "--diffusion.timesteps=30",
    "--train.batch_size=4", "--train.sample_every=0", "--train.log_every=1", "--runtime.device=CPU",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of two steps, made by the command line in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    command = [os.sys.executable, ROOT / "scripts" / "train.py", "--out", folder, *TINY, "--train.steps=2"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder.parent)
    assert result.returncode == 0, result.stderr
    assert "timesteps: 30" in result.stdout, "the resolved configuration is printed"
    assert "1797 images of digits; CPU, graph mode" in result.stdout and "loss.png" in result.stdout
    return folder


def test_a_run_is_sampled_from_its_folder_alone(trained, run_script, tmp_path):
    outputs = []
    for batch_size in (5, 2):
        png, gif, npz = (tmp_path / f"{batch_size}{suffix}" for suffix in (".png", ".gif", ".npz"))
        words = ["--run", trained, "--num", 5, "--seed", 3, "--batch_size", batch_size]
        status, out, err = run_script("sample", *words, "--out", png, "--gif", gif, "--npz", npz)
        assert status == 0, err
        assert f"5 images after 2 training steps (ema): {png}" in out and str(gif) in out and str(npz) in out
        outputs.append(dict(np.load(npz)))
        with Image.open(gif) as animation:
            assert animation.n_frames > 10
        assert Image.open(png).size == (2 + 3 * 58, 2 + 2 * 58)
    first, second = outputs
    assert first["samples"].shape == (5, 1, 8, 8) and first["images"].shape == (5, 8, 8, 1)
    assert np.array_equal(data.to_uint8(first["samples"]), first["images"].transpose(0, 3, 1, 2))
    assert np.abs(first["samples"] - second["samples"]).max() < 1e-4, "image i depends on the batch size"


def test_the_same_seed_gives_the_same_picture(trained, run_script, tmp_path):
    pictures = []
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        assert run_script("sample", "--run", trained, "--num", 2, "--seed", seed, "--out", tmp_path / name)[0] == 0
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_from_the_command_line(name, trained, run_script, tmp_path):
    npz = tmp_path / "a.npz"
    words = ["--run", trained, "--num", 3, "--sampler", name, "--out", tmp_path / "a.png", "--npz", npz]
    status, out, err = run_script("sample", *words, "--steps", 5, "--gif", tmp_path / "a.gif")
    assert status == 0 and "3 images" in out, err
    images = np.load(npz)["samples"]
    assert images.shape == (3, 1, 8, 8) and np.isfinite(images).all()
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 5


def test_ancestral_is_what_it_was(trained, run_script, tmp_path):
    """All steps asked for by number are Algorithm 2's own, bit for bit."""
    found = []
    for words in ([], ["--sampler", "ancestral", "--steps", 30], ["--variance", "fixed_small"]):
        npz, png = tmp_path / "a.npz", tmp_path / "a.png"
        status, _, err = run_script("sample", "--run", trained, "--num", 2, "--npz", npz, "--out", png, *words)
        assert status == 0, err
        found.append(np.load(npz)["samples"])
    assert np.array_equal(found[0], found[1]) and np.abs(found[0] - found[2]).max() < 1e-4


@pytest.mark.parametrize(
    "name, plain, words",
    [
        ("heun", ["--churn=20"], ["--churn_from=0.5"]), ("heun", ["--churn=20"], ["--churn_to=5"]),
        ("euler", ["--churn=20"], ["--churn_noise=1.1"]), ("predictor_corrector", [], ["--corrections=2"]),
    ],
)
def test_options_of_a_sampler_change_its_images(name, plain, words, trained, run_script, tmp_path):
    found = []
    for more in ([], words):
        npz = tmp_path / "a.npz"
        command = ["--run", trained, "--num", 2, "--sampler", name, "--steps", 5, "--out", tmp_path / "a.png"]
        status, _, err = run_script("sample", *command, "--npz", npz, *plain, *more)
        assert status == 0, err
        found.append(np.load(npz)["samples"])
    assert np.isfinite(found).all() and np.abs(found[0] - found[1]).max() > 1e-3


def test_every_option_of_every_sampler_can_be_given(run_script):
    _, out, _ = run_script("sample", "--help")
    for sampler in samplers.SAMPLERS.values():
        for name, parameter in inspect.signature(sampler).parameters.items():
            assert parameter.kind is not parameter.KEYWORD_ONLY or f"--{name} " in out, name


@pytest.fixture(scope="module")
def modern(tmp_path_factory):
    """A run that predicts v, learns its variance, and begins from noise alone."""
    folder = tmp_path_factory.mktemp("runs") / "modern"
    words = ["--diffusion.variance=learned", "--diffusion.objective=v", "--diffusion.zero_terminal_snr=true"]
    command = [os.sys.executable, ROOT / "scripts" / "train.py", "--out", folder, *TINY, "--train.steps=2", *words]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder.parent)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_learned_variance_in_few_steps(modern, trained, run_script, tmp_path):
    """What the run learned is the default, and all T steps by number are Algorithm 2's."""
    words, found = ["--num", 2, "--out", tmp_path / "a.png", "--npz", tmp_path / "a.npz"], []
    for more in ([], ["--variance=learned"], ["--steps=7"], ["--steps=7", "--variance=fixed_small"]):
        status, _, err = run_script("sample", "--run", modern, *words, *more)
        assert status == 0, err
        found.append(np.load(tmp_path / "a.npz")["samples"])
    every, asked, few, small = found
    assert np.isfinite(found).all() and np.abs(every - asked).max() < 1e-4
    assert np.abs(few - small).max() > 1e-3
    status, _, err = run_script("sample", "--run", trained, *words, "--variance=learned")
    assert status == 2 and "the network learned none (diffusion.variance is fixed_small)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_where_x_T_holds_no_signal(name, modern, run_script, tmp_path):
    words = ["--run", modern, "--num", 2, "--sampler", name, "--steps", 5, "--spacing=trailing"]
    status, _, err = run_script("sample", *words, "--out", tmp_path / "a.png", "--npz", tmp_path / "a.npz")
    if status == 0:
        assert np.isfinite(np.load(tmp_path / "a.npz")["samples"]).all()
    else:
        assert status == 2 and "x_T holds no signal, and this sampler divides by it: choose ancestral, ddim" in err
        assert err.count("\n") == 1 and not list(tmp_path.iterdir())
    refused = {"heun", "euler", "pndm", "plms", "euler_maruyama", "predictor_corrector"}
    assert (status == 2) == (name in refused)


def test_a_run_goes_on(trained, run_script, tmp_path):
    status, _, err = run_script("train", "--resume", trained, "--train.steps", 4)
    assert status == 0, err
    assert checkpoint.load_run(trained).step == 4
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert checkpoint.read_config(trained).train.steps == 4


@pytest.mark.parametrize(
    "words, messages",
    [
        (["--train.stepz=5"], ["--train.stepz=5"]),
        (["--train.steps=many"], ["train.steps", "many"]),
        (["--model.dim=7"], ["model.dim is 7: it must be even"]),
        (["--data.image_size=10"], ["data.image_size is 10: it must be a multiple of 4"]),
        (["--runtime.device=TPU"], ["runtime.device", "TPU"]),
        (["--data.name=fashion_mnist", "--data.folder={tmp}", "--data.image_size=28"], ["{tmp}", "ubyte.gz"]),
        (["--data.name=images", "--data.folder={tmp}/absent"], ["{tmp}/absent"]),
        (["--config={tmp}/absent.yaml"], ["absent.yaml"]),
        (["--train.precision=bf16", "--runtime.device=CPU"], ["train.precision is bf16: CPU cannot compute in it"]),
        (["--model.channels=2"], ["model.channels is 2"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words, messages, run_script, tmp_path):
    out = tmp_path / "out"
    status, _, err = run_script("train", "--out", out, *[word.format(tmp=tmp_path) for word in words])
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for message in messages:
        assert message.format(tmp=tmp_path) in err
    assert not out.exists()


def test_a_truncated_file_is_named_and_leaves_nothing(run_script, tmp_path):
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(100))
    words = ["--data.name=mnist", f"--data.folder={tmp_path}", "--data.image_size=28"]
    status, _, err = run_script("train", "--out", tmp_path / "out", *words)
    assert status == 2 and str(file) in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_here(run_script, tmp_path, monkeypatch):
    from ms_diffusion import runtime

    monkeypatch.setattr(runtime, "loads", lambda name: False)
    status, _, err = run_script("train", "--out", tmp_path / "out", "--runtime.device=Ascend")
    assert status == 2 and "CANN" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_run_folder_in_use(trained, run_script):
    before = sorted(path.name for path in trained.rglob("*"))
    status, _, err = run_script("train", "--out", trained, *TINY)
    assert status == 2 and "is not empty" in err and "--overwrite" in err
    assert sorted(path.name for path in trained.rglob("*")) == before


def test_a_folder_that_cannot_be_written(run_script, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = run_script("train", "--out", tmp_path / "file" / "run", *TINY)
    assert status == 2 and "cannot write the run folder" in err


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give either --out FOLDER"), (["--out=a", "--resume=b"], "give either --out FOLDER"),
        (["--resume=b", "--overwrite"], "give one of them"), (["--resume={tmp}"], "it has no config.yaml"),
        (["--resume={run}", "--train.lr=0.5"], "train.lr is 0.0001 in the run and 0.5 on the command line"),
        (["--resume={run}", "--train.steps=1"], "steps: give more --train.steps"),
    ],
)
def test_out_and_resume(words, message, trained, run_script, tmp_path):
    status, _, err = run_script("train", *[word.format(tmp=tmp_path, run=trained) for word in words])
    assert status == 2 and message in err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--out={tmp}/a.nonsense"], "must end in"), (["--out={tmp}/absent/a.png"], "there is no folder"),
        (["--gif={tmp}/a.png"], "must end in .gif"), (["--npz={tmp}/a.zip"], "must end in .npz"),
        (["--sampler=dimm"], "no sampler dimm: choose from ancestral, ddim, dpmpp_2m"),
        (["--sampler=ddim", "--steps=31"], "steps is 31: there are 30 noise levels"), (["--steps=0"], "steps"),
        (["--steps=31"], "steps is 31: there are 30"), (["--sampler=ddim", "--eta=-1"], "eta is -1.0"),
        (["--sampler=ddim", "--spacing=even"], "spacing is 'even': choose from trailing"),
        (["--eta=0.5"], "eta is no option of the sampler ancestral"),
        (["--sampler=heun", "--corrections=2"], "corrections is no option of the sampler heun"),
        (["--sampler=ddim", "--churn_from=1"], "churn_from is no option of the sampler ddim"),
        (["--sampler=heun", "--churn_to=1"], "churn is 0, and churn_from, churn_to and churn_noise are parts of it"),
        (["--sampler=predictor_corrector", "--corrections=-1"], "corrections -1"), (["--churn_noise=x"], "churn_noise"),
        (["--variance=small"], "variance is 'small': choose from fixed_small, fixed_large, learned"),
        (["--num=0"], "num"), (["--seed=-1"], "seed"), (["--run={tmp}"], "no run folder"), (["--nun=3"], "--nun=3"),
    ],
)
def test_mistakes_in_sampling(words, message, trained, run_script, tmp_path):
    words = [word.format(tmp=tmp_path) for word in words]
    status, _, err = run_script("sample", "--run", trained, "--out", tmp_path / "a.png", *words)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_forward_process(run_script, tmp_path):
    status, _, err = run_script("plot_forward", "--out", tmp_path / "f.png", "--diffusion.scale_betas=false")
    assert status == 0, err
    assert Image.open(tmp_path / "f.png").width > 1000
    for words, message in ((["--steps=[200]"], "from 0 to 199"), (["--image", tmp_path / "no.jpg"], "no.jpg")):
        status, _, err = run_script("plot_forward", "--out", tmp_path / "g.png", *words)
        assert status == 2 and message in err and not (tmp_path / "g.png").exists()


def test_loss_curve(trained, run_script, tmp_path):
    words = ["--run", trained, "--out", tmp_path / "loss.png"]
    reference = ROOT / "docs" / "tutorial_loss.json"
    assert run_script("plot_loss", *words, "--reference", reference)[0] == 0
    assert (tmp_path / "loss.png").stat().st_size > 1000
    for wrong, message in ((["--run", tmp_path], "no metrics.jsonl"), (["--reference", tmp_path], "cannot draw")):
        status, _, err = run_script("plot_loss", *words, *wrong)
        assert status == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_likelihood(mode, trained, run_script, tmp_path):
    words = ["--run", trained, "--num", 3, "--ode", 2, "--probes", 2, f"--runtime.mode={mode}"]
    status, out, err = run_script("likelihood", *words, "--out", tmp_path / "terms.png")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("3 images of digits; ") and "training steps (ema)" in lines[0]
    end = next(i for i, line in enumerate(lines) if line.startswith("variational bound: "))
    assert lines[1].startswith("L_0 ") and lines[2].startswith("L_{t-1}, t = 1 to ")
    assert lines[end - 1].startswith("L_T ")
    terms = [float(line.split()[-1]) for line in lines[1:end]]
    assert sum(terms) == pytest.approx(float(lines[end].split()[2]), abs=1e-3)
    assert "2 images" in lines[-1] and "with 2 probes" in lines[-1]
    assert Image.open(tmp_path / "terms.png").width > 500


@pytest.mark.parametrize(
    "words, message",
    [
        (["--out={tmp}/a.nonsense"], "must end in"), (["--num=0"], "num"), (["--num=2", "--ode=3"], "--ode is 3"),
        (["--run={tmp}"], "no run folder"), (["--probes=0"], "probes"),
        (["--labels=own"], "knows no labels (model.num_classes is 0): leave it out"), (["--labels=cat"], "labels"),
    ],
)
def test_mistakes_in_likelihood(words, message, trained, run_script, tmp_path):
    words = [word.format(tmp=tmp_path) for word in words]
    status, _, err = run_script("likelihood", "--run", trained, "--out", tmp_path / "a.png", *words)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_pytorch_has_not_cannot_be_compared(run_script, tmp_path):
    pytest.importorskip("torch")
    words = [*TINY, "--diffusion.objective=v", "--out", tmp_path / "report"]
    status, _, err = run_script("compare_torch", *words)
    assert status == 2 and "diffusion.objective is 'v': the PyTorch baseline has nothing like it" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_every_command_has_help(run_script):
    launcher = ROOT / "scripts" / "launch_ranks.py"  # train_distributed.sh is its command
    for script in set((ROOT / "scripts").glob("*.py")) - {launcher}:
        status, out, _ = run_script(script.stem, "--help")
        assert status == 0 and f"python scripts/{script.name}" in out


def test_shell_commands_can_be_run():
    for script in (ROOT / "scripts/demo.sh", ROOT / "scripts/test.sh", ROOT / ".ci/run"):
        assert script.stat().st_mode & stat.S_IXUSR
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("name, next_word", [("demo", "scripts/train.py"), ("test", "-m")])
@pytest.mark.parametrize("status, goes_on", [(0, True), (2, True), (1, False), (130, False)])
def test_a_missing_compiler_stops_nothing_and_a_bug_does(name, next_word, status, goes_on, tmp_path):
    """demo.sh and test.sh where build_kernels.py ends with `status`, and everything else with 0."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / f"{name}.sh").write_text((ROOT / "scripts" / f"{name}.sh").read_text())
    (tmp_path / "scripts" / "environment.sh").write_text("python=./python\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$1" >>called\n[ "$1" != scripts/build_kernels.py ] || exit {status}\n')
    python.chmod(0o755)
    result = subprocess.run(["bash", str(tmp_path / "scripts" / f"{name}.sh")], capture_output=True, text=True)
    called = (tmp_path / "called").read_text().splitlines()
    assert called[0] == "scripts/build_kernels.py" and not result.stderr
    assert called[1:2] == ([next_word] if goes_on else []) and (result.returncode == 0) == goes_on


def test_a_machine_without_a_fitting_python(tmp_path):
    """environment.sh on a machine whose only Python is 3.13."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "python3"
    fake.write_text("#!/bin/sh\nexit 1\n")  # what the check of the version answers
    fake.chmod(0o755)
    (tmp_path / "bin" / "cat").symlink_to("/bin/cat")
    result = subprocess.run(
        ["/bin/bash", "-c", f". {ROOT}/scripts/environment.sh requirements.txt"],
        cwd=tmp_path, env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True,
    )
    assert result.returncode == 2 and "no Python 3.9 to 3.12 here" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / ".venv").exists()


@pytest.mark.slow
def test_the_demo_makes_digits(tmp_path):
    """bash scripts/demo.sh: all ten digits among 100 samples, and most of the samples are digits to the judge."""
    run = tmp_path / "demo"
    result = subprocess.run(["bash", str(ROOT / "scripts/demo.sh"), str(run)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = int(result.stdout.split(" of 10 digits found")[0].split()[-1])
    assert found == 10
    assert float(result.stdout.split("mean probability ")[1].split()[0]) > 0.85
    for name in ("samples.png", "denoise.gif", "loss.png"):
        assert str(run / name) in result.stdout and (run / name).stat().st_size > 1000


# ---- Labels ----


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A conditional run and a classifier, both of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    for script, name in (("train", "run"), ("train_classifier", "classifier")):
        command = [os.sys.executable, ROOT / "scripts" / f"{script}.py", "--out", folder / name, *TINY]
        command += ["--train.steps=2", "--model.num_classes=10"]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
        assert result.returncode == 0, result.stderr
    assert "accuracy on 500 of the training images" in result.stdout
    return folder


@pytest.mark.parametrize("words, labels", [
    (["--label=all"], [0, 1, 2, 3]), (["--label=3"], [3] * 4), (["--label=5,2", "--guidance=3"], [5, 2, 5, 2]),
    (["--label=1", "--guidance=2", "--guidance_rescale=0.7", "--guidance_interval=[5,20]"], [1] * 4),
    (["--label=1,2", "--guidance=2", "--classifier={folder}/classifier"], [1, 2, 1, 2]), ([], None),
])
def test_labels_are_sampled(words, labels, conditional, run_script, tmp_path):
    samples = []
    for batch_size in (4, 3):
        npz = tmp_path / f"{batch_size}.npz"
        status, _, err = run_script(
            "sample", "--run", conditional / "run", "--num", 4, "--batch_size", batch_size, "--out", tmp_path / "a.png",
            "--npz", npz, *[word.format(folder=conditional) for word in words],
        )
        assert status == 0, err
        arrays = dict(np.load(npz))
        assert (arrays["labels"].tolist() if "labels" in arrays else None) == labels
        samples.append(arrays["samples"])
    assert np.abs(samples[0] - samples[1]).max() < 1e-4, "image i depends on the batch size"


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_likelihood_of_a_conditional_run(mode, conditional, run_script, tmp_path):
    """Each image is told its own label, whatever the batches; without labels other figures come out."""
    words = ["--run", conditional / "run", "--num", 5, "--ode", 2, "--probes", 2, f"--runtime.mode={mode}"]
    figures = []
    for more in ([], ["--labels=own", "--batch_size=2"], ["--labels=none"]):
        status, out, err = run_script("likelihood", *words, *more, "--out", tmp_path / "terms.png")
        assert status == 0, err
        assert (", each told its label" in out) == (more != ["--labels=none"])
        figures.append([float(line.split()[2]) for line in out.splitlines() if " bits/dim " in line])
    own, small, none = np.array(figures)
    assert own.shape == (2,) and np.abs(own - small).max() < 2e-3 and np.abs(own - none).min() > 0


def test_a_classifier_guides_a_run_without_labels(trained, conditional, run_script, tmp_path):
    pictures = []
    for weight in (0, 50):
        words = ["--label=1", f"--guidance={weight}", "--classifier", conditional / "classifier"]
        status, _, err = run_script(
            "sample", "--run", trained, "--num", 2, "--out", tmp_path / f"{weight}.png", *words
        )
        assert status == 0, err
        pictures.append((tmp_path / f"{weight}.png").read_bytes())
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("kind, words, message", [
    ("run", ["--label=10"], "10 is no label of this run, which has 0 to 9"),
    ("run", ["--label=cat"], "give a label, several with commas between, or all"),
    ("run", ["--guidance=2"], "--guidance has no label to guide to: give --label"),
    ("run", ["--label=1", "--guidance=-1"], "guidance"),
    ("run", ["--label=1", "--guidance_interval=[9,5]"], "its first noise level must not be above its last"),
    ("run", ["--label=1", "--classifier={run}"], "does not fit the network"),
    ("run", ["--label=1", "--classifier={tmp}"], "is no run folder"),
    ("run", ["--label=-1"], "-1 is no label of this run, which has 0 to 9"),
    ("trained", ["--label=1"], "knows no labels (model.num_classes is 0)"),
    ("trained", ["--label=1", "--guidance=2"], "knows no labels (model.num_classes is 0)"),
    ("trained", ["--guidance=2"], "--guidance has no label to guide to"),
])
def test_mistakes_with_labels(kind, words, message, trained, conditional, run_script, tmp_path):
    run = trained if kind == "trained" else conditional / "run"
    words = [word.format(run=conditional / "run", tmp=tmp_path) for word in words]
    status, _, err = run_script("sample", "--run", run, "--out", tmp_path / "a.png", *words)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_judge_compares_with_the_asked_labels(run_script, tmp_path):
    real = load_digits()
    images, labels = np.rint(real.images[:50] / 16 * 255).astype(np.uint8)[..., None], real.target[:50].copy()
    labels[:10] = (labels[:10] + 1) % 10
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    status, out, err = run_script("judge_digits", "--npz", tmp_path / "a.npz")
    assert status == 0, err
    assert "40 of 50 images, 80.0%, show the asked label" in out
    np.savez(tmp_path / "b.npz", images=images)
    assert "asked" not in run_script("judge_digits", "--npz", tmp_path / "b.npz")[1]


def test_another_number_of_classes_than_the_datas(run_script, tmp_path):
    for script in ("train", "train_classifier"):
        status, _, err = run_script(script, "--out", tmp_path / "out", *TINY, "--model.num_classes=7")
        assert status == 2 and "model.num_classes is 7, and digits has 10 classes: take 10" in err
        assert err.count("\n") == 1 and not (tmp_path / "out").exists()
    status, _, err = run_script("train_classifier", "--out", tmp_path / "out", *TINY)
    assert status == 2 and "model.num_classes is 0" in err and not (tmp_path / "out").exists()


# ---- Editing ----


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures to edit: an image, one in colour and larger, a mask, a mask without white, one of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / "gray.png")
    Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(folder / "colour.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:7] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(0 * mask).save(folder / "black.png")
    Image.fromarray(mask[:, :6]).save(folder / "narrow.png")
    (folder / "text.png").write_text("no picture")
    return folder


def edit(run_script, tmp_path, mode, run, *words):
    """What edit.py printed, its arrays, and the size of its picture."""
    npz, png = tmp_path / "a.npz", tmp_path / "a.png"
    status, out, err = run_script("edit", mode, "--run", run, "--out", png, "--npz", npz, *words)
    assert status == 0 and str(png) in out and str(npz) in out, err
    return out, dict(np.load(npz)), Image.open(png).size


@pytest.mark.parametrize("words", [[], ["--sampler=dpmpp_2m", "--steps=5"], ["--sampler=heun", "--strength=1"]])
def test_variations(words, trained, run_script, tmp_path):
    found = []
    for batch_size in (3, 2):
        out, arrays, size = edit(
            run_script, tmp_path, "variations", trained, "--image=7", "--num=3", f"--batch_size={batch_size}", *words
        )
        assert "3 variations by way of t = " in out and size == (60 + 14 + 2 + 3 * 58, 60)
        found.append(arrays)
    digits = data.make_dataset(checkpoint.read_config(trained).data, 1)
    assert np.array_equal(found[0]["given"], digits.batch([7])) and found[0]["samples"].shape == (3, 1, 8, 8)
    assert np.abs(found[0]["samples"] - found[1]["samples"]).max() < 1e-4, "image i depends on the batch size"
    assert np.abs(found[0]["samples"][0] - found[0]["samples"][1]).max() > 1e-3


def test_a_weak_variation_hardly_differs_and_the_strongest_is_a_sample(trained, run_script, tmp_path):
    words = ["--image=7", "--num=2", "--sampler=ddim", "--steps=1"]
    _, arrays, _ = edit(run_script, tmp_path, "variations", trained, *words, "--strength=0.01")
    assert np.abs(arrays["samples"] - arrays["given"]).max() < 0.2
    _, arrays, _ = edit(run_script, tmp_path, "variations", trained, *words, "--strength=1")
    npz = tmp_path / "b.npz"
    status, _, err = run_script("sample", "--run", trained, "--out", tmp_path / "b.png", "--npz", npz, *words[1:])
    assert status == 0 and np.array_equal(np.load(npz)["samples"], arrays["samples"]), err


def test_interpolation(trained, pictures, run_script, tmp_path):
    words = ["--image=7", "--image", pictures / "gray.png", "--num=4", "--steps=5", "--iterations=3"]
    out, arrays, size = edit(run_script, tmp_path, "interpolate", trained, *words, "--strength=0.5")
    assert "4 images from one to the other" in out and size == (60 + 14 + 2 + 4 * 58 + 14 + 60, 60)
    assert arrays["given"].shape == (2, 1, 8, 8) and arrays["samples"].shape == (4, 1, 8, 8)
    assert np.array_equal(data.to_uint8(arrays["given"])[1, 0], np.asarray(Image.open(pictures / "gray.png")))


@pytest.mark.parametrize("mask, unknown", [
    ("center", np.s_[2:6, 2:6]), ("left", np.s_[:, :4]), ("right", np.s_[:, 4:]), ("top", np.s_[:4]),
    ("bottom", np.s_[4:]), ("{pictures}/mask.png", np.s_[2:5, 1:7]),
])
def test_inpainting(mask, unknown, trained, pictures, run_script, tmp_path):
    """The known pixels are those of the file, also in the picture's bytes."""
    words = [f"--mask={mask.format(pictures=pictures)}", "--num=9", "--steps=6", "--jump=2", "--resamplings=2"]
    out, arrays, size = edit(
        run_script, tmp_path, "inpaint", trained, "--image", pictures / "gray.png", *words, "--batch_size=4"
    )
    expected = np.ones((8, 8), bool)
    expected[unknown] = False
    assert np.array_equal(arrays["known"], expected) and size == (60 + 14 + 2 + 8 * 58, 118)
    assert f"9 times {64 - expected.sum()} of 64 pixels anew" in out
    given = np.asarray(Image.open(pictures / "gray.png"))
    for image in arrays["samples"]:
        assert np.array_equal(image[0][expected], data.to_float(given)[expected])
        assert np.array_equal(data.to_uint8(image)[0][expected], given[expected])
        assert not (image == arrays["given"][0])[0][~expected].all()


@pytest.mark.parametrize("mode, words", [
    ("inpaint", ["--image=7", "--jump=2", "--resamplings=1"]), ("variations", ["--image=7"]),
    ("interpolate", ["--image=7", "--image=8"]),
])
def test_labels_guide_an_edit(mode, words, conditional, run_script, tmp_path):
    words = [*words, "--num=2", "--steps=4", "--runtime.mode=pynative"]
    plain, unguided, guided = (
        edit(run_script, tmp_path, mode, conditional / "run", *words, *labels)[1]["samples"]
        for labels in ([], ["--label=3", "--guidance=0"], ["--label=3", "--guidance=4"])
    )
    assert np.abs(plain - unguided).max() < 1e-4 and not np.array_equal(plain, guided)


def test_a_picture_may_be_resized(trained, pictures, run_script, tmp_path):
    words = ["--image", pictures / "colour.png", "--num=1", "--steps=2", "--strength=0.1"]
    _, arrays, _ = edit(run_script, tmp_path, "variations", trained, *words, "--resize=true")
    assert np.array_equal(arrays["given"][0], data.to_float(data.read_picture(pictures / "colour.png", 1, 8)))


@pytest.mark.parametrize("mode, words, message", [
    ("variations", [], "image"), ("variations", ["--image=1797"], "--image is 1797: digits has images 0 to 1796"),
    ("variations", ["--image=1", "--image=2"], "--image is given 2 times: give it once"),
    ("variations", ["--image={pictures}/no.png"], "no.png cannot be read as a picture"),
    ("variations", ["--image={pictures}/text.png"], "text.png cannot be read as a picture"),
    ("variations", ["--image={pictures}/colour.png"], "is 16x20: give a picture of 8x8, or --resize true"),
    ("variations", ["--image=1", "--strength=0"], "strength is 0.0: it must be above 0 and at most 1"),
    ("variations", ["--image=1", "--strength=1.5"], "strength is 1.5"),
    ("variations", ["--image=1", "--strength=0.5", "--steps=16"], "steps is 16: there are 15 noise levels"),
    ("variations", ["--image=1", "--sampler=dimm"], "no sampler dimm"),
    ("variations", ["--image=1", "--eta=0.5"], "eta is no option of the sampler ancestral"),
    ("variations", ["--image=1", "--label=3"], "knows no labels"),
    ("variations", ["--image=1", "--mask=left"], "--mask"),
    ("variations", ["--image=1", "--run={tmp}"], "no run folder"),
    ("variations", ["--image=1", "--out={tmp}/a.nonsense"], "must end in"),
    ("variations", ["--image=1", "--npz={tmp}/a.zip"], "must end in .npz"),
    ("interpolate", ["--image=1"], "--image is given 1 times: give it twice"),
    ("interpolate", ["--image=1", "--image=2", "--num=1"], "--num is 1"),
    ("interpolate", ["--image=1", "--image=2", "--sampler=heun"], "--sampler"),
    ("interpolate", ["--image=1", "--image=2", "--steps=31"], "steps is 31: there are 30"),
    ("interpolate", ["--image=1", "--image=2", "--strength=-1"], "strength is -1.0"),
    ("inpaint", ["--image=1", "--mask={pictures}/narrow.png"], "narrow.png is 6x8: give a picture of 8x8"),
    ("inpaint", ["--image=1", "--mask={pictures}/black.png"], "nothing in it is white"),
    ("inpaint", ["--image=1", "--mask=middle"], "middle cannot be read as a picture"),
    ("inpaint", ["--image=1", "--sampler=heun"], "sampler"), ("inpaint", ["--image=1", "--steps=31"], "steps is 31"),
    ("inpaint", ["--image=1", "--steps=5"], "jump is 5, and there are 5 steps"),
    ("inpaint", ["--image=1", "--resamplings=0"], "resamplings"),
    ("paint", ["--image=1"], "variations"),
])
def test_mistakes_in_editing(mode, words, message, trained, pictures, run_script, tmp_path):
    words = [word.format(pictures=pictures, tmp=tmp_path) for word in words]
    status, _, err = run_script("edit", mode, "--run", trained, "--out", tmp_path / "a.png", *words)
    assert status == 2 and message in err and err.count("\n") == 1 and err.startswith("error: ")
    assert not list(tmp_path.iterdir())
