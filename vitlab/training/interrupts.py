"""Ctrl-C: it ends a command without a word, wherever it comes."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 2  # Seconds for what is under way to clean up.


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGINT raises KeyboardInterrupt, and again after a while where something has caught
    or lost it; what fails in consequence is not told: threads whose queue is gone, half an import.
    """
    first = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not first or threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False
    again = []
    unraisable, in_thread = sys.unraisablehook, threading.excepthook

    def send_again(seconds):
        main = threading.main_thread().ident
        again.append(threading.Timer(seconds, signal.pthread_kill, [main, signal.SIGINT]))
        again[-1].daemon = True
        again[-1].start()

    def on_signal(signum, frame):
        nonlocal came
        came = True
        send_again(_PATIENCE)
        signal.default_int_handler(signum, frame)

    def on_unraisable(args):
        if args.exc_type is KeyboardInterrupt:
            # Nothing can be raised during a garbage collection: a moment later it can.
            send_again(0.1)
        elif not came:
            unraisable(args)

    def on_thread(args):
        if not came:
            in_thread(args)

    signal.signal(signal.SIGINT, on_signal)
    sys.unraisablehook, threading.excepthook = on_unraisable, on_thread
    try:
        yield
    except Exception as e:
        if came:  # An import, say, wraps what came to it.
            raise KeyboardInterrupt from e
        raise
    finally:
        for timer in again:
            timer.cancel()
        # A second one, while threads come to their end, kills.
        signal.signal(signal.SIGINT, signal.SIG_DFL if came else signal.default_int_handler)
        if not came:
            sys.unraisablehook, threading.excepthook = unraisable, in_thread
