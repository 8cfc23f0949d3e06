"""Options of `on_policy` that are out of their range, or have no effect beside another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.errors import RecipeError
from potstill.generate import vllm_settings as vllm


def refuse(options: Mapping[str, Any]) -> None:
    """Refuse the first option that cannot be as it is.

    Raises:
        RecipeError: names the option, its value and a way out.
    """

    def require(holds: object, name: str, fix: str) -> None:
        if not holds:
            value = options[name]
            raise RecipeError(f"{name} cannot be {value}.", fix=fix, path=name, value=value)

    o = options
    require(0 <= o["on_policy_fraction"] <= 1, "on_policy_fraction", "It is a share.")
    require(0 <= o["teacher_share"] < 1, "teacher_share", "It is a share below 1.")
    require(o["proposals"] >= 0, "proposals", "Use 0 for none, or a number of tokens.")
    require(o["replay"] >= 0, "replay", "Use 0 for none, or a number of answers.")
    require(o["max_age"] >= 0, "max_age", "Use 0 for no limit, or a number of steps.")
    require(o["adaptive"] >= 0, "adaptive", "Use 0 for a fixed share, or what it rises by.")
    rises = not o["adaptive"] or o["on_policy_fraction"] < 1
    require(
        rises,
        "adaptive",
        "on_policy_fraction is 1 and cannot rise: start lower (DistiLLM: 0), or leave this out.",
    )
    for name in ("samples", "collect", "inner_epochs"):
        require(o[name] >= 1, name, "Use 1 or more.")
    falling = o["refresh"] == "falling"
    require(falling or 0 <= float(o["refresh"]) <= 1, "refresh", "It is a share, or falling.")
    temperature = o["sampling_temperature"]
    greedy = temperature == 0
    require(o["samples"] == 1 or not greedy, "samples", "Greedy answers are all the same.")
    require(not (o["proposals"] and o["teacher_share"]), "proposals", "Leave teacher_share or this out.")
    require(not (greedy and o["teacher_share"]), "teacher_share", "Greedy text is of one model.")
    require(not (greedy and o["proposals"]), "proposals", "Greedy text has no second draw.")
    require(o["replay"] or not o["max_age"], "max_age", "It is of kept answers: set replay, or leave it out.")
    require(o["replay"] or falling, "refresh", "It is of kept answers: set replay, or leave it out.")
    require(o["refresh"] != 1, "refresh", "With 1 no kept answer is ever used: leave replay out.")
    always = o["on_policy_fraction"] == 1 and not o["replay"]
    for name in ("collect", "inner_epochs"):
        require(always or o[name] == 1, name, "It needs on_policy_fraction: 1, and replaces replay.")
    local = o["engine"] == "local"
    for name in ("teacher_share", "proposals"):
        require(local or not o[name], name, "The teacher writes beside the student with engine: local alone.")
    require(
        local or vllm.takes(temperature),
        "sampling_temperature",
        f"vLLM takes temperatures from {vllm.COLDEST} to {vllm.HOTTEST}, and 0 for greedy text.",
    )
    served = o["engine"] == "served"
    require(o["server"] is None or served, "server", "It is of engine: served.")
    require(o["server"] is not None or not served, "server", "Name the server: http://HOST:PORT/v1.")
    require(0 < o["gpu_memory"] < 1, "gpu_memory", "It is a share of the GPU's memory.")
