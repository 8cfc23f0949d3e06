"""How deep a cut to choose: the table and the picture of docs/depth.md, from runs of the quickstart.

python docs/make_depth.py RUN…     measure how fast the students of these runs write, keep the runs' figures
                                   (depth.json), and write table and picture
python docs/make_depth.py          write them from what is kept

The runs share everything but the number of layers:
    potstill run examples/quickstart.yaml student.from_teacher.keep_layers=24 name=layers-24
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from potstill.report.numbers import ticks
from potstill.report.svg import Scale, tag, tick_names

DOCS = Path(__file__).parent
KEPT, PAGE, PICTURE = DOCS / "depth.json", DOCS / "depth.md", DOCS / "figures" / "depth.svg"
EXAMPLES = DOCS.parent / "examples"
RECIPE, HELDOUT = EXAMPLES / "quickstart.yaml", EXAMPLES / "data" / "heldout.jsonl"
BEGIN, END = "<!-- begin:depth -->\n", "<!-- end:depth -->"
INK, QUIET, GRID, CARD, LINE = "#22262a", "#5b6269", "#e4e6e8", "#ffffff", "#b3541e"
Kept = Mapping[str, Any]


def kept(run: Path) -> Kept:
    """What a reader chooses by, of a finished run."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    teacher = summary["behaviour"]["teacher"]

    def value(figures: Mapping[str, Any], key: str) -> float | None:
        return (figures.get(key) or {}).get("value")

    figures = {
        "kl_before": value(summary["before"], "forward_kl"),
        "kl": value(summary["after"], "forward_kl"),
        "agreement": value(summary["after"], "agreement"),
        "text": value(summary["after"], "rouge_l"),
        "text_of_teacher": value(summary["reference"], "rouge_l"),
        "floor": summary["retention"]["rouge_l"]["floor"],
        "speed": relative_speed(run / "student"),
    }
    for key in ("stop_rate", "repetition"):
        figures[key] = value(summary["behaviour"]["after"], key)
        figures[key + "_of_teacher"] = value(teacher, key)
    params, size = (summary["student"][key] for key in ("params", "bytes"))
    layers = int(summary["student"]["source"].split()[0])
    return {"layers": layers, "params": params, "bytes": size, **figures}


def relative_speed(student: Path, rounds: int = 3, prompts: int = 16, tokens: int = 48) -> float:
    """Tokens a CPU second of greedy text, the teacher's = 1; both in turn on the same prompts."""
    from potstill.generate.local import generate
    from potstill.generate.sampling import Sampling
    from potstill.models import loading

    teacher = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["teacher"]["model"]
    rows = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()[:prompts]]
    seconds = {"teacher": 0.0, "student": 0.0}
    models = {}
    for name, place in (("teacher", teacher), ("student", str(student))):
        source = loading.find_source(place)
        dtype = torch.bfloat16 if loading.fast_bf16(torch.device("cpu")) else torch.float32
        models[name] = loading.load(source, dtype=dtype)
    tokenizer = models["teacher"].tokenizer
    ids = [tokenizer(row["prompt"]).input_ids for row in rows]
    for name in ["teacher", "student", "student", "teacher"] * rounds:
        began = time.process_time()
        list(
            generate(
                models[name].model,
                ids,
                Sampling(tokens, 0.0),
                stop_ids=(),
                pad_id=0,
                seed=0,
                batch_rows=prompts,
            )
        )
        seconds[name] += time.process_time() - began
    return seconds["teacher"] / seconds["student"]


def table(rows: Sequence[Kept]) -> str:
    """One line a depth."""
    head = (
        "layers | parameters | file | KL before | KL after (nats) | same first choice | ROUGE-L (floor, teacher) | "
        "ends by itself (teacher) | repeated 4-grams (teacher) | speed"
    )
    lines = [f"| {head} |", "|" + "---|" * 10]
    for row in rows:
        cells = (
            row["layers"],
            f"{row['params'] / 1e6:.0f} M",
            f"{row['bytes'] / 1e6:.0f} MB",
            f"{row['kl_before']:.2f}",
            f"{row['kl']:.2f}",
            f"{row['agreement']:.0%}",
            f"{row['text']:.3f} ({row['floor']:.3f}, {row['text_of_teacher']:.3f})",
            f"{row['stop_rate']:.0%} ({row['stop_rate_of_teacher']:.0%})",
            f"{row['repetition']:.1%} ({row['repetition_of_teacher']:.1%})",
            f"{row['speed']:.2f}×",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def panel(title: str, points: Sequence[tuple[float, float]], left: float, *, percent: bool) -> list[Any]:
    """One small chart: values over the number of layers, from 0 up."""
    top, bottom, width = 60.0, 210.0, 200.0
    marks = ticks(0.0, max(y for _, y in points), 4)
    layers = [x for x, _ in points]
    across = Scale(min(layers), max(layers), left, left + width)
    up = Scale(0.0, max(marks), bottom, top)
    parts = [tag("text", title, x=left, y=40, fill=INK, font_size=13, font_weight=600)]
    for mark, name in zip(marks, tick_names([100 * m for m in marks] if percent else marks), strict=True):
        y = up(mark)
        parts += [
            tag("line", x1=left, x2=left + width, y1=y, y2=y, stroke=GRID),
            tag(
                "text",
                name + ("%" if percent else ""),
                x=left - 6,
                y=y + 4,
                fill=QUIET,
                font_size=11,
                text_anchor="end",
            ),
        ]
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    parts.append(tag("polyline", points=path, fill="none", stroke=LINE, stroke_width=2))
    for x, y in points:
        parts += [
            tag("circle", cx=across(x), cy=up(y), r=4, fill=LINE),
            tag("text", f"{x:g}", x=across(x), y=bottom + 18, fill=QUIET, font_size=11, text_anchor="middle"),
        ]
    return parts


def picture(rows: Sequence[Kept]) -> str:
    """Distance, agreement and file size, each over the number of layers."""
    panels = [
        *panel("KL to the teacher (nats)", [(r["layers"], r["kl"]) for r in rows], 50, percent=False),
        *panel("Same first choice", [(r["layers"], r["agreement"]) for r in rows], 310, percent=True),
        *panel("File (MB)", [(r["layers"], r["bytes"] / 1e6) for r in rows], 570, percent=False),
        tag(
            "text",
            "layers of 30 that the student keeps",
            x=410,
            y=250,
            fill=QUIET,
            font_size=12,
            text_anchor="middle",
        ),
    ]
    frame = tag("rect", x=0, y=0, width=820, height=264, fill=CARD)
    title = tag("title", "Distance, agreement and size of students by depth")
    return (
        str(
            tag(
                "svg",
                title,
                frame,
                *panels,
                xmlns="http://www.w3.org/2000/svg",
                viewBox="0 0 820 264",
                font_family="sans-serif",
            )
        )
        + "\n"
    )


def write() -> None:
    """Write the table between its markers, and the picture."""
    rows = json.loads(KEPT.read_text(encoding="utf-8"))
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(head + BEGIN + table(rows) + "\n" + END + rest.split(END)[1], encoding="utf-8")
    PICTURE.write_text(picture(rows), encoding="utf-8")


def main(runs: Sequence[str]) -> None:
    known = {row["layers"]: row for row in json.loads(KEPT.read_text())} if KEPT.is_file() else {}
    for row in map(kept, map(Path, runs)):
        known[row["layers"]] = row
    KEPT.write_text(json.dumps(sorted(known.values(), key=lambda row: row["layers"]), indent=1) + "\n")
    write()


if __name__ == "__main__":
    main(sys.argv[1:])
