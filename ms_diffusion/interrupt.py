"""SIGTERM and SIGINT end a training after its step, not in it."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Iterator, Optional


@dataclass
class Stop:
    """What the loop looks at after each step."""

    signal: Optional[int] = None
    """The first signal that came; None while none has."""

    @property
    def status(self) -> int:
        """The exit status that is due after saving: 130 after SIGINT, else 0."""
        return 130 if self.signal == signal.SIGINT else 0


def hear_sigint() -> None:
    """From now on every SIGINT comes to Python's handler, where all threads of this process block the signal.

    At each step MindSpore 2.8 puts in the place of Python's handler, or of none, its own, which sends SIGTERM to its
    process: Ctrl-C would end with status 0, and a second one not at once. What is blocked never gets there. For a
    script, which blocks SIGINT before its first thread starts.
    """

    def listen() -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            _thread.interrupt_main()  # nothing, where the process was started to ignore SIGINT

    threading.Thread(target=listen, daemon=True).start()


@contextlib.contextmanager
def stop_after_step() -> Iterator[Stop]:
    """Meanwhile SIGTERM and SIGINT only say so in the `Stop` returned; a second SIGINT raises `KeyboardInterrupt`.

    A signal that the process was started to ignore (nohup, a job in the background) stays ignored. Outside the main
    thread, where Python allows no handlers, nothing changes.
    """
    stop = Stop()
    former = {}
    interrupts = 0

    def handle(number: int, frame: Optional[FrameType]) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt
        if stop.signal is None:
            stop.signal = number
            # Not print: the signal may come in the middle of another one. A closed stderr is no reason to fail.
            with contextlib.suppress(OSError):
                os.write(2, f"{signal.Signals(number).name}: finishing the step, then saving\n".encode())

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    former[number] = signal.signal(number, handle)
        yield stop
    finally:
        for number, handler in former.items():
            # None: a handler that is not Python's, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
