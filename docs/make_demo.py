"""Write the README's table of the demo: python docs/make_demo.py runs/quickstart [MINUTES]

MINUTES is what `make demo` took, as `time` says; no file of a run knows how long an interrupted one took in all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- demo:begin -->\n", "<!-- demo:end -->"
ROWS: Sequence[tuple[str, str, str]] = (
    ("KL(teacher‖student), nats per token", "forward_kl", "number"),
    ("top-1 agreement", "agreement", "share"),
    ("perplexity of the teacher's summaries", "ppl", "number"),
    ("ROUGE-L against the teacher's summaries", "rouge_l", "number"),
    ("ends its summary itself", "stop_rate", "share"),
    ("repeated 4-grams", "repetition", "share"),
)


def shown(figure: Mapping[str, Any] | None, kind: str, *, interval: bool) -> str:
    """A figure, with its 95 % interval where that says anything."""
    if figure is None or figure.get("value") is None:
        return "–"

    def text(value: float) -> str:
        return f"{value:.1%}" if kind == "share" else f"{value:.3g}"

    ends = figure.get("low"), figure.get("high")
    around = f" ({text(ends[0])} to {text(ends[1])})" if interval and None not in ends else ""
    return text(figure["value"]) + around


def table(summary: Mapping[str, Any], minutes: float | None) -> str:
    """What the demo measured."""
    models = {"teacher": summary["reference"], "before": summary["before"], "after": summary["after"]}
    lines = [
        "| on 80 held-out messages | teacher | cut, untrained | distilled |",
        "|---|---|---|---|",
    ]
    for name, key, kind in ROWS:
        values = {
            role: block.get(key) or summary["behaviour"][role].get(key) for role, block in models.items()
        }
        cells = [shown(values[role], kind, interval=role == "after") for role in models]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    floor = summary["retention"]["rouge_l"]
    made = summary["made"]
    took = "" if minutes is None else f", {minutes:.1f} minutes from the start to the report"
    memory = summary["train"]["peak_rss_bytes"] / 1e9
    return (
        f"One seed{took}, on {made['machine']}; {memory:.1f} GB of it used:\n\n" + "\n".join(lines) + "\n\n"
        f"Text that knows nothing, {floor['floor_of']}, reaches a ROUGE-L of {floor['floor']:.3f}.\n"
    )


def main(run: Path, minutes: float | None) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    head, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(head + BEGIN + table(summary, minutes) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None)
