"""potstill on one GPU beside its peers: the loss alone, a training step, text, a cache.

Prints one JSON object for each workload as soon as it is measured, and a short table last; what goes wrong in one
workload is its result, and the others go on. It reads no file and needs no network: the weights are random.
`python benchmarks/gpu.py [--only head,step] [--compile] [--seconds 230]`; `--tiny` shows on a CPU that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import gpu_cache
import gpu_head
import gpu_models
import gpu_parts
import gpu_text
import torch
from gpu_clock import Clock, OutOfTime, Result, attempt, release
from protocol import machine, versions

SHARES = {"device": 0.06, "parts": 0.08, "head": 0.34, "step": 0.24, "generate": 0.14, "cache": 0.14}


def device_facts(clock: Clock, tiny: bool) -> Result:
    """The card, and its ceilings: bytes a second of a copy, operations a second of a bf16 product."""
    found: Result = {"versions": versions(), "machine": machine(), "cuda": torch.version.cuda}
    found |= {name: _version(name) for name in ("liger_kernel", "triton")}
    if clock.on_gpu:
        about = torch.cuda.get_device_properties(clock.device)
        found |= {"card": about.name, "memory_gb": round(about.total_memory / 1e9, 1)}
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
        found["driver, clock, power"] = answer.stdout.strip()
    size = 2**20 if tiny else 2**31
    source = torch.zeros(size, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy = clock.events(partial(target.copy_, source))
    found["copy_tb_per_second"] = round(2 * size / copy["ms"] / 1e9, 3)
    del source, target
    n = 128 if tiny else 8192
    a, b = (torch.randn(n, n, device=clock.device).bfloat16() for _ in range(2))
    product = clock.events(lambda: a @ b, rounds=10)
    found["bf16_tera_operations_per_second"] = round(2 * n**3 / product["ms"] / 1e9, 1)
    return found


def _version(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def bounded(action: Callable[[], Result], clock: Clock, seconds: float) -> Result:
    """What a workload answers; one that does not look at the clock is ended by a signal."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return attempt(action)
    except OutOfTime:
        return clock.found | {"stopped": f"after {seconds:.0f} s"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        release()


def table(name: str, result: Result, indent: str = "") -> None:
    """Numbers of a workload, a line each."""
    for key, value in result.items():
        if not isinstance(value, dict):
            continue
        if any(isinstance(inner, dict) for inner in value.values()):
            table(f"{name} {key}", value, indent)
        else:
            shown = ", ".join(f"{k} {v}" for k, v in value.items() if k not in ("seconds", "at"))
            print(f"{name:<9} {key:<64} {shown[:150]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help="workloads, separated by commas: " + ",".join(SHARES))
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU: does it run?")
    parser.add_argument("--compile", action="store_true", help="the compiled loss instead of the peers")
    parser.add_argument("--seconds", type=float, default=230.0, help="for all workloads together")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here. --tiny runs small shapes on the CPU.")
    device = torch.device("cpu" if options.tiny else "cuda")
    workloads: dict[str, Callable[..., Result]] = {
        "device": device_facts,
        "parts": partial(gpu_parts.parts, compile_too=options.compile),
        "head": partial(gpu_head.head, compile_too=options.compile),
        "step": gpu_models.step,
        "generate": gpu_text.generate,
        "cache": gpu_cache.cached,
    }
    chosen = options.only.split(",") if options.only else list(workloads)
    if unknown := [name for name in chosen if name not in workloads]:
        parser.error(f"{unknown[0]} is no workload; choose from {', '.join(workloads)}")
    began, results = time.monotonic(), dict[str, Any]()
    shares = {name: SHARES[name] for name in chosen}
    for name in chosen:
        # What a workload leaves of its time goes to those behind it.
        left = options.seconds - (time.monotonic() - began)
        seconds = max(1.0, left * shares[name] / sum(shares.values()))
        del shares[name]
        rate = results.get("device", {}).get("bf16_tera_operations_per_second")
        clock = Clock(device, 0.85 * seconds, rate)
        started = time.monotonic()
        results[name] = clock.found | bounded(partial(workloads[name], clock, options.tiny), clock, seconds)
        line = {"workload": name, "seconds": round(time.monotonic() - started, 1), **results[name]}
        print(json.dumps(line), flush=True)
    for name, result in results.items():
        table(name, {name: result} if "error" in result or name == "device" else result)


if __name__ == "__main__":
    main()
