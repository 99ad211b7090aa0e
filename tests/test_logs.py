import logging
import re
import sys

import pytest
from tqdm import tqdm

from ms_diffusion.errors import UserError
from ms_diffusion.logs import LOG, TERMINAL, to_run

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}"


def lines(folder, rank=0):
    """(level, message) of each line of the log."""
    text = (folder / "logs" / f"rank_{rank}.log").read_text()
    return [re.fullmatch(rf"{STAMP} (\w+) (.*)", line).groups() for line in text.splitlines()]


def say():
    LOG.debug("seen on the bar")
    LOG.info("step %d", 1)
    LOG.warning("slow")
    LOG.error("bad")


SAID = [("DEBUG", "seen on the bar"), ("INFO", "step 1"), ("WARNING", "slow"), ("ERROR", "bad")]


def test_rank_0_speaks_to_the_terminal_and_the_file(tmp_path, capsys):
    with to_run(tmp_path):
        say()
    assert lines(tmp_path) == SAID
    assert capsys.readouterr() == ("", "step 1\nwarning: slow\nerror: bad\n")


def test_other_ranks_speak_to_their_files(tmp_path, capsys):
    with to_run(tmp_path, rank=3):
        say()
    assert lines(tmp_path, rank=3) == SAID
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "logs" / "rank_0.log").exists()


def test_a_second_run_in_one_process_appends_each_line_once(tmp_path, capsys):
    before = LOG.level, LOG.propagate, list(LOG.handlers)
    for _ in range(2):
        with to_run(tmp_path):
            LOG.info("begun")
    assert lines(tmp_path) == [("INFO", "begun")] * 2
    assert capsys.readouterr().err == "begun\nbegun\n"
    assert (LOG.level, LOG.propagate, LOG.handlers) == before


def test_lines_stand_above_a_bar(tmp_path, capsys):
    with to_run(tmp_path), tqdm(total=2, ascii=True, ncols=40, mininterval=0, file=TERMINAL) as bar:
        bar.update()
        LOG.info("between")
        bar.update()
    pieces = re.split(r"[\r\n]", capsys.readouterr().err)
    assert "between" in pieces, "a line of its own"
    assert sum("2/2" in piece for piece in pieces) >= 1
    assert lines(tmp_path) == [("INFO", "between")]


def test_a_users_mistake_is_one_line_in_the_file(tmp_path, capsys):
    with pytest.raises(UserError), to_run(tmp_path):
        raise UserError("give more --train.steps")
    assert lines(tmp_path) == [("ERROR", "give more --train.steps")]
    assert capsys.readouterr().err == "", "exit_on_user_error says it there"


@pytest.mark.parametrize("error", [ZeroDivisionError("by nought"), KeyboardInterrupt()])
def test_what_ends_a_run_leaves_its_traceback(error, tmp_path, capsys):
    def culprit():
        raise error

    with pytest.raises(type(error)), to_run(tmp_path, rank=1):
        culprit()
    text = (tmp_path / "logs" / "rank_1.log").read_text()
    assert re.match(rf"{STAMP} ERROR {type(error).__name__} ends the run\nTraceback ", text)
    assert "in culprit" in text and text.count("Traceback") == 1
    assert capsys.readouterr().err == "" and len(LOG.handlers) == 1


def test_a_log_that_cannot_be_written_is_one_warning(tmp_path, capsys):
    (tmp_path / "logs" / "rank_0.log").mkdir(parents=True)
    with to_run(tmp_path):
        LOG.info("one")
        LOG.info("two")
    said = capsys.readouterr().err.splitlines()
    assert sorted(line for line in said if "rank_0.log" not in line) == ["one", "two"]
    assert len(said) == 3 and any(line.startswith("warning: cannot write ") for line in said)


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(UserError, match="cannot make the folder .*logs"), to_run(tmp_path):
        pass


def test_a_program_with_its_own_logging_hears_each_line_once(tmp_path, capsys):
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        with to_run(tmp_path):
            LOG.info("once")
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().err == "once\n"
