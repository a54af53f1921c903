"""Times that are believed: interleaved, in one run, beside a floor measured on the same machine."""

import time
from dataclasses import dataclass

import numpy as np
import torch

MEGABYTE = 1 << 20


def wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(calls, device="cpu", seconds=0.5, rounds=(5, 50)):
    """name → milliseconds of each sample; every engine once a round, so that a disturbance meets them all alike.

    calls    name → function without arguments, called once before to be compiled and warm
    seconds  about how long all of it takes, within `rounds` (least, most)
    A sample is several calls where one is shorter than half a millisecond; the device is waited for at both ends.
    """
    once, repeats = {}, {}
    for name, call in calls.items():
        begin = time.perf_counter()
        call()
        wait(device)
        once[name] = time.perf_counter() - begin
        repeats[name] = min(50, max(1, int(5e-4 / max(once[name], 1e-9))))
    cost = sum(once[name] * repeats[name] for name in calls)
    samples = {name: [] for name in calls}
    for _ in range(int(np.clip(seconds / max(cost, 1e-9), *rounds))):
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            wait(device)
            samples[name].append(1e3 * (time.perf_counter() - begin) / repeats[name])
    return {name: np.array(values) for name, values in samples.items()}


def spread(samples):
    """median_ms, iqr_ms, best_ms of one engine's samples."""
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return {"median_ms": float(middle), "iqr_ms": float(high - low), "best_ms": float(samples.min())}


@dataclass(frozen=True)
class Roof:
    """What a device can do at best: bytes/s of copies by size in bytes, and fp32 multiply-adds as flop/s. Measured."""

    copies: dict
    flops: float

    @classmethod
    def measured(cls, device="cpu", largest=64, size=1024):
        """largest: of the copied buffers, in MiB; size: of the square product."""
        copies = {}
        for megabytes in (1, 8, 64, 512):
            if megabytes <= largest:
                source = torch.ones(megabytes * MEGABYTE // 4, device=device)
                target = torch.empty_like(source)
                best = interleaved({"copy": lambda s=source, t=target: t.copy_(s)}, device, 0.05)["copy"].min()
                copies[megabytes * MEGABYTE] = 2 * megabytes * MEGABYTE / (1e-3 * best)
        a = torch.ones(size, size, device=device)
        best = interleaved({"product": lambda: a @ a}, device, 0.1)["product"].min()
        return cls(copies, 2 * size**3 / (1e-3 * best))

    def floor(self, size, flops):
        """Milliseconds below which nothing moves `size` bytes and does `flops`, and a note of how that was reckoned."""
        fitting = [bytes_ for bytes_ in self.copies if bytes_ <= size] or [min(self.copies)]
        rate = self.copies[max(fitting)]
        moved, done = 1e3 * size / rate, 1e3 * flops / self.flops
        bound = "bytes" if moved > done else "flop"
        return max(
            moved, done
        ), f"{bound}: {size:.3g} B at {rate / 1e9:.3g} GB/s, {flops:.3g} flop at {self.flops / 1e9:.3g} GFLOP/s"
