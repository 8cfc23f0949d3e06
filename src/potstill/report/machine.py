"""What a run was made with, in words: the machine and the packages."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from potstill.report.numbers import size

PACKAGES = ("potstill", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Python and the packages that figures depend on."""
    result = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result


def machine() -> str:
    """The machine that runs this, in words."""
    import psutil
    import torch

    features = ", ".join(_features()) or "no vector units that PyTorch uses"
    parts = [platform.system(), platform.machine(), f"{os.cpu_count()} processors ({features})"]
    threads = torch.get_num_threads()
    parts.append(f"{threads} thread{'s' * (threads > 1)}")
    parts.append(size(psutil.virtual_memory().total) + " of memory")
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _features() -> list[str]:
    """What of the processor decides speed and rounding: its vector units, and those for half precision."""
    import torch

    level = torch.backends.cpu.get_cpu_capability()
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        flags = set()
    half = [name for name in ("avx512_bf16", "avx512_fp16", "amx_bf16", "bf16") if name in flags]
    return [*([] if level == "DEFAULT" else [level]), *half]
