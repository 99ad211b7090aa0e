"""Starts the ranks of a data-parallel training with MindSpore's msrun, and watches them to their end.

For scripts/train_distributed.sh. Imports nothing of MindSpore: a mistake in the command is answered at once.

msrun alone leaves its processes behind at SIGTERM, kills them at Ctrl-C, waits half a minute for its scheduler after a
rank has died, and ends with a traceback that does not say which. So it runs out of reach of the keyboard; what it
reports in its log, and the processes that it started, are read here.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Iterator, NoReturn, Optional, TextIO, Union

import psutil

SCRIPT = Path(__file__).resolve().parent / "train.py"
LOOK, MISSES = 5.0, 3
"""Seconds between looks for the scheduler, and how many without it end the ranks: it should be the last to go."""
_ENDED = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
_LOST = re.compile(r"worker (\d+) is the first one timed out")
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main() -> None:
    """Start the ranks that the command line asks for; exits with 0 only if all of them did."""
    options = _parse()
    log_dir = options.log_dir or Path("runs", "logs", datetime.now().strftime("%Y%m%d-%H%M%S"))
    ranks, master = options.ranks, options.node_rank == 0
    first = options.node_rank * ranks
    port = options.master_port or _free_port()
    if master and not _is_free(port):
        _refuse(f"--master_port {port} is taken on this host: choose another, or leave it out on a single host")
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        for old in (*log_dir.glob("worker_*.log"), *log_dir.glob("scheduler.log")):
            old.unlink()
        for name in ("msrun.log", f"worker_{first}.log"):
            (log_dir / name).write_text("")
    except OSError as error:
        _refuse(f"--log_dir {log_dir} cannot be written: {error.strerror}; choose another")
    command = [
        sys.executable, "-m", "mindspore.parallel.cluster.run", "--worker_num", ranks * options.nodes,
        "--local_worker_num", ranks, "--master_addr", options.master_addr, "--master_port", port,
        "--node_rank", options.node_rank, "--log_dir", log_dir, "--join", True,
        "--tail_worker_log", ranks * options.nodes,  # of no rank: the log of the first is shown from here
        options.script, *options.words,
    ]
    print(f"{ranks} of {ranks * options.nodes} ranks; logs in {log_dir}; rank {first}:", flush=True)
    with open(log_dir / "msrun.log", "a") as report:
        msrun = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=report, stderr=subprocess.STDOUT,
            env=_environment(), start_new_session=True, preexec_fn=_end_with_launcher,
        )
    with open(log_dir / f"worker_{first}.log", errors="replace", newline="") as log:
        sys.exit(_watch(msrun, log_dir, log, first, None if master else (options.master_addr, port)))


def _refuse(mistake: str) -> NoReturn:
    print(f"error: {mistake}", file=sys.stderr)
    sys.exit(2)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/train_distributed.sh", allow_abbrev=False,
        usage="bash %(prog)s N [launcher's options] [options of scripts/train.py]",
        description="Train on N ranks of this host, one a card; on a CPU they share the cores. The options of the "
        "training: python scripts/train.py --help",
    )
    parser.error = lambda message: _refuse(f"{message} (see {parser.prog} --help)")
    parser.add_argument("ranks", metavar="N", help="ranks on this host")
    parser.add_argument("--nodes", type=int, default=1, help="hosts, each with N ranks (default 1)")
    parser.add_argument("--node_rank", type=int, default=0, help="which of them this is, from 0 (default 0)")
    parser.add_argument("--master_addr", default="127.0.0.1", help="address of host 0 (default this host)")
    parser.add_argument("--master_port", type=int, help="port on host 0; on a single host a free one is found")
    parser.add_argument("--log_dir", type=Path, help="folder of the ranks' logs (default runs/logs/TIME)")
    parser.add_argument("--script", type=Path, default=SCRIPT, help="what each rank runs (default scripts/train.py)")
    options, options.words = parser.parse_known_args()
    if not options.ranks.isdecimal() or int(options.ranks) < 1:
        _refuse(f"the number of ranks is {options.ranks!r}: begin with it, as in {parser.prog} 2 --config FILE")
    options.ranks = int(options.ranks)
    if not 0 <= options.node_rank < options.nodes:
        _refuse(
            f"--node_rank is {options.node_rank} of --nodes {options.nodes}: it must be from 0 to {options.nodes - 1}"
        )
    if options.nodes > 1 and (options.master_port is None or options.master_addr == "127.0.0.1"):
        _refuse("--nodes needs --master_addr and --master_port, the same on all hosts")
    if options.master_port is not None and not 1024 <= options.master_port <= 65535:
        _refuse(f"--master_port is {options.master_port}: it must be from 1024 to 65535")
    if not options.script.is_file():
        _refuse(f"--script {options.script} is not a file")
    return options


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _environment() -> dict[str, str]:
    """That of the ranks: this Python, output as it comes, and of MindSpore's own messages only the errors."""
    folder = str(Path(sys.executable).parent)  # msrun starts whatever `python` is
    variables = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONUNBUFFERED": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH")]))
    variables.setdefault("GLOG_v", "3")
    return variables


def _end_with_launcher() -> None:
    """In msrun, before it begins: Ctrl-C when this launcher dies, at which it kills all that it started."""
    ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGINT)


def _watch(
    msrun: subprocess.Popen, log_dir: Path, log: TextIO, first: int, master: Optional[tuple[str, int]]
) -> int:
    """Show `log`, of rank `first`, until all that `msrun` started has ended; returns the status to exit with.

    `master` is where the scheduler listens, None where it is one of msrun's processes. Leaves no process behind.
    """
    asked: list[int] = []  # signals of the person
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    scheduler, ranks = master, {}  # psutil's processes; of the scheduler elsewhere, its address
    passed_on, met, misses, look = 0, False, 0, time.monotonic()
    while True:
        ended = msrun.poll() is not None
        report = (log_dir / "msrun.log").read_text(errors="replace")
        failure = _ENDED.search(report)
        if ended or failure or misses >= MISSES:
            break
        for process, rank in _children(msrun):
            if rank is None:
                scheduler = process
            else:
                ranks[rank] = process
        _show(log)
        if len(asked) > passed_on:
            passed_on = len(asked)
            if passed_on > 1 or not ranks:
                break
            print("ending: the ranks finish their step (once more kills them)", file=sys.stderr, flush=True)
            for process in ranks.values():
                # At a Ctrl-C they would end with 130, and at the first of these msrun kills the others.
                if process.is_running():
                    process.terminate()
        if time.monotonic() >= look and scheduler is not None:
            look = time.monotonic() + LOOK
            lives = _lives(scheduler)
            met, misses = met or lives, misses + 1 if met and not lives else 0
        time.sleep(0.2)
    # msrun and its scheduler are one group; each rank, with what it has started, is another.
    for group in [msrun.pid, *(process.pid for process in ranks.values())]:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    msrun.wait()
    _show(log)
    if not (_text(log_dir / f"worker_{first}.log") or "\n").endswith("\n"):
        print(flush=True)  # after a progress bar that was cut off

    if asked and (failure or not ended):
        return 128 + asked[0]
    if failure:
        numbers = {process.pid: rank for rank, process in ranks.items()}
        return _blame(numbers.get(int(failure[1])), int(failure[2]), log_dir, first)
    if not ended:
        lost = _LOST.search(_text(log_dir / "scheduler.log"))
        who = f"rank {lost[1]}" if lost else "the scheduler of host 0"
        print(f"error: {who} has ended, or is out of reach: see the logs of its host", file=sys.stderr)
        return 1
    # Where all ranks have ended well, the scheduler may still complain of the order in which they did.
    if msrun.returncode != 0 and "Scheduler process" not in report:
        how = f"was killed by signal {-msrun.returncode}" if msrun.returncode < 0 else "failed"
        print(f"error: msrun itself {how}: see {log_dir / 'msrun.log'}", file=sys.stderr)
        return 1
    return 130 if signal.SIGINT in asked else 0


def _children(msrun: subprocess.Popen) -> Iterator[tuple[psutil.Process, Optional[int]]]:
    """The processes that `msrun` has started and not yet waited for, with their ranks; None is the scheduler's."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(msrun.pid).children():
            with suppress(psutil.Error):
                variables = process.environ()
                if variables.get("MS_ROLE") == "MS_WORKER":
                    yield process, int(variables["MS_NODE_ID"])
                elif variables.get("MS_ROLE") == "MS_SCHED":
                    yield process, None


def _lives(scheduler: Union[psutil.Process, tuple[str, int]]) -> bool:
    try:
        if isinstance(scheduler, psutil.Process):
            return scheduler.status() != psutil.STATUS_ZOMBIE
        socket.create_connection(scheduler, timeout=2).close()
    except (psutil.NoSuchProcess, OSError):
        return False
    return True


def _blame(rank: Optional[int], code: int, log_dir: Path, first: int) -> int:
    """Say which rank ended the others, and how; returns the status to exit with."""
    log = log_dir / f"worker_{rank}.log"
    errors = re.findall(r"^error: (.*)", _text(log), re.MULTILINE)
    if code == 2 and errors:
        if errors[-1] not in _text(log_dir / f"worker_{first}.log"):  # else it stands on the terminal
            print(f"error: rank {rank}: {errors[-1]}", file=sys.stderr)
        return 2
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    print(f"error: rank {rank} {how}, so the others were ended: see {log}", file=sys.stderr)
    return 1


def _show(log: TextIO) -> None:
    """Print what was added to the log; a rank's mistake goes to stderr, like one process's."""
    for line in log:
        if line.startswith("[INFO] DISTRIBUTED("):  # the sockets' farewell, at every level of GLOG_v
            continue
        print(line, end="", file=sys.stderr if line.startswith("error: ") else sys.stdout, flush=True)


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


if __name__ == "__main__":
    main()
