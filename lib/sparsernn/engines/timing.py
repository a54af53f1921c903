"""Times that are believed: interleaved, in one run, beside a floor measured on the same machine."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..files import nearest
from ..nets.multiply import linear
from .precision import tf32

MEGABYTE = 1 << 20
CLOCKS = 2e9  # of a GPU in a second, or a little fewer
AHEAD = 1.5  # times as long as the host takes for its calls does a GPU sleep before them


def check_device(name):
    """Raises ValueError if torch has no such device here ("cpu", "cuda", or "cuda:1" and its like)."""
    if str(name).split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(nearest("device", str(name), ("cpu", "cuda")))
    if str(name) != "cpu" and not torch.cuda.is_available():
        raise ValueError("there is no GPU that torch sees here; device cpu runs the same on the CPU")


def wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Unusable(RuntimeError):
    """After a fault of `engine` the GPU runs nothing any more in this process; another process has it as new."""

    def __init__(self, engine, problem):
        said = str(problem).strip().split("\n")[0]
        super().__init__(f"engine {engine} left the GPU unusable: {said[:150]}")
        self.engine = engine


def check_usable(device, engine, problem):
    """After what an engine raised: raises Unusable if the device no longer answers."""
    try:
        wait(device)
    except Exception:
        raise Unusable(engine, problem) from problem


def interleaved(calls, device="cpu", seconds=0.5, rounds=(5, 50)):
    """name → milliseconds of each sample; every engine once a round, so that a disturbance meets them all alike.

    calls    name → function without arguments, called once before to be compiled and warm
    seconds  about how long all of it takes, within `rounds` (least, most)
    A sample is several calls where one is shorter than half a millisecond. On a GPU it is what passes between two events on
    its stream while the host has run ahead, over some 5 milliseconds or 50 calls: what the device takes, not what launches
    cost, unless there are more of them than its queue holds (a step loop's thousand).
    """
    least = 5e-3 if torch.device(device).type == "cuda" else 5e-4
    once, repeats = {}, {}
    samples, name = {name: [] for name in calls}, ""
    try:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            wait(device)
            once[name] = time.perf_counter() - begin
            repeats[name] = min(50, max(1, int(least / max(once[name], 1e-9))))
        cost = sum(once[name] * repeats[name] for name in calls) * (1 + AHEAD * (torch.device(device).type == "cuda"))
        for _ in range(int(np.clip(seconds / max(cost, 1e-9), *rounds))):
            for name, call in calls.items():
                sample = on_gpu if torch.device(device).type == "cuda" else on_cpu
                samples[name].append(sample(call, repeats[name], once[name]) / repeats[name])
    except Exception as problem:
        check_usable(device, name.split(",")[0], problem)  # "persistent, empty" is persistent's
        raise
    return {name: np.array(values) for name, values in samples.items()}


def on_cpu(call, repeats, once):
    """Milliseconds of `repeats` calls."""
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - begin)


def on_gpu(call, repeats, once):
    """The same between two events; the device sleeps first, so that the host, at `once` seconds a call, is ahead of it."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(CLOCKS * min(0.1, AHEAD * once * repeats)))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def kernel_of(call, device):
    """The kernel that a call spends most of its time in on a GPU, and how often it is launched: "200 x name"; of a library
    that chooses among several ways, the way that it took. Empty on a CPU, and where the profiler sees nothing."""
    if torch.device(device).type != "cuda":
        return ""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            call()
            wait(device)
        found = [event for event in seen.key_averages() if event.self_device_time_total]
    except Exception:  # a machine that lets nobody profile still has its times
        return ""
    most = max(found, key=lambda event: event.self_device_time_total, default=None)
    return f"{most.count} x {most.key[:120]}" if most else ""


def summary(samples):
    """median_ms, iqr_ms, best_ms of one engine's samples."""
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return {"median_ms": float(middle), "iqr_ms": float(high - low), "best_ms": float(samples.min())}


def on_chip_ms(device, steps, products, gathers, size=0):
    """Milliseconds that the products of a layer whose weights stay on a GPU cost at the least, on all multiprocessors.

    products  multiplications a step: 128 a clock on a multiprocessor (sm_90)
    gathers   numbers of h read a step from shared memory, each on its own: 32 a clock
    size      bytes of weights read a step from shared memory or farther: 128 a clock
    Zeros that a kernel multiplies to make rows equally long count nowhere. Where torch does not tell the clock, an H200's
    1.98 GHz is taken.
    """
    chip = torch.cuda.get_device_properties(device)
    clocks = max(products / 128, gathers / 32 + size / 128) / chip.multi_processor_count
    return steps * clocks / getattr(chip, "clock_rate", 1.98e6)  # kHz


def _best(call, device):
    """Seconds of the fastest of some calls, after one to warm up."""
    call()
    wait(device)
    return 1e-3 * float(interleaved({"": call}, device, 0.05)[""].min())


CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cache_of(size, caches=CACHES):
    """The nearest cache of a core that holds so many bytes, as "L2 (1024K)", or "memory"; empty where the system tells none."""
    found = []
    for one in caches.glob("index*"):
        kind, level, holds = ((one / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction" and holds.endswith("K"):
            found.append((1024 * int(holds[:-1]), f"L{level} ({holds})"))
    fitting = [said for holds, said in sorted(found) if size <= holds]
    return (fitting or ["memory"])[0] if found else ""


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
            copies[size] = 2 * size / _best(lambda s=source, t=target: t.copy_(s), device)
        rates = {"fp32": torch.float32, "bf16": torch.bfloat16}
        rates |= {"tf32": torch.float32, "fp16": torch.float16} if on_gpu else {}
        for rate, dtype in rates.items():
            flops[rate] = 0.0
            for side in (8192,) if on_gpu else (64, 256, 1024):
                a = torch.ones(side, side, device=device, dtype=dtype)
                with tf32(rate == "tf32"):
                    seconds = _best(lambda a=a: linear(a, a), device)
                flops[rate] = max(flops[rate], found := 2 * side**3 / seconds)
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
        fitting = max((bytes_ for bytes_ in self.copies if bytes_ <= size), default=min(self.copies))
        speed = max(speed for bytes_, speed in self.copies.items() if bytes_ >= fitting)  # a GPU hardly starts on less
        done, note = 0.0, ""
        moved = 1e3 * size / speed
        if rate in self.flops:
            done = 1e3 * flops / self.flops[rate]
            note = f", {flops:.3g} flop at {self.flops[rate] / 1e9:.3g} GFLOP/s ({rate})"
        return max(moved, done), f"{'bytes' if moved > done else 'flop'}: {size:.3g} B at {speed / 1e9:.3g} GB/s{note}"
