"""The grader: students' processes, hostile ones among them, what was handed in, and what is said of it."""

import json
import os
import resource
import socket
import stat
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from course.grader import grade, sandbox, submission
from course.grader.check import Both, Call, Check, Mistake, agrees
from course.grader.inside import confinement, messages
from course.grader.sandbox import Leaf
from course.grader.submission import File
from course.grader.table import WIDTH, seed_line, table, width
from ms_diffusion.errors import UserError

ROOT = Path(__file__).parents[1]
PLAIN = Path(__file__).parent / "solutions" / "plain"
EXERCISES = grade.exercises()
SHORT = sandbox.Limits(call=6.0, exercise=30.0)


def plain(number):
    return (PLAIN / EXERCISES[number].FILE).read_bytes()


# ---- Hostile submissions ----

# Appended to a right solution of an exercise: code, help, and does it cost the whole exercise or the first part alone?
# FUNCTION is the exercise's first function, SECRET a file outside, GRADER the grader's folder.
HOSTILE = {
    "loop at import": ("while True: pass", "still runs after 6 seconds", True),
    "loop in a function": ("def FUNCTION(*_):\n    while True: pass", "still runs after 6 seconds", False),
    "os._exit": ("import os; os._exit(0)", "ends its own process (exit status 0)", True),
    "sys.exit": ("import sys; sys.exit(0)", "calls exit or sys.exit (line ", True),
    "SystemExit in a function": ("def FUNCTION(*_):\n    raise SystemExit", "calls exit or sys.exit (line ", False),
    "os._exit in a function": ("def FUNCTION(*_):\n    import os; os._exit(0)", "ends its own process", False),
    "segmentation fault": (
        "def FUNCTION(*_):\n    import ctypes; ctypes.string_at(0)", "its process crashed (SIGSEGV)", False),
    "10 GB": ("def FUNCTION(*_):\n    return np.ones(10 << 27)", "asks for too much memory", False),
    "fork bomb": ("import os\nwhile True: os.fork()", "raises PermissionError", True),
    "hands on what is not its own": ("""
import ctypes, fcntl, os, platform, socket, subprocess
succeeded = []
def call(name, on_x86, on_arm, *arguments):
    if ctypes.CDLL(None).syscall(on_x86 if platform.machine() == "x86_64" else on_arm, *arguments) < 0:
        raise OSError(name)
for name, attempt in {
    "program": lambda: subprocess.run(["true"]), "own process group": lambda: os.killpg(0, 9),
    "grader killed": lambda: os.kill(os.getppid(), 0), "everything killed": lambda: os.kill(-1, 0),
    "grader's memory": lambda: open(f"/proc/{os.getppid()}/mem"), "session": os.setsid, "network": socket.socket,
    "result file": lambda: open("SECRET", "w"), "grader changed": lambda: open("GRADER/grade.py", "r+"),
    "checks read": lambda: open("GRADER/checks/ex01.py"), "checks listed": lambda: os.listdir("GRADER/checks"),
    "NumPy changed": lambda: open(np.__file__, "r+"), "mode changed": lambda: os.chmod("SECRET", 0),
    "removed": lambda: os.remove("SECRET"), "renamed": lambda: os.rename("SECRET", "mine"),
    "linked": lambda: os.link("SECRET", "mine"), "temporary folder": lambda: open("/tmp/mine", "w"),
    "shared memory": lambda: open("/dev/shm/mine", "w"), "cut off": lambda: os.truncate("SECRET", 0),
    "signals by fcntl": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()), "disks": lambda: os.listdir("/dev"),
    "grader slowed down": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "grader limited": lambda: __import__("resource").prlimit(os.getppid(), 0),
    "scheduling": lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)),
    "disk's scheduling": lambda: call("ioprio_set", 251, 30, 1, 0, 3 << 13),
    "dates": lambda: os.utime("SECRET", (1, 1)),
    "attributes": lambda: call("removexattr", 197, 14, b"SECRET", b"user.mine"),
    "folders": lambda: os.mkdir("mine"), "links": lambda: os.symlink("SECRET", "mine"), "pipes": lambda: os.mkfifo("p"),
    "files in memory": lambda: os.memfd_create("mine"), "many open files": lambda: [os.pipe() for _ in range(200)],
    "keys": lambda: call("add_key", 248, 217, b"user", b"mine", b"x", 1, -4),
    "outlives the grader": lambda: call("prctl", 157, 167, 1, 0, 0, 0, 0),
}.items():
    try:
        attempt()
        succeeded.append(name)
    except OSError:
        pass
raise ValueError(succeeded)""", "raises ValueError: [] (line", True),
    "the library": ("import ms_diffusion", "a submission cannot import ms_diffusion", True),
    "the library in a function": (
        "def FUNCTION(*_):\n    import ms_diffusion.schedules", "a submission cannot import ms_diffusion", False),
    "NumPy and pytest patched": (
        "import sys\nnp.max = np.min = np.abs = lambda *a, **k: 0.0\nnp.allclose = np.array_equal = lambda *a: True\n"
        "sys.modules['pytest'] = sys.modules['course'] = None\ndef FUNCTION(*_): return np.zeros((2, 2))",
        "shape (2, 2) instead of", False),
    "answers forged": (
        "import __main__; __main__.answer = lambda *_: ({'points': 100, 'one': 'right'}, [])",
        "answers with something unreadable", True),
    "messages forged": (
        "import socket, sys, json\nfd = json.loads(sys.argv[1])['connection']\n"
        "def FUNCTION(*_):\n    socket.socket(fileno=fd).sendall(bytes([255]) * 16)",
        "answers with something unreadable", False),
    "flood": ("def FUNCTION(*_):\n    while True: print('x' * 1000)", "still runs after 6 seconds", False),
    "huge answer": (
        "def FUNCTION(*_):\n    return np.zeros(10 << 23)", "raises BadMessage: 671088640 bytes of arrays", False),
    "a liar": (
        "class Liar(np.ndarray):\n    __eq__ = __le__ = __lt__ = lambda self, other: True\n"
        "    __array_ufunc__ = None\n"
        "def FUNCTION(*_):\n    return np.zeros((2, 2)).view(Liar)", "shape (2, 2) instead of", False),
    "a terminal's control sequences": (
        "raise ValueError('\\x1b[2J\\x1b[1;1H\\r\\ntotal 100/100\\ud800')",
        "raises ValueError: [2J [1;1H total 100/100", True),
    "its own files": (
        "while True: open(f'{id(object())}', 'ab').write(bytes(1 << 26))", "raises OSError: [Errno 27]", True),
    "a syntax error": ("def f(:", "raises SyntaxError: invalid syntax (line ", True),
    "a Chinese comma": ("f(1，2)", "invalid character '，' (U+FF0C) (line ", True),
    "input": ("input()", "input() has nothing to read here", True),
}
CONFINED = {"fork bomb", "hands on what is not its own"}
"""What the kernel's protections stop."""
NEIGHBOURS = {1: "loop at import", 3: "os._exit", 4: "segmentation fault", 5: "hands on what is not its own"}


def hostile(number, name, secret):
    first = EXERCISES[number].parts(np.random.default_rng(0))[0].title
    code = HOSTILE[name][0].replace("FUNCTION", first).replace("SECRET", str(secret))
    return plain(number) + f"\n\n{code.replace('GRADER', str(Path(grade.__file__).parent))}\n".encode()


@pytest.fixture
def secret(tmp_path):
    """A file that must stay as it is."""
    file = tmp_path / "results.json"
    file.write_text("{}")
    mode = file.stat().st_mode
    yield file
    assert file.read_text() == "{}" and file.stat().st_mode == mode


@pytest.fixture(scope="module")
def need_protections():
    """Skips where a fork bomb would not be stopped."""
    [result] = grade.grade({1: File("ex01_schedule.py", plain(1))}, 3, [1], SHORT)

    def check():
        if result.missing or sandbox.exposed():
            pytest.skip(f"{result.missing or 'a place that submissions cannot read'} is missing here")

    return check


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_earns_nothing(name, secret, need_protections):
    if name in CONFINED:
        need_protections()
    _, hint, whole = HOSTILE[name]
    [result] = grade.grade({1: File("ex01_schedule.py", hostile(1, name, secret))}, 3, [1], SHORT)
    assert result.rows[0].points == 0 and hint in result.rows[0].help.en
    # Parts that do not call the function keep their points, in a new process if need be.
    assert result.points == (0 if whole else result.out_of - result.rows[0].out_of)
    for row in result.rows:
        assert row.help is None or all(letter.isprintable() for text in row.help for letter in text)
    assert max(map(width, table([result]).splitlines())) <= WIDTH


def test_a_tensor_that_lies(secret):
    code = b"""
class Liar(Tensor):
    __eq__ = __le__ = lambda self, other: True
    shape = property(lambda self: (3, 2, 4, 5))
def predict_noise(*_):
    return Liar(np.zeros((2, 2), np.float32))
"""
    [result] = grade.grade({3: File("ex03_x_start.py", plain(3) + code)}, 3, [3], SHORT)
    assert [row.points for row in result.rows] == [3, 0]
    assert "shape (2, 2) instead of (3, 2, 4, 5)" in result.rows[1].help.en


def test_hostile_code_costs_its_exercise_and_nothing_else(secret, need_protections):
    need_protections()
    files = {number: File(EXERCISES[number].FILE, hostile(number, name, secret)) for number, name in NEIGHBOURS.items()}
    files[2] = File("ex02_q_sample.py", plain(2))
    results = {result.number: result for result in grade.grade(files, 3, files, SHORT)}
    assert results[2].points == results[2].out_of == 8
    for number, name in NEIGHBOURS.items():
        assert results[number].rows[0].points == 0 and HOSTILE[name][1] in results[number].rows[0].help.en


def test_a_repository_that_submissions_can_read_is_said(monkeypatch, run_script):
    monkeypatch.setattr(sandbox, "_system", lambda: ["/usr/share"])
    assert not sandbox.exposed()
    monkeypatch.setattr(sandbox, "_system", lambda: [str(ROOT.parent)])
    assert sandbox.exposed()
    monkeypatch.setattr(grade, "grade", lambda *_: [])
    status, _, err = run_script("grade", PLAIN)
    assert status == 0 and err.startswith("note: submissions can read this repository") and err.count("\n") == 1


class SlowImport:
    """A process that takes its time for the import, and ends itself in the first call."""

    missing = ()

    def __init__(self, loads):
        self.loads = loads

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self):
        pass

    def load(self, seconds):
        self.loads.append(seconds)
        time.sleep(0.3)

    def ask(self, call, seconds):
        return sandbox.Failure("died", "0")


def test_imports_cost_an_exercise_its_time():
    loads = []
    with grade.Session(lambda: SlowImport(loads), sandbox.Limits(exercise=0.5)) as session:
        answers = [session.ask(CHECK).kind for _ in range(5)]
    assert answers == ["died", "no time left", "no time left", "no time left", "no time left"]
    assert len(loads) == 2 and loads[0] == 0.5 and loads[1] <= 0.2


def test_a_machine_of_which_nothing_is_left_is_a_mistake_of_one_line(monkeypatch):
    def full(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(sandbox.subprocess, "Popen", full)
    with pytest.raises(UserError, match="no process can be started .* Resource temporarily unavailable"):
        grade.grade({1: File("ex01_schedule.py", plain(1))}, 3, [1])


def test_missing_protections_are_said():
    assert confinement.protections([]) is None
    assert "lacks Landlock and seccomp" in confinement.protections(["Landlock", "seccomp"])


def test_the_process_is_gone_with_its_folder():
    with sandbox.Process("ex01_schedule.py", plain(1), SHORT) as process:
        process.start()
        assert process.load(6) is None
        folder, pid = process._folder.name, process._process.pid
        assert Path(folder).is_dir()
    assert not Path(folder).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# ---- Messages ----

@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_messages_come_as_they_went(pair):
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(True), np.zeros((0, 4), np.int32)]
    messages.send(pair[0], {"one": [1, "二", None]}, arrays)
    header, received = messages.receive(pair[1])
    assert header == {"one": [1, "二", None]}
    for array, other in zip(arrays, received):
        assert array.dtype == other.dtype and array.shape == other.shape and np.array_equal(array, other)


@pytest.mark.parametrize("text, body", [
    (b"not JSON", b""), (b"[]", b""), (b"{}", b""), (b"[" * 60000, b""), (b'{"arrays": [["float32", [4]]]}', b"12"),
    (b'{"arrays": [["object", [1]]]}', b"12345678"), (b'{"arrays": [["float32", [-1]]]}', b""),
    (b'{"arrays": [["float32", [true]]]}', b""), (b'{"arrays": [["float32", [1e3]]]}', b""),
    (b'{"arrays": [["float32", [99999999999, 99999999999]]]}', b""), (b'{"arrays": [[[], []]]}', b""),
    (b'{"arrays": 3}', b""), (b"\xff\xfe", b""),
], ids=range(13))
def test_what_is_no_message_is_refused(pair, text, body):
    pair[0].sendall(len(text).to_bytes(8, "big") + len(body).to_bytes(8, "big") + text + body)
    with pytest.raises(messages.BadMessage):
        messages.receive(pair[1])


def test_messages_have_a_limited_length_and_time(pair):
    pair[0].sendall(bytes([0, 0, 1, 0, 0, 0, 0, 0]) + bytes(8))
    with pytest.raises(messages.BadMessage, match="too long"):
        messages.receive(pair[1])
    with pytest.raises(messages.BadMessage, match="are more than"):
        messages.send(pair[0], {}, [np.zeros(messages.LONGEST_BODY + 1, np.uint8)])
    begin = time.monotonic()
    with pytest.raises((TimeoutError, socket.timeout)):
        messages.receive(pair[1], begin + 0.05)
    pair[0].close()
    with pytest.raises(EOFError):
        messages.receive(pair[1])


@pytest.mark.parametrize("header", [
    {"one": "right"}, {"one": {"kind": "tensor", "type": "Tensor", "array": 7}}, {"many": 3}, {"many": [None]},
    {"one": {"kind": "tensor", "type": "Tensor", "array": "0"}}, {"error": "E"},
])
def test_replies_of_another_form_are_refused(header):
    with pytest.raises(messages.BadMessage):
        sandbox.reply(header, [])


# ---- Judging ----

def value(array, kind="tensor", name="Tensor"):
    return Leaf(kind, name, array)


EXPECTED = np.arange(6.0).reshape(2, 3)
CHECK = Check(Call("f"), EXPECTED, [Mistake(EXPECTED.T, "turned", "转了"), Mistake(EXPECTED + 1, "one more", "多一")])


@pytest.mark.parametrize("answer, hint", [
    (value(EXPECTED.astype(np.float32)), None),
    (value((EXPECTED * (1 + 1e-5)).astype(np.float32)), None),
    (value((EXPECTED + 1).astype(np.float32)), "one more"),
    (value(EXPECTED.T.astype(np.float32)), "turned"),
    (value((EXPECTED + 2).astype(np.float32)), "differs by 0.4 of the largest value expected; 0.0001 is allowed"),
    (value(EXPECTED), "is float64 instead of float32"),
    (value(EXPECTED, "array", "ndarray"), "returns a ndarray, not a MindSpore Tensor"),
    (value(None, "other", "NoneType"), "returns None: is the return missing?"),
    (value(None, "other", "generator"), "returns a generator, not a MindSpore Tensor"),
    (value(np.float32([np.nan] * 6).reshape(2, 3)), "holds NaN or infinity"),
    (value(EXPECTED[:1].astype(np.float32)), "has shape (1, 3) instead of (2, 3)"),
    (value(np.float32(0)), "has shape () instead of (2, 3)"),
    ([value(EXPECTED)], "returns a tuple or list of 1 where one value is asked for"),
])
def test_judgement_of_one_value(answer, hint):
    help = grade.judge(answer, CHECK)
    assert help is None if hint is None else help.en == hint


@pytest.mark.parametrize("leaf, right", [
    (value(np.array(2.5), "number", "float"), True), (value(np.float32([2.5])), True), (value(np.array(2.5)), True),
    (value(np.array([2.5, 2.5])), False), (value(None, "other", "NoneType"), False), (value(np.array(np.inf)), False),
])
def test_judgement_of_a_number(leaf, right):
    assert (grade.judge(leaf, Check(Call("f"), np.array(2.5), returns="number")) is None) == right


def test_judgement_of_several_values():
    check = Check(Call("f"), [EXPECTED, np.zeros(2)], returns=["array", "tensor"], tolerance=1e-6)
    first, second = value(EXPECTED, "array", "ndarray"), value(np.zeros(2, np.float32))
    assert grade.judge([first, second], check) is None
    assert grade.judge([first], check).en == "returns a tuple or list of 1 where a tuple of 2 is asked for"
    assert grade.judge(first, check).en == "returns one value where a tuple of 2 is asked for"
    assert grade.judge([first, value(np.float32([0, 1]))], check).en.startswith("value 2: differs by 1 ")


def test_nothing_agrees_with_a_mistake_that_is_right():
    with pytest.raises(ValueError, match="cannot show this mistake: the same"):
        Check(Call("f"), EXPECTED, [Mistake(EXPECTED.copy(), "the same", "一样")])


def test_agreement_is_of_all_entries_and_never_of_nan():
    assert agrees(np.zeros(3), np.zeros(3), 1e-9)
    assert not agrees(np.array([0, 0, np.nan]), np.zeros(3), 1e9)
    assert not agrees(np.zeros((1, 3)), np.zeros(3), 1e9)
    assert not agrees([np.zeros(3)], np.zeros(3), 1e9)


# ---- What was handed in ----

def test_a_folder_a_file_and_a_zip(tmp_path):
    (tmp_path / "ex01_schedule.py").write_bytes(b"one")
    (tmp_path / "ex02_my_own_name.py").write_bytes(b"two")
    (tmp_path / "notes.txt").write_bytes(b"")
    (tmp_path / "ex3.py").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "work.zip", "w") as archive:
        archive.writestr("Li Lei/ex01_schedule.py", b"one")
        archive.writestr("__MACOSX/Li Lei/._ex01_schedule.py", b"mac")
        archive.writestr("__MACOSX/Li Lei/ex01_schedule.py", b"mac")
        archive.writestr("../../ex02_my_own_name.py", b"two")
    before = sorted(tmp_path.parent.rglob("*"))
    expected = {1: (b"one", None), 2: (b"two", None)}
    for place in (tmp_path, tmp_path / "work.zip"):
        assert {number: (file.source, file.problem) for number, file in submission.read(str(place)).items()} == expected
    assert list(submission.read(str(tmp_path / "ex01_schedule.py"))) == [1]
    assert sorted(tmp_path.parent.rglob("*")) == before  # nothing is unpacked


def test_links_and_monsters_are_refused(tmp_path):
    (tmp_path / "ex01_link.py").symlink_to(PLAIN / "ex01_schedule.py")
    (tmp_path / "ex02_large.py").write_bytes(b"#" * (submission.LARGEST + 1))
    (tmp_path / "ex03_folder.py").mkdir()
    os.mkfifo(tmp_path / "ex04_pipe.py")
    (tmp_path / "ex05_a.py").write_bytes(b"")
    (tmp_path / "ex05_b.py").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "work.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        link = zipfile.ZipInfo("ex01_link.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("ex02_bomb.py", bytes(1 << 28))
        archive.writestr("a/ex05_a.py", b"")
        archive.writestr("b/ex05_a.py", b"")
    for place in (tmp_path, tmp_path / "work.zip"):
        files = submission.read(str(place))
        assert "a link" in files[1].problem.en and "more than 1 MB" in files[2].problem.en
        assert "two files for one exercise" in files[5].problem.en
        both = "ex05_a.py, ex05_b.py" if place.is_dir() else "a/ex05_a.py, b/ex05_a.py"
        assert files[5].problem.en.endswith(both) and files[5].problem.zh.endswith(both)
        assert all(file.source == b"" for file in files.values())
    files = submission.read(str(tmp_path))
    assert "no plain file" in files[3].problem.en and "no plain file" in files[4].problem.en


@pytest.mark.parametrize("make, message", [
    (lambda path: None, "there is no"), (lambda path: path.mkdir(), "holds no exercise"),
    (lambda path: path.write_bytes(b"no zip"), "cannot be read as a zip"),
])
def test_nothing_handed_in_is_a_mistake_of_one_line(tmp_path, make, message):
    path = tmp_path / "work.zip"
    make(path)
    with pytest.raises(UserError, match=message) as raised:
        submission.read(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["work.rar", "work.7z", "ex01_schedule.ipynb"])
def test_what_is_no_folder_zip_or_python_is_said_so(tmp_path, name):
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(UserError, match="no folder, no zip and no file of Python"):
        submission.read(str(tmp_path / name))


def test_a_zip_of_another_system(tmp_path):
    """Backslashes between folders, names in the system's own encoding, macOS's copies."""
    path = tmp_path / "work.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("work\\ex01_schedule.py", b"one")
        archive.writestr("FOLDER/ex02_q_sample.py", b"two")
        archive.writestr("__MACOSX/work/._ex01_schedule.py", b"junk")
    path.write_bytes(path.read_bytes().replace(b"FOLDER", "李雷。".encode("gbk")))
    files = submission.read(str(path))
    assert {number: file.source for number, file in files.items()} == {1: b"one", 2: b"two"}


def test_a_zip_with_a_password_is_a_mistake_of_one_line(tmp_path):
    path = tmp_path / "work.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ex01_schedule.py", b"one")
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        submission.read(str(path))


def test_a_zip_that_is_broken_is_a_mistake_of_one_line(tmp_path):
    path = tmp_path / "work.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ex01_é.py", np.random.default_rng(0).bytes(1000))
    whole = path.read_bytes()
    for k in range(len(whole)):
        path.write_bytes(whole[:k] + b"\xff" + whole[k + 1:])
        try:
            files = submission.read(str(path))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert list(files) == [1]


def test_a_zip_that_costs_much_is_read_a_little(tmp_path):
    path = tmp_path / "work.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(2000):
            archive.writestr(f"{k}/ex01_{k}.py", bytes(1 << 20) if k < 2 else b"")
        archive.writestr("ex02_a.py", b"two", zipfile.ZIP_LZMA)
    with pytest.MonkeyPatch.context() as patch:
        opened = []
        first = zipfile.ZipFile.open
        patch.setattr(zipfile.ZipFile, "open", lambda self, entry: opened.append(entry) or first(self, entry))
        files = submission.read(str(path))
    assert len(opened) == 1 and "two files for one exercise" in files[1].problem.en
    assert "make an ordinary zip" in files[2].problem.en
    with path.open("r+b") as file:
        file.truncate(submission.LARGEST_ZIP + 1)
    with pytest.raises(UserError, match="more than 64 MB"):
        submission.read(str(path))


# ---- The command ----

def test_solutions_get_every_point_as_a_student_hands_them_in(run_script, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with zipfile.ZipFile(tmp_path / "work.zip", "w") as archive:
        for path in PLAIN.glob("*.py"):
            archive.write(path, f"my_work/{path.name}")
    status, _, err = run_script("grade", tmp_path / "work.zip", "--json", tmp_path / "points.json")
    assert status == 0 and "Traceback" not in err
    points = json.loads((tmp_path / "points.json").read_text())
    assert [part for exercise in points["exercises"] for part in exercise["parts"] if part["help"]] == []
    assert points["points"] == points["out_of"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
    assert seconds < 2 * 60  # of two cores; the wall clock is the machine's and its other users'


def test_the_command_grades_the_stubs(run_script, tmp_path):
    own, theirs = tmp_path / "points.json", tmp_path / "results.json"
    status, out, err = run_script(
        "grade", ROOT / "course" / "exercises", "--seed", 4, "--json", own, "--gradescope", theirs
    )
    assert status == 0 and "Traceback" not in out + err
    most = sum(part.points for module in EXERCISES.values() for part in module.parts(np.random.default_rng(0)))
    assert f"0/{most}" in out and "seed 4" in out
    assert out.count("not written yet / 尚未完成") == len(EXERCISES)  # said once where it is all that there is to say
    assert max(map(width, out.splitlines())) <= WIDTH
    points = json.loads(own.read_text())
    assert points["seed"] == 4 and points["points"] == 0 and points["out_of"] == most
    assert [exercise["exercise"] for exercise in points["exercises"]] == list(EXERCISES)
    assert [part["part"] for part in points["exercises"][0]["parts"]] == ["1.1", "1.2", "1.3", "1.4"]
    assert points["exercises"][0]["parts"][0]["help"] == {"en": "not written yet", "zh": "尚未完成"}
    results = json.loads(theirs.read_text())
    assert results["score"] == 0 and sum(test["max_score"] for test in results["tests"]) == most
    assert {test["status"] for test in results["tests"]} == {"failed"}


def test_the_command_says_what_is_wrong_with_it(run_script, tmp_path):
    for words, message in [
        ([tmp_path / "nothing"], "there is no"), ([PLAIN, "--exercise", 14], "there is no exercise 14"),
        ([tmp_path, "--json", tmp_path / "points.txt"], "must end in .json"), ([tmp_path, "--language", "fr"], "fr"),
    ]:
        status, _, err = run_script("grade", *words)
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_file_is_graded_alone(run_script):
    status, out, _ = run_script("grade", PLAIN / "ex01_schedule.py")
    assert status == 0 and "8/8" in out and "q_sample" not in out


def test_the_table_in_each_language():
    help = Both("an English hint " * 8, "一条很长的中文提示" * 12)
    rows = [grade.Row("1.1", "f", 0, 2, help), grade.Row("1.2", "g", 3, 3)]
    results = [grade.ExerciseResult(1, Both("Title", "标题"), rows)]
    both, english, chinese = (table(results, language) for language in ("both", "en", "zh"))
    assert "Title / 标题" in both and "English" in both and "中文" in both
    assert "标题" not in english and "中文" not in english and "Title" not in chinese and "English" not in chinese
    for text in (both, english, chinese):
        lines = text.splitlines()
        assert lines[-1].endswith(" 3/5") and lines[0].endswith(" 3/5")
        assert max(map(width, lines)) <= WIDTH
    assert both.replace("\n", "").replace(" ", "").count("中文提示") == 12
    for text, label in ((both, "total / 总分"), (english, "total"), (chinese, "总分")):
        assert text.splitlines()[-1].startswith(f"{label}  ")
    lines = seed_line(999999), seed_line(999999, "en"), seed_line(999999, "zh")
    assert all("--seed 999999" in line and width(line) <= WIDTH for line in lines)
    assert not any(letter > "\x7f" for letter in lines[1]) and "draws" not in lines[2]


def test_what_is_wrong_with_every_part_stands_once_under_the_title():
    help = Both("raises SyntaxError", "抛出异常")
    rows = [grade.Row("1.1", "f", 0, 2, help), grade.Row("1.2", "g", 0, 3, help)]
    lines = table([grade.ExerciseResult(1, Both("Title", "标题"), rows)], "en").splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["1", "raises", "1.1", "1.2"] and len(lines) == 6


def test_a_file_that_is_not_utf_8_is_said_so():
    source = '"""噪声"""\n'.encode("gbk") + plain(1)
    [result] = grade.grade({1: File("ex01_schedule.py", source)}, 3, [1], SHORT)
    assert result.points == 0 and "not saved as UTF-8" in result.rows[0].help.en and "UTF-8" in result.rows[0].help.zh
