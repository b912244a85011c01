"""Run Python programs that find torch and MONAI loaded, which takes seconds in each process that does so itself.

A server process loads them once and forks for every program. The program is a process of its own and ends as one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_SERVER = """
import json, os, runpy, signal, sys, time
import monai.bundle

for line in sys.stdin:
    words, folder, printed, seconds = json.loads(line)
    child, deadline = os.fork(), time.monotonic() + seconds
    if child == 0:
        break
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
else:
    sys.exit()
os.setsid()
os.chdir(folder)
for number, opened in enumerate((os.open(os.devnull, os.O_RDONLY), *[os.open(printed, os.O_WRONLY)] * 2)):
    os.dup2(opened, number)
kind, program, *sys.argv[1:] = words
if kind == "-m":
    runpy.run_module(program, run_name="__main__", alter_sys=True)
else:
    exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
"""


def run_python(words: Sequence[str], cwd: Path, seconds: float = 600) -> tuple[int, str]:
    """Run `python -m MODULE ...` or `python -c CODE ...`; return its exit status and what it printed.

    Args:
        words: of the command line, after the name of the interpreter.
        cwd: its working directory.
        seconds: time after which it is killed, with the processes that it started.
    """
    if not hasattr(os, "fork"):
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=cwd, timeout=seconds, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as printed:
        requests, answers = _server()
        print(json.dumps([list(words), str(cwd), printed.name, seconds]), file=requests, flush=True)
        status = int(answers.readline())
        return status, printed.read()


@cache
def _server() -> tuple:
    """Start the server, which ends with this process, and return the ends of its pipes."""
    popen = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return popen.stdin, popen.stdout
