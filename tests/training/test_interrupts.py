"""Ctrl-C wherever it comes: code 130, and not a word."""

import subprocess
import sys

import pytest

# A shell's background job ignores Ctrl-C, and so would what it starts.
HEED = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
CTRL_C = "signal.raise_signal(signal.SIGINT)"
PLACES = {
    "plain": f"{CTRL_C}",
    "where nothing can be raised": f"""
class Dying:
    def __del__(self):
        {CTRL_C}
dying = Dying()
del dying
time.sleep(20)""",
    "where it is made another error": f"""
try:
    {CTRL_C}
except KeyboardInterrupt as e:
    raise RuntimeError("half an import") from e""",
    "where it is caught": f"""
try:
    {CTRL_C}
except KeyboardInterrupt:
    time.sleep(20)""",
    "while a thread fails in consequence": f"""
def fail():
    while not gone:
        time.sleep(0.01)
    raise RuntimeError("its queue is gone")
gone, thread = [], threading.Thread(target=fail)
thread.start()
try:
    {CTRL_C}
finally:
    gone.append(True)
    thread.join()""",
}


@pytest.mark.parametrize("place", PLACES)
def test_it_ends_without_a_word(place):
    body = PLACES[place].strip().replace("\n", "\n    ")
    code = (
        f"{HEED}import sys, threading, time\nfrom vitlab.training.exit_codes import exit_code\n"
        f"def run():\n    {body}\nsys.exit(exit_code(run))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


def test_without_it_hooks_and_handlers_are_what_they_were():
    code = (
        f"{HEED}import sys, threading\nfrom vitlab.training.interrupts import interruptible\n"
        "def now():\n"
        "    return signal.getsignal(signal.SIGINT), sys.unraisablehook, threading.excepthook\n"
        "before = now()\n"
        "with interruptible():\n    within = now()\n"
        "print(before == now(), any(a is b for a, b in zip(before, within)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "True False\n", run.stderr
