"""Engines that fail, each in its way, beside the real ones in every Python that has this folder on its PYTHONPATH.

FAULTY names those that are there; FAULTY_CHILD a file for the id of the process that a hanging engine has started.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from sparsernn.engines import LAYERS, timing
from sparsernn.engines.base import Unsupported
from sparsernn.engines.fused import Loop

lost = False  # as a GPU's use is after a fault


class Right(Loop):
    pass


class Refuses(Loop):
    def __call__(self, x, live=None):
        raise Unsupported("it runs nothing")


class Wrong(Loop):
    def __call__(self, x, live=None):
        return super().__call__(x, live) * 1.01


class Unsteady(Loop):
    calls = 0

    def __call__(self, x, live=None):
        self.calls += 1
        return super().__call__(x, live) + 1e-5 * self.calls


class Raises(Loop):
    def __call__(self, x, live=None):
        raise RuntimeError("it does not compile\nfor a reason")


class Aborts(Loop):
    def __call__(self, x, live=None):
        if x.shape[1] > 1:
            os.abort()
        return super().__call__(x, live)


class Hangs(Loop):
    def __call__(self, x, live=None):
        Path(os.environ["FAULTY_CHILD"]).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        time.sleep(600)


class Faults(Loop):
    """On 64 neurons: it raises, and nothing runs any more."""

    def __call__(self, x, live=None):
        global lost
        if self.layer.hidden == 64:
            lost = True
            raise RuntimeError("an illegal memory access was encountered")
        return super().__call__(x, live)


class Stalls(Loop):
    """On 64 neurons: it never answers."""

    def __call__(self, x, live=None):
        if self.layer.hidden == 64:
            time.sleep(600)
        return super().__call__(x, live)


def wait(device):
    if lost:
        raise RuntimeError("an illegal memory access was encountered before")


timing.wait = wait
sys.modules["sparsernn.engines.faulty"] = sys.modules[__name__]
LAYERS |= {name: ("faulty", name.title()) for name in os.environ.get("FAULTY", "").split()}
