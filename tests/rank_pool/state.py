"""What a job may change of the process it runs in: all of it is as before when the job is over."""

import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from threadpoolctl import threadpool_limits

import lucid.random
from lucid import kernels


@contextmanager
def process_kept(environment: dict[str, str], folder: str) -> Iterator[None]:
    """Let a job have this environment and working directory; put these back afterwards, and all else that is global.

    That is: signal handlers, blocked signals and the alarm, the hooks for exceptions, arguments, the filters of
    warnings, threads and choices of kernels, what seeds the random numbers of lucid, NumPy and Python.
    """
    with (
        _environment_kept(environment, folder),
        _signals_kept(),
        _interpreter_kept(),
        _generators_kept(),
        threadpool_limits(),
        kernels.choices_kept(),
        lucid.random.using(lucid.random.state()),
    ):
        yield


@contextmanager
def _environment_kept(environment: dict[str, str], folder: str) -> Iterator[None]:
    variables, working_folder, mask = dict(os.environ), os.getcwd(), os.umask(0)
    os.umask(mask)
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        yield
    finally:
        os.umask(mask)
        os.chdir(working_folder)
        os.environ.clear()
        os.environ.update(variables)


@contextmanager
def _signals_kept() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _interpreter_kept() -> Iterator[None]:
    hooks = sys.excepthook, threading.excepthook
    arguments = sys.argv
    sys.argv = ["job"]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.argv = arguments
        sys.excepthook, threading.excepthook = hooks


@contextmanager
def _generators_kept() -> Iterator[None]:
    states = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
