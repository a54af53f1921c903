"""Times that are believed: interleaved, in one run, beside a floor measured on the same machine."""

import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

MEGABYTE = 1 << 20


@contextmanager
def tf32(allowed):
    """Whether cuDNN and cuBLAS may round fp32 factors to tf32, here and only here."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


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


def on_chip_ms(device, steps, size, gathers):
    """What the products of a layer whose weights stay on a GPU cost at the least: a step's `size` bytes of weights at 128 B a
    clock and its gathers of h at 32 a clock, spread over all multiprocessors. What a kernel fills up does not count."""
    chip = torch.cuda.get_device_properties(device)
    clocks = (size / 128 + gathers / 32) / chip.multi_processor_count
    return steps * clocks / getattr(chip, "clock_rate", 1.98e6)  # kHz


@dataclass(frozen=True)
class Roof:
    """What a device does at best, measured: bytes/s of copies by size in bytes; flop/s of square products, the best of some
    sizes, by rate: "fp32", "bf16" and on a GPU "tf32", "fp16"."""

    copies: dict
    flops: dict

    @classmethod
    def measured(cls, device="cpu"):
        on_gpu = torch.device(device).type == "cuda"
        copies, flops = {}, {}
        for size in (1 * MEGABYTE, 8 * MEGABYTE, 64 * MEGABYTE) + (512 * MEGABYTE,) * on_gpu:
            source = torch.ones(size // 4, device=device)
            target = torch.empty_like(source)
            best = interleaved({"copy": lambda s=source, t=target: t.copy_(s)}, device, 0.05)["copy"].min()
            copies[size] = 2 * size / (1e-3 * float(best))
        rates = {"fp32": torch.float32, "bf16": torch.bfloat16}
        rates |= {"tf32": torch.float32, "fp16": torch.float16} if on_gpu else {}
        for rate, dtype in rates.items():
            flops[rate] = 0.0
            for side in (8192,) if on_gpu else (64, 256, 1024):
                a = torch.ones(side, side, device=device, dtype=dtype)
                with tf32(rate == "tf32"):
                    ms = float(interleaved({"product": lambda a=a: a @ a}, device, 0.05)["product"].min())
                flops[rate] = max(flops[rate], found := 2 * side**3 / (1e-3 * ms))
                if found < flops[rate] / 2:  # no units for this rate: larger products only take longer
                    break
        return cls(copies, flops)

    def lacks(self, rate):
        """Whether there are no units for a rate: it was measured at under a tenth of fp32's."""
        return rate in self.flops and self.flops[rate] < self.flops["fp32"] / 10

    def floor(self, size, flops, rate="fp32"):
        """Milliseconds below which nothing moves `size` bytes and does `flops` at that rate, and how it was reckoned.

        An unmeasured rate (int8) leaves the bytes alone.
        """
        fitting = [bytes_ for bytes_ in self.copies if bytes_ <= size] or [min(self.copies)]
        speed, done, note = self.copies[max(fitting)], 0.0, ""
        moved = 1e3 * size / speed
        if rate in self.flops:
            done = 1e3 * flops / self.flops[rate]
            note = f", {flops:.3g} flop at {self.flops[rate] / 1e9:.3g} GFLOP/s ({rate})"
        return max(moved, done), f"{'bytes' if moved > done else 'flop'}: {size:.3g} B at {speed / 1e9:.3g} GB/s{note}"
