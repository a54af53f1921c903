"""An engine that never answers holds its process for ever; all that helps is to end the process, naming it first."""

import os
import threading
from contextlib import contextmanager

from ..engines import left_out

UNUSABLE = 3  # status of a process that an engine left without a GPU


def leave(engine, report):
    """Ends the process at once, for tidying up needs the GPU; the last line says how to go on without the engine."""
    names = ",".join([*left_out(), engine])
    report(f"engine {engine} left the GPU unusable; SPARSERNN_WITHOUT={names} goes on without it")
    os._exit(UNUSABLE)


def within(seconds, report):
    """A function of an engine's name → a context that `leave`s the process after `seconds` in it."""

    def end(engine):
        report(f"engine {engine} has not answered for {seconds:g} s")
        leave(engine, report)

    @contextmanager
    def trying(engine):
        timer = threading.Timer(seconds, end, [engine])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    return trying
