"""The notebooks of the course: made of the present source, the same in both languages, and their code runs."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from scipy.stats import norm

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("build_notebooks", ROOT / "scripts" / "build_notebooks.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)
REMAKE = "make the notebooks again: bash scripts/notebooks.sh"
LANGUAGES = sorted(build.NAMES)


def committed(language):
    return nbformat.read(build.COURSE / build.NAMES[language], as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook, language=None):
    return [
        cell.source for cell in notebook.cells
        if cell.cell_type == "markdown" and cell.metadata.lang == (language or cell.metadata.lang)
    ]


def printed(cell):
    return "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout")


def numbers(text):
    return [float(word.replace(",", "")) for word in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", text)]


def find(cells, words):
    """What the cell whose code holds `words` has printed."""
    (cell,) = [cell for cell in cells if words in cell.source]
    return printed(cell)


def sampled_gaussian(scale, small, noise):
    """Mean and deviation that Algorithm 2 gives with the best network of N(0.3, 0.5^2): each step is linear."""
    mean, variance, betas = 0.0, 1.0, scale * np.linspace(1e-4, 0.02, 200)
    products = np.cumprod(1 - betas)
    for t in reversed(range(200)):
        share = betas[t] / (0.25 * products[t] + 1 - products[t])
        mean = (mean - share * (mean - 0.3 * np.sqrt(products[t]))) / np.sqrt(1 - betas[t])
        variance *= (1 - share) ** 2 / (1 - betas[t])
        if t > 0:
            variance += noise * betas[t] * ((1 - products[t - 1]) / (1 - products[t]) if small else 1)
    return mean, np.sqrt(variance)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after 20 training steps, and the folder that it ran in."""
    folder, notebook = tmp_path_factory.mktemp("course"), build.read_source()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_STEPS", "20")
        patch.delenv("COURSE_DATA", raising=False)
        patch.delenv("COURSE_RUN", raising=False)
        build.run(notebook, folder)
    return notebook, folder


# ---- The source ----


def test_both_languages_say_the_same():
    source = build.read_source()
    languages = [cell.metadata.lang for cell in source.cells if cell.cell_type == "markdown"]
    assert languages == ["en", "zh"] * (len(languages) // 2)
    numbered = set()
    for english, chinese in zip(texts(source, "en"), texts(source, "zh")):
        for pattern in (
            r"^#+(?: \d+(?:\.\d+)?)?",  # headings
            r"(?s)\$\$.*?\$\$",
            r"(?s)```.*?```",
            r"^(?:- |\d\. )",
        ):
            assert re.findall(pattern, english, re.M) == re.findall(pattern, chinese, re.M), english
        for pattern in (r"`([^`\n]+)`", r"\b(?:19|20)\d\d\b"):
            assert sorted(set(re.findall(pattern, english))) == sorted(set(re.findall(pattern, chinese))), english
        assert english.count("> **Question") == chinese.count("> **问：")
        mended = [re.findall(r"\d+", title) for title in re.findall(r"> \*\*Mended ([\d, ]+)\.\*\*", english)]
        assert mended == [re.findall(r"\d+", title) for title in re.findall(r"> \*\*修正 ([\d、]+)\*\*", chinese)]
        numbered.update(int(number) for title in mended for number in title)
    assert numbered == set(range(21))  # 0 is the example of a box; the tutorial has 20 defects


def test_every_text_is_in_its_language():
    source = build.read_source()
    assert not [text for text in texts(source, "en") if re.search("[\u3400-\u9fff]", text)]
    assert all(len(re.findall("[\u3400-\u9fff]", text)) > 10 for text in texts(source, "zh"))


# ---- What is committed ----


@pytest.mark.parametrize("language", LANGUAGES)
def test_committed_notebooks_are_the_source(language):
    wanted = build.translate(build.read_source(), language)
    found = committed(language)
    nbformat.validate(found)
    assert [(cell.cell_type, cell.source) for cell in found.cells] == [
        (cell.cell_type, cell.source) for cell in wanted.cells
    ], f"{REMAKE} (or --keep_outputs, where no code is new)"


@pytest.mark.parametrize("language", LANGUAGES)
def test_committed_notebooks_have_all_their_outputs(language):
    cells = code(committed(language))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error"]
    gifs = [out.data["image/gif"] for out in outputs if "image/gif" in out.get("data", ())]
    assert len(gifs) == 1 and len(gifs[0]) * 3 / 4 < 300e3
    assert "2000 steps in" in find(cells, "train(config")


def test_both_notebooks_have_the_same_code_and_outputs():
    english, chinese = (json.loads(json.dumps(code(committed(language)))) for language in LANGUAGES)
    assert english == chinese


@pytest.mark.parametrize("language", LANGUAGES)
def test_committed_notebooks_are_small_and_name_no_place(language):
    text = (build.COURSE / build.NAMES[language]).read_text(encoding="utf-8")
    assert len(text.encode()) < 1.5e6
    text = re.sub(r'"image/\w+": "[^"]*"', "", text)
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|mnt|Users|var)/\S*|[A-Z]:\\\\Users\S*", text)


# ---- Its code ----


def test_the_code_runs_and_writes_its_run_folder_alone(executed):
    notebook, folder = executed
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["annotated_diffusion"]
    assert "20 steps in" in find(code(notebook), "train(config")


def test_the_committed_outputs_show_the_present_library(executed):
    """Sources that the notebooks show, and what else they display, are those of a run now."""
    for now, then in zip(code(executed[0]), code(committed("en"))):
        shown, known = ([out for out in cell.outputs if "data" in out] for cell in (now, then))
        assert [sorted(out.data) for out in shown] == [sorted(out.data) for out in known], f"{now.source}: {REMAKE}"
        sources = [[out.data.get("text/markdown") for out in outs] for outs in (shown, known)]
        assert sources[0] == sources[1], REMAKE


def test_the_committed_numbers_are_computed_again(executed):
    """All that is printed before the training follows from seeds."""
    now, then = code(executed[0]), code(committed("en"))
    training = next(index for index, cell in enumerate(now) if "train(config" in cell.source)
    assert training > 15
    for mine, theirs in zip(now[1:training], then[1:training]):
        mine, theirs = numbers(printed(mine)), numbers(printed(theirs))
        np.testing.assert_allclose(mine, theirs, rtol=0.02, atol=2e-5, err_msg=REMAKE)


def test_the_answers_agree_with_closed_forms(executed):
    cells = code(executed[0])

    divergences = [numbers(line)[:2] for line in find(cells, 'KL(P || Q)').replace("KL", "").splitlines()]
    assert divergences == [pytest.approx([value] * 2, abs=0.01) for value in (
        np.log(2) + 2 / 8 - 0.5, np.log(0.5) + 5 / 2 - 0.5, 0,
    )]

    bound = [numbers(line.split("  ")[-1])[0] for line in find(cells, "by_divergences").splitlines()[1:3]]
    likelihood = norm.logpdf(0.5, 0, np.sqrt(0.9**6 + 0.09 * (1 + 0.81 + 0.6561)))
    assert bound[0] == pytest.approx(bound[1], abs=0.01) and bound[0] < likelihood
    assert f"{likelihood:.4f}" in find(cells, "by_divergences")

    means, noises = (numbers(line)[-1] for line in find(cells, "predict_x_start(x_t, steps, guess)").splitlines())
    assert means == pytest.approx(noises, rel=1e-3)

    found = [numbers(line[28:]) for line in find(cells, "perfect_network").splitlines()]
    expected = [sampled_gaussian(*options) for options in ((5, 1, 1), (5, 0, 1), (5, 1, 0), (1, 1, 1))]
    np.testing.assert_allclose(found, expected, atol=0.008)  # 4 standard errors of the mean of 65,536 pixels
    assert abs(expected[3][0] - 0.3) > 0.01 > abs(expected[0][0] - 0.3)  # a perfect network, and still wrong

    rows = [numbers(line) for line in find(cells, "predicts_nothing").replace("l1", "").replace("l2", "").splitlines()]
    assert [row[0] for row in rows] == pytest.approx([row[1] for row in rows], rel=0.01)
    assert [row[1] for row in rows[:2]] == [0.7979, 1.0]

    skipped = find(cells, "train_once(2)").splitlines()[-1]
    assert "finite False" in skipped and "1.3e+33 -> 6.49e+32" in skipped and "weight 0.0e+00" in skipped


# ---- The script ----


def test_ends_of_lines_are_no_spaces_between_chinese_characters():
    assert build.unwrap("扩散\n模型，\n> “前向\n过程”") == "扩散模型，“前向过程”"
    assert build.unwrap("扩散\n\n模型\nGELU\n\n> 问\n\n> 答") == "扩散\n\n模型\nGELU\n\n> 问\n\n> 答"


def test_a_progress_bar_is_seen_in_its_last_state():
    assert build.last_look("a\n 0%\r50%\r100%\r\nb\n") == "a\n100%\nb\n"


def test_outputs_are_kept_for_new_texts_only(run_script, tmp_path):
    notebook = committed("en")
    notebook.cells[0].source = "# Another title"
    (tmp_path / build.NAMES["en"]).write_text(nbformat.writes(notebook))
    status, out, _ = run_script("build_notebooks", "--keep_outputs", "--out", tmp_path)
    assert status == 0 and build.NAMES["zh"] in out
    for language in LANGUAGES:
        made = nbformat.read(tmp_path / build.NAMES[language], as_version=4)
        assert made == committed(language)

    code(notebook)[0].source += "\nprint()"
    (tmp_path / build.NAMES["en"]).write_text(nbformat.writes(notebook))
    status, _, err = run_script("build_notebooks", "--keep_outputs", "--out", tmp_path)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
