"""Ctrl-C, SIGTERM and SIGHUP end a command alike: a training after the step under way, all else at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal asks this process to end; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    taken: tuple[int, ...] = ()  # the signals whose handlers are ours
    repeats = True  # whether a further signal ends a process that is about to end
    delayed = False  # whether a step is under way, after which the process ends
    received = 0  # the signal that came meanwhile


def number_of(error: BaseException | None) -> int:
    """The signal behind an interruption; SIGINT where it is not known."""
    return error.number if isinstance(error, Interrupted) else signal.SIGINT


def line(number: int) -> str:
    """What is said of an interruption by this signal."""
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    return f"interrupted{by}; the same command goes on where this one stopped"


@contextlib.contextmanager
def handled(*, repeats: bool = True) -> Iterator[None]:
    """Raise :class:`Interrupted` on the first signal, and with ``repeats`` on each further one. A signal that the
    process was started to ignore, as by nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    _State.taken, _State.repeats, _State.received = tuple(before), repeats, 0
    install()
    try:
        yield
    finally:
        _State.taken, _State.received = (), 0
        for number, handler in before.items():
            signal.signal(number, handler)


def install() -> None:
    """Put the handlers in place, or in place again where a library has put its own; nothing outside ``handled``."""
    for number in _State.taken:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    first, _State.received = not _State.received, _State.received or number
    if first and _State.delayed:
        return
    if first or _State.repeats:
        raise Interrupted(number)


@contextlib.contextmanager
def ended_at_once(*, told: bool = True) -> Iterator[None]:
    """End the process on a signal while the main thread waits in code that is not Python's, where no handler of ours
    runs; within ``handled``, of the main thread. With ``told`` it is said."""
    if not _State.taken or threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def end() -> None:
        while numbers := receiver.recv(1):  # nothing once the other end is closed
            if numbers[0] in _State.taken:
                if told:
                    print(f"anchored: {line(numbers[0])}", file=sys.stderr, flush=True)
                os._exit(128 + numbers[0])

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        thread.join()
        receiver.close()


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Let a signal wait for :func:`raise_received`."""
    _State.delayed = True
    try:
        yield
    finally:
        _State.delayed = False


def is_received() -> bool:
    """Whether a signal waits."""
    return _State.delayed and bool(_State.received)


def raise_received() -> None:
    """Raise :class:`Interrupted` if a signal waits."""
    if is_received():
        raise Interrupted(_State.received)
