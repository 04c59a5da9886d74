# SPDX-License-Identifier: Apache-2.0
"""Run commands of Python in processes that have imported torch and MONAI already: in a second each, and not in ten.

A variable that a library reads when it is imported has no effect in them: such a test starts a process of its own.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from monai_llmboost.studies.jobs import PRELOADED

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)  # as a study does: there is one server for all


def run_python(command, *, env=None, cwd=None, preexec_fn=None, check=False, **same):
    """Do what `subprocess.run` does with a command that begins with `sys.executable`, and captures texts."""
    assert not same or same == {"capture_output": True, "text": True}
    (done,) = _run([command], [dict(env or os.environ)], cwd, preexec_fn)
    if check:
        done.check_returncode()
    return done


def start_python(command, folder, *, env=None, cwd=None):
    """Start such a command and return its process, which can be killed; what it prints goes to files of the folder."""
    streams = [f"{folder}/{name}.txt" for name in ("stdout", "stderr")]
    return _start(command, dict(env or os.environ), cwd, None, streams)


def run_two(command, *, env=None, cwd=None):
    """Run a command as two ranks of one job, as `torchrun --nproc_per_node=2` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**(env or os.environ), **job, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return _run([command] * 2, ranks, cwd, None)


def _run(commands, environments, cwd, preexec_fn):
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for rank, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            streams = [f"{folder}/{rank}-{name}" for name in ("out", "err")]
            done.append((_start(command, environment, cwd, preexec_fn, streams), streams))
        for process, _ in done:
            process.join()
        return [
            subprocess.CompletedProcess(command, process.exitcode, *(Path(file).read_text() for file in streams))
            for command, (process, streams) in zip(commands, done, strict=True)
        ]


def _start(command, environment, cwd, preexec_fn, streams):
    assert command[0] == sys.executable
    words = [str(word) for word in command[1:]]
    process = FORKS.Process(target=_become, args=(words, environment, str(cwd or Path.cwd()), streams, preexec_fn))
    process.start()
    return process


def _become(words, environment, cwd, streams, preexec_fn):
    """Do in this process what Python does with these words."""
    for number, file in enumerate(streams, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    if preexec_fn is not None:
        preexec_fn()
    if words[0] == "-W":
        warnings.simplefilter(words[1])
        words = words[2:]
    named = words[0] in ("-c", "-m")
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [cwd if named else str(Path(words[0]).parent), *filter(None, paths)]
    sys.argv = [words[0], *words[2:]] if named else words
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            exec(words[1], {"__name__": "__main__"})
        else:
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
