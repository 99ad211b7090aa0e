import os
import signal
import threading

import pytest

from ms_diffusion.interrupt import stop_after_step


@pytest.fixture(autouse=True)
def handlers():
    """Python's own ones, also where the tests were started in the background, which ignores SIGINT."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("name, status", [("SIGTERM", 0), ("SIGINT", 130)])
def test_the_first_signal_is_only_noted(name, status, capfd):
    with stop_after_step() as stop:
        assert stop.signal is None and stop.status == 0
        send(signal.Signals[name])
        assert stop.signal == signal.Signals[name] and stop.status == status
    assert capfd.readouterr().err == f"{name}: finishing the step, then saving\n"


def test_a_second_sigint_interrupts_at_once(capfd):
    with pytest.raises(KeyboardInterrupt), stop_after_step() as stop:
        send(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        send(signal.SIGINT)
        pytest.fail("not interrupted")
    assert capfd.readouterr().err.count("\n") == 1


def test_sigterm_again_and_a_sigint_after_it_change_nothing(capfd):
    """A batch system may send several signals to end a job."""
    with stop_after_step() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert stop.signal == signal.SIGTERM and stop.status == 0
    assert capfd.readouterr().err.count("\n") == 1


def test_the_former_handlers_come_back():
    noted = []
    signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    with stop_after_step() as stop:
        pass
    send(signal.SIGTERM)
    assert noted == [signal.SIGTERM] and stop.signal is None
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), stop_after_step():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_the_process_ignores_stays_ignored(capfd):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_after_step() as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert stop.signal is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not capfd.readouterr().err


def test_a_closed_stderr_does_not_matter():
    kept = os.dup(2)
    os.close(2)
    try:
        with stop_after_step() as stop:
            send(signal.SIGTERM)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert stop.signal == signal.SIGTERM


def test_another_thread_changes_nothing():
    seen = []

    def work():
        with stop_after_step() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, signal.default_int_handler)]
