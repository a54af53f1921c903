"""Seconds that a training took, and not those in which it was stopped or others had its processor."""

import time


class Stopwatch:
    """Runs from when it is made. On a CPU it stands still while the process does, as far as that can be told: of several threads,
    which together take more than a second a second, it counts the wall's seconds, as of a GPU, which works while the process
    waits."""

    def __init__(self, device):
        self.of_cpu, self.began = str(device) == "cpu", (time.perf_counter(), time.process_time())

    @property
    def seconds(self):
        wall, cpu = (
            now - then for now, then in zip((time.perf_counter(), time.process_time()), self.began, strict=True)
        )
        return round(min(wall, cpu) if self.of_cpu else wall, 3)
