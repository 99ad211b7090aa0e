"""Compiling the native kernels and finding them again, with a small source in the kernels' place."""

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ms_diffusion import native_build
from ms_diffusion.native_build import NativeUnavailable

GOOD = 'extern "C" __attribute__((visibility("default"))) int ms_diffusion_abi() { return ABI; }\n'
FLAGS = "processor\t: 0\nflags\t\t: fma avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: fma avx2 avx512f\n"
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="this machine has no C++ compiler"
)
pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="MindSpore takes native kernels on Linux only")


@pytest.fixture(autouse=True)
def sources(monkeypatch, tmp_path):
    """A folder with one source and one header, and the variables that a person may have set, unset."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "abi.cpp").write_text(f'#include "abi.h"\n{GOOD}')
    (folder / "abi.h").write_text("#define ABI 1\n")
    monkeypatch.setattr(native_build, "SOURCES", folder)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("MS_DIFFUSION_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "native"


@pytest.fixture
def make_compiler(tmp_path, monkeypatch):
    """Make $CXX a shell script that has the `version` and otherwise does `what`."""

    def make(what, version="pretended 1.0"):
        script = tmp_path / "compiler"
        script.write_text(f'#!/bin/sh\nif [ "$*" = --version ]; then echo "{version}"; exit; fi\n{what}\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return script

    return make


def reason(function, *arguments, **options):
    """The one line of the `NativeUnavailable` that the call must raise."""
    with pytest.raises(NativeUnavailable) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def start_build(sources):
    """`build` in a process of its own, which imports no MindSpore."""
    code = (
        "import importlib.util, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('native_build', {native_build.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        f"module.SOURCES = pathlib.Path({str(sources)!r})\n"
        "print(module.build())\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def runs(pid):
    """Does the process `pid` still run? One that nobody has asked for its status does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# What is built is found


@needs_compiler
def test_what_is_built_is_found_and_not_built_again(cache):
    assert "python scripts/build_kernels.py" in reason(native_build.find)
    assert native_build.built() is None
    library = native_build.build()
    assert native_build.load(library).ms_diffusion_abi() == native_build.ABI
    before = {path: path.stat().st_ino for path in cache.iterdir()}
    assert native_build.find() == native_build.built() == native_build.build() == library
    assert before == {path: path.stat().st_ino for path in cache.iterdir()}
    assert native_build.build(force=True) == library
    after = {path: path.stat().st_ino for path in cache.iterdir()}
    assert len(after) == 2 and after.keys() == before.keys(), "the library and its record"
    assert all(after[path] != before[path] for path in after), "new files: who has the old ones open keeps them"


@needs_compiler
@pytest.mark.parametrize(
    "change",
    [
        lambda sources: (sources / "abi.cpp").write_text(f'#include "abi.h"\n{GOOD}// changed'),
        lambda sources: (sources / "abi.h").write_text("#define ABI 1 // changed"),
        lambda sources: (sources / "abi.cpp").rename(sources / "other.cpp"),
        lambda sources: (sources / "more.h").write_text(""),
    ],
)
def test_other_sources_have_another_library(change, sources):
    first = native_build.build()
    change(sources)
    assert "no native kernels were built for this machine and version" in reason(native_build.find)
    assert native_build.build() == native_build.find() != first
    assert first.exists(), "another machine may have use for it"


@needs_compiler
def test_another_processor_has_no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(native_build, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(FLAGS)
    library = native_build.build()
    (tmp_path / "cpuinfo").write_text(FLAGS.replace("fma avx2", "avx2 fma"))
    assert native_build.find() == library, "the order says nothing"
    (tmp_path / "cpuinfo").write_text(FLAGS.replace(" avx512f", ""))
    assert "no native kernels were built for this machine and version" in reason(native_build.find)
    (tmp_path / "cpuinfo").unlink()
    assert "no native kernels were built for this machine and version" in reason(native_build.find)


@needs_compiler
@pytest.mark.parametrize(
    "owner, name, value",
    [
        (importlib.metadata, "version", lambda package: "2.8.1"), (native_build, "FLAGS", (*native_build.FLAGS, "-g")),
        (platform, "libc_ver", lambda: ("glibc", "2.17")), (platform, "machine", lambda: "aarch64"),
    ],
)
def test_another_version_or_machine_has_no_library(owner, name, value, monkeypatch):
    library = native_build.build()
    with monkeypatch.context() as changed:
        changed.setattr(owner, name, value)
        assert "no native kernels were built for this machine and version" in reason(native_build.find)
    assert native_build.find() == library


def test_arm_names_its_features_in_another_way(monkeypatch, tmp_path):
    monkeypatch.setattr(native_build, "_CPUINFO", tmp_path / "cpuinfo")
    native_build._CPUINFO.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\n")
    assert native_build._processor().split()[1:] == ["asimd", "fp", "sve"]


@needs_compiler
def test_another_compiler_compiles_again_and_a_lost_one_does_not(make_compiler, monkeypatch, tmp_path):
    library = native_build.build()
    make_compiler(f'echo x >>"{tmp_path}/compiled"\nexec {shutil.which("g++") or "c++"} "$@"', version="another 2.0")
    assert native_build.find() == library, "whoever looks for the library asks no compiler"
    assert native_build.built() is None
    for _ in range(2):
        assert native_build.build() == native_build.find()
        assert (tmp_path / "compiled").read_text() == "x\n", "compiled once more, and then not again"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native_build.find() == native_build.build()
    assert "no C++ compiler" in reason(native_build.build, force=True)


@needs_compiler
def test_cxx_may_hold_options(sources, monkeypatch):
    (sources / "abi.h").write_text("")
    compiler = shutil.which("g++") or "c++"
    assert "ABI" in reason(native_build.build), "not defined"
    monkeypatch.setenv("CXX", f"{compiler} -DABI=1")
    assert native_build.build() == native_build.built()
    monkeypatch.setenv("CXX", f"{compiler} -DABI=2")
    assert native_build.built() is None


@needs_compiler
def test_two_builds_at_once(sources, cache, make_compiler, tmp_path):
    together = f"touch {tmp_path}/begun-$$; until [ $(ls {tmp_path}/begun-* | wc -l) = 2 ]; do sleep 0.02; done"
    make_compiler(f'{together}\nexec {shutil.which("g++") or "c++"} "$@"')
    processes = [start_build(sources) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert {out.strip() for out, _ in answers} == {str(native_build.find())}
    assert len(list(cache.iterdir())) == 2


@needs_compiler
def test_names_that_are_not_ascii_and_have_blanks(sources, monkeypatch, tmp_path):
    folder = tmp_path / "Großer Käse"
    shutil.copytree(sources, folder / "sources")
    monkeypatch.setattr(native_build, "SOURCES", folder / "sources")
    monkeypatch.chdir(folder)
    library = native_build.build(Path("cache"))
    assert library == native_build.find(Path("cache")) and library.parent == folder / "cache"


@needs_compiler
def test_a_sanitized_library_is_another(cache):
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("this compiler has no address sanitizer")
    library = native_build.build(sanitize=True)
    assert native_build.built(sanitize=True) == native_build.build(sanitize=True) == library
    assert b"__asan_init" in library.read_bytes()
    assert "no native kernels were built" in reason(native_build.find), "MindSpore could not load it"
    assert native_build.build() != library and native_build.built(sanitize=True) == library


# Where the cache is


@pytest.mark.parametrize(
    "own, caches, folder",
    [
        ("/own", "/caches", "/own/native"), ("~/own", "", "/home/reader/own/native"),
        ("", "/caches", "/caches/ms_diffusion/native"), ("", "", "/home/reader/.cache/ms_diffusion/native"),
        (None, None, "/home/reader/.cache/ms_diffusion/native"),
    ],
)
def test_the_cache_folder(own, caches, folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/reader")
    for name, value in (("MS_DIFFUSION_CACHE", own), ("XDG_CACHE_HOME", caches)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert native_build.cache_folder() == Path(folder)


def test_a_user_without_a_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("MS_DIFFUSION_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert "MS_DIFFUSION_CACHE" in reason(native_build.find)


def test_a_cache_that_mindspore_cannot_read(tmp_path):
    for function in (native_build.find, native_build.build):
        assert "the colon in" in reason(function, tmp_path / "a:b")


@needs_compiler
def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    message = reason(native_build.build, tmp_path / "file" / "cache")
    assert f"{tmp_path}/file/cache (Not a directory)" in message and "MS_DIFFUSION_CACHE" in message
    assert "no native kernels were built" in reason(native_build.find, tmp_path / "file" / "cache")


# What is damaged is said, and built again


@needs_compiler
@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda library: library.write_bytes(library.read_bytes()[:-1000]), "is damaged"),
        (lambda library: library.write_bytes(library.read_bytes()[:-1] + b"\x01"), "is damaged"),
        (lambda library: library.write_bytes(b""), "is damaged"),
        (lambda library: library.unlink(), "cannot be read (No such file or directory)"),
    ],
)
def test_a_damaged_library(damage, message):
    library = native_build.build()
    damage(library)
    said = reason(native_build.find)
    assert f"{library} {message}" in said and "python scripts/build_kernels.py" in said
    assert native_build.built() is None
    assert native_build.build() == native_build.find() == library


@needs_compiler
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": 3}', '{"sha256": "3"}', "\udcff"])
def test_a_damaged_record(text, cache):
    library = native_build.build()
    (record,) = cache.glob("*.json")
    record.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "python scripts/build_kernels.py" in reason(native_build.find)
    assert native_build.build() == native_build.find() == library


@needs_compiler
def test_a_record_without_a_compiler_is_an_old_one(cache):
    library = native_build.build()
    (record,) = cache.glob("*.json")
    record.write_text(json.dumps({"sha256": json.loads(record.read_text())["sha256"]}))
    assert native_build.find() == library and native_build.built() is None


@needs_compiler
def test_what_a_killed_build_left_is_removed(cache):
    old, new = cache / "building-old", cache / "building-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "kernels.so").write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    native_build.build()
    assert not old.exists() and new.exists(), "the new one may belong to a build that still runs"


@needs_compiler
def test_loading_what_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "kernels.so").write_bytes(b"no library")
    assert f"{tmp_path}/kernels.so cannot be loaded" in reason(native_build.load, tmp_path / "kernels.so")
    library = native_build.build()
    monkeypatch.setattr(native_build, "ABI", 2)
    assert f"{library} has ABI 1, not 2" in reason(native_build.load, library)


# Where nothing can be built, the reason is one line, and nothing is left


def test_no_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(native_build, "SOURCES", tmp_path / "absent")
    for function in (native_build.find, native_build.built, native_build.build):
        assert f"{tmp_path}/absent holds no sources" in reason(function)


def test_another_system(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    for function in (native_build.find, native_build.build):
        assert "on Linux only" in reason(function)


def test_no_compiler(monkeypatch, tmp_path, cache):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = reason(native_build.build)
    assert "no C++ compiler here (g++, clang++, c++)" in message and "CXX" in message
    assert not cache.exists()


@needs_compiler
def test_a_cxx_that_is_nothing_is_not_passed_over(monkeypatch, cache):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert "CXX is 'no-such-compiler -O2', which does not run" in reason(native_build.build)
    assert not cache.exists()
    monkeypatch.delenv("CXX")
    native_build.build()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX is 'no-such-compiler'" in reason(native_build.build)


@needs_compiler
def test_a_compiler_that_does_not_run_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "g++").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "g++").chmod(0o755)
    (tmp_path / "clang++").write_text("no program")
    (tmp_path / "clang++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if native_build._compiler() is None:
        pytest.skip("this machine has no c++")
    assert native_build._compiler()[0] == [shutil.which("c++")]


@pytest.mark.parametrize(
    "what, message",
    [
        ("echo note; echo 'a.cpp:1:2: error: no such thing'; echo 'a.cpp:9:9: error: more'; exit 1",
         "(a.cpp:1:2: error: no such thing)"),
        ("""echo "cxx: error: unrecognized command-line option '-march=native'" >&2; exit 1""",
         "(cxx: error: unrecognized command-line option '-march=native')"),
        ("echo killed; exit 137", "(killed)"), ("exit 3", "(status 3, without a word)"),
        ("kill -9 $$", "(status -9, without a word)"), ("exit 0", "(status 0, without a word)"),
    ],
)
def test_a_compiler_that_fails(what, message, make_compiler, cache):
    script = make_compiler(what)
    said = reason(native_build.build)
    assert said.startswith(f"{script} cannot compile the native kernels {message}") and "CXX" in said
    assert not list(cache.iterdir())


def test_the_compiler_speaks_english_and_leaves_its_files_in_the_cache(make_compiler, monkeypatch, cache):
    make_compiler('echo "Fehler"; echo "error: $LC_ALL $TMPDIR"; exit 1')
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert f"(error: C {cache}/building-" in reason(native_build.build)


def test_a_compiler_that_hangs(make_compiler, monkeypatch, tmp_path, cache):
    make_compiler(f"sleep 1000 &\necho $! >{tmp_path}/pid\nwait")
    monkeypatch.setattr(native_build, "SECONDS", 2)
    assert "took longer than 2 s" in reason(native_build.build)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not runs(pid))
    assert not list(cache.iterdir())


def test_ctrl_c_stops_the_compiler(sources, make_compiler, tmp_path, cache):
    make_compiler(f"sleep 1000 &\necho $! >{tmp_path}/partial\nmv {tmp_path}/partial {tmp_path}/pid\nwait")
    process = start_build(sources)
    wait_for((tmp_path / "pid").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and "KeyboardInterrupt" in err
    wait_for(lambda: not runs(int((tmp_path / "pid").read_text())))
    assert not list(cache.iterdir())


@needs_compiler
@pytest.mark.parametrize(
    "source, message",
    [
        ("#include <cstdlib>\n#define ABI (std::abort(), 1)\n", "died of SIGABRT"),
        ("#define ABI (__builtin_trap(), 1)\n", "died of SIG"), ("#define ABI 7\n", "ABI 7, not 1"),
        ('extern "C" int absent();\n#define ABI absent()\n', "undefined symbol: absent"),
        ("#define ms_diffusion_abi another\n#define ABI 1\n", "undefined symbol: ms_diffusion_abi"),
        ("#include <cstdlib>\nstruct End { ~End() { std::abort(); } } end;\n#define ABI 1\n", "died of SIGABRT"),
        ("#include <cstdlib>\n#define ABI (std::exit(3), 1)\n", "ended with status 3"),
    ],
)
def test_a_library_that_does_not_run(source, message, sources, cache):
    (sources / "abi.h").write_text(source)
    said = reason(native_build.build)
    assert message in said and "were compiled but do not run here" in said
    assert not list(cache.iterdir())


@needs_compiler
def test_a_failure_leaves_the_library_that_was_there(make_compiler):
    library = native_build.build()
    make_compiler("exit 1")
    assert "cannot compile" in reason(native_build.build)
    assert native_build.find() == library


@needs_compiler
def test_sources_that_change_meanwhile(sources, make_compiler, cache):
    make_compiler(f'{shutil.which("g++") or "c++"} "$@"; echo >>{sources}/abi.h')
    assert "changed during the compilation" in reason(native_build.build)
    assert not list(cache.iterdir())


# The command


@needs_compiler
def test_the_command(run_script, cache):
    for words, how in ([], "(compiled in "), ([], "(already there)"), (["--force"], "(compiled in "):
        status, out, err = run_script("build_kernels", *words)
        assert status == 0 and out.startswith(f"native kernels: {native_build.find()} {how}")
        assert out.count("\n") == 1 and not err


def test_the_command_without_a_compiler(run_script, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, out, err = run_script("build_kernels")
    assert status == 2 and not out and err.count("\n") == 1
    assert err.startswith("error: no native kernels, MindSpore's own operators serve: no C++ compiler")


def test_a_bug_in_the_command_is_no_missing_compiler(run_script, monkeypatch):
    monkeypatch.setattr(native_build, "built", lambda sanitize: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_script("build_kernels")
