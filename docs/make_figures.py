"""The figures and tables of docs/losses.md, made from the code.

python docs/make_figures.py            write them
python docs/make_figures.py --check    exit 1 when one on disk differs from what the code makes

Curves are fitted in float64 to convergence and rounded before they are drawn, so that every machine draws
the same picture.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor
from torch.nn import functional

from potstill import DistillationLoss, divergences
from potstill.report.numbers import ticks
from potstill.report.svg import Scale, tag, tick_names
from potstill.signals.sampled import Sampled
from potstill.signals.support import Tail
from potstill.signals.topk import TopK

DOCS = Path(__file__).parent
WIDTH, LEFT, RIGHT = 720, 62, 700
INK, QUIET, GRID, CARD = "#22262a", "#5b6269", "#e4e6e8", "#ffffff"
TEACHER, FORWARD, REVERSE = "#6d7680", "#b3541e", "#1c62a8"


# The worked position, and how a loss sees it.


def row(*logits: float) -> Tensor:
    return torch.tensor(logits, dtype=torch.float64)


WORKED_TEACHER, WORKED_STUDENT = row(2, 1, 0), row(1, 1, 1)
WORKED = (WORKED_STUDENT[None], WORKED_TEACHER[None])
KLS = ("forward_kl", "reverse_kl")
TIGHT: dict[str, Any] = {"tolerance_grad": 1e-10, "tolerance_change": 1e-14}


def mean(name: str, student: Tensor, teacher: Tensor | Sampled, **options: Any) -> float:
    """The mean over positions [N, V], all scored, that a caller of `DistillationLoss` sees."""
    signal = teacher[None] if isinstance(teacher, Tensor) else teacher
    scored = torch.ones(1, student.shape[0])
    return DistillationLoss(name, **options).from_logits(student[None], signal, scored).mean.item()


def softened(temperature: float) -> list[float]:
    return torch.softmax(row(3, 2, 1) / temperature, 0).tolist()


# The two KLs, fitted.


def grid() -> Tensor:
    return torch.linspace(-6, 6, 121, dtype=torch.float64)


def two_modes() -> Tensor:
    """Log-probabilities of a teacher with modes at -2.5 and 2.5; the left one holds four sevenths."""
    left, right = (-(((grid() - centre) / 0.8) ** 2) / 2 for centre in (-2.5, 2.5))
    return torch.log_softmax(torch.logaddexp(left, right - 0.3), 0)


def bell(centre: Tensor, log_width: Tensor) -> Tensor:
    """Log-probabilities of a student that can only be one bell."""
    return torch.log_softmax(-(((grid() - centre) / log_width.exp()) ** 2) / 2, 0)


def divergence(name: str) -> ModuleType:
    return importlib.import_module(f"potstill.divergences.{name}")


def minimise(name: str, student: Callable[..., Tensor], *start: Tensor) -> tuple[float, list[Tensor]]:
    """Fit the student's parameters to the teacher; the divergence reached, and the parameters."""
    parameters = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(parameters, max_iter=300, line_search_fn="strong_wolfe", **TIGHT)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = divergence(name).value(student(*parameters)[None], two_modes()[None]).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return loss().item(), [value.detach() for value in parameters]


@cache
def fit(name: str) -> tuple[Tensor, Tensor]:
    """Centre and log-width of the bell with the least divergence, of three starts: reverse KL has local optima."""
    starts = [minimise(name, bell, row(centre), row(-0.3)) for centre in (-2, 0, 2)]
    centre, log_width = min(starts, key=lambda found: found[0])[1]
    return centre.round(decimals=3), log_width.round(decimals=3)


# Drawing: every colour stands in the file, on a white card, so that dark pages can show it.


def text(words: str, x: float, y: float, colour: str = QUIET, **look: str) -> Markup:
    return tag("text", words, x=x, y=y, fill=colour, **({"text_anchor": "middle"} | look))


def card(title: str, height: int, *parts: Markup) -> str:
    sheet = tag("rect", width=WIDTH, height=height, rx=8, fill=CARD, stroke=GRID)
    look = {"font_family": "system-ui, sans-serif", "font_size": 14, "role": "img"}
    frame = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {height}"}
    return tag("svg", tag("title", title), sheet, *parts, **frame, **look) + Markup("\n")


def probabilities(y: Scale) -> list[Markup]:
    """The left axis: rules with their values."""
    rows = [value for value in ticks(y.low, y.high, 4) if value <= y.high]
    parts = [text("probability", 12, 24, text_anchor="start")]
    for value, name in zip(rows, tick_names(rows), strict=True):
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=y(value), y2=y(value), stroke=GRID if value else INK))
        parts.append(text(name, LEFT - 8, y(value) + 5, text_anchor="end"))
    return parts


def two_kls() -> str:
    """A teacher with two modes, and the bell that each KL prefers."""
    x, y = Scale(-6, 6, LEFT, RIGHT), Scale(0, 0.055, 300, 42)

    def curve(lp: Tensor, **look: str) -> Markup:
        points = zip(map(x, grid().tolist()), map(y, lp.exp().tolist()), strict=True)
        return tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points), **look)

    return card(
        "A teacher with two modes. The bell fitted by forward KL covers both, that by reverse KL sits on one.",
        356,
        *probabilities(y),
        curve(two_modes(), fill="#d9dde1", stroke=TEACHER, stroke_width="1.5"),
        curve(bell(*fit("forward_kl")), fill="none", stroke=FORWARD, stroke_width="3"),
        curve(
            bell(*fit("reverse_kl")), fill="none", stroke=REVERSE, stroke_width="3", stroke_dasharray="8 5"
        ),
        *(text(f"{at}".replace("-", "−"), x(at), 320) for at in range(-6, 7, 2)),
        text("outcome", x(0), 342),
        tag("line", x1=x(0.4), x2=x(0.4), y1=y(0.0246), y2=y(0.0148), stroke=FORWARD),
        text("teacher", x(3.4), y(0.016), TEACHER, text_anchor="start", font_weight="bold"),
        text(
            "reverse KL: sits on one mode",
            x(-1.7),
            y(0.044),
            REVERSE,
            text_anchor="start",
            font_weight="bold",
        ),
        text("forward KL: covers both,", x(0.6), y(0.0295), FORWARD, font_weight="bold"),
        text("and the gap between them", x(0.6), y(0.026), FORWARD, font_weight="bold"),
    )


def temperature() -> str:
    """softmax([3, 2, 1] / T) at T = 1 and 4."""
    y = Scale(0, 0.75, 250, 42)
    parts = probabilities(y)
    for start, t, colour in ((LEFT + 50, 1.0, FORWARD), (LEFT + 360, 4.0, REVERSE)):
        for index, value in enumerate(softened(t)):
            x = start + 80.0 * index
            parts.append(tag("rect", x=x, y=y(value), width=60, height=250 - y(value), fill=colour))
            parts.append(text(f"{value:.3f}", x + 30, y(value) - 7, INK, font_weight="bold"))
            parts.append(text(f"logit {3 - index}", x + 30, 270))
        parts.append(text(f"T = {t:g}", start + 110, 296, colour, font_weight="bold"))
    return card("The softmax of the logits 3, 2, 1 at T = 1, and flatter at T = 4.", 312, *parts)


# Tables.


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; `head` names the columns, separated by |."""
    rule = "|".join("---" for _ in head.split("|"))
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {' | '.join(cells)} |" for cells in rows)])


def told(values: Iterable[float], form: str = "z.6f") -> list[str]:
    """Numbers as the page writes them; one that rounds to nothing has no sign."""
    return [f"{value:{form}}".replace("-", "−") for value in values]


@cache
def fits() -> str:
    """Both KLs of both bells, and what an unrestricted softmax reaches from the uniform distribution."""
    rows = []
    for name in KLS:
        centre, log_width = fit(name)
        reached = [
            divergence(kl).value(bell(centre, log_width)[None], two_modes()[None]).item() for kl in KLS
        ]
        shown = told([centre.item(), log_width.exp().item(), *reached], "z.2f")
        rows.append(["one bell", f"`{name}`", *shown])
    free = [minimise(kl, lambda logits: logits.log_softmax(0), torch.zeros_like(grid()))[0] for kl in KLS]
    rows.append(["unrestricted softmax", "the column's own KL", "–", "–", *told(free, "z.2f")])
    return table("student | fitted by | centre | width | forward KL | reverse KL", rows)


def supports() -> str:
    """Which signals each divergence takes."""
    rows = []
    for name in divergences.names():
        module = divergence(name)
        options = [p for p in inspect.signature(module.value).parameters.values() if p.kind is p.KEYWORD_ONLY]
        purpose = (module.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("|", "\\|")
        defaults = ", ".join(f"`{option.name}={option.default}`" for option in options) or "–"
        marks = ["yes" if kind in module.SUPPORTS else "–" for kind in ("dense", "topk", "sampled", "vector")]
        constants = [str(module.TEMPERATURE_POWER), "yes" if module.VANISHES else "no"]
        rows.append([f"`{name}`", purpose, defaults, *marks, *constants])
    return table(
        "divergence | what it is | options | dense | top-k | sampled | vector | k of T^k | 0 at equality",
        rows,
    )


def betas() -> str:
    """JSD on the worked position, and with the mixture's shares exchanged but not the weights."""
    p, q = WORKED_TEACHER.softmax(0), WORKED_STUDENT.softmax(0)
    rows = []
    for beta in (0.0, 0.01, 0.1, 0.5, 0.9, 1.0):
        m = beta * q + (1 - beta) * p
        swapped = (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum().item()
        ours = [mean("jsd", *WORKED, beta=beta, normalize=normalize) for normalize in (False, True)]
        rows.append([f"{beta:g}", *told([*ours, swapped])])
    return table("β | `jsd` | with `normalize: true` | shares swapped, the mistake", rows)


def temperatures() -> str:
    first = " and ".join(f"({', '.join(told(softened(t), 'z.4f'))}) at T = {t:g}" for t in (1.0, 4.0))
    raw = {t: mean("forward_kl", *WORKED, temperature=t) for t in (1.0, 2.0, 4.0)}
    rows = [[f"{t:g}", *told([value, t**2 * value, t**4 * value])] for t, value in raw.items()]
    worked = table("T | forward KL, raw | times T² | T² applied twice, the mistake", rows)
    return f"softmax([3, 2, 1]/T) is {first}. On the worked position:\n\n{worked}"


def tails() -> str:
    """p = (.5, .3, .1, .06, .04), two ids stored, a uniform student."""
    p = row(0.5, 0.3, 0.1, 0.06, 0.04)
    ways: list[tuple[str, int, Tail]] = [
        ("all ids, no tail", 5, "bucket"),
        ("tail bucket, the default", 2, "bucket"),
        ("true masses, the rest left out", 2, "truncate"),
        ("renormalised", 2, "renormalise"),
    ]
    rows = []
    for name, k, tail in ways:
        logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
        laid = TopK(torch.arange(k)[None], p[:k].log()[None]).beside(logits, slice(None), 1.0, tail)
        value = divergence("forward_kl").value(laid.student_lp, laid.teacher_lp).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        total = value.item() + (0.0 if laid.offset is None else laid.offset.item())
        rows.append([name, *told([total]), ", ".join(told(gradient[0].tolist(), "+z.3f"))])
    return table("two of five ids stored | value | gradient by the five logits", rows)


def draws() -> str:
    """Expectations over one id drawn from the teacher, by enumeration."""
    p = WORKED_TEACHER.softmax(0)
    entropy = -(p * p.log()).sum()

    def expected(student: Tensor, known: Tensor) -> float:
        one = torch.ones(1, 1, dtype=torch.float64)
        drawn = [Sampled(torch.tensor([[i]]), one, known) for i in range(len(p))]
        return sum(
            share * mean("forward_kl", student, one_id)
            for share, one_id in zip(p.tolist(), drawn, strict=True)
        )

    rows = []
    for name, student in (("student equals teacher", WORKED[1]), ("the worked position", WORKED[0])):
        values = [
            mean("forward_kl", student, WORKED[1]),
            expected(student, entropy[None]),
            expected(student, torch.zeros(1)),  # the entropy of the one drawn id
        ]
        rows.append([name, *told(values)])
    return table("expected over one drawn id | the KL | CE − H(p), reported | plug-in KL, the mistake", rows)


def mistakes() -> str:
    """One row: 2 prompt tokens, 3 of the answer, 3 of padding; logits at 1, 2, 3 predict the answer.

    Teacher and student differ at those three positions, each the worked one, and agree at all others.
    """
    student = WORKED_STUDENT.expand(8, 3)
    teacher = student.clone()
    teacher[1:4] = WORKED_TEACHER
    labels = torch.tensor([[-100, -100, 0, 1, 2, -100, -100, -100]])

    def right(name: str) -> float:
        return DistillationLoss(name).from_logits(student[None], teacher[None], labels=labels).mean.item()

    def torchs(name: str, reduction: str) -> Tensor:
        pair = [side[None, 1:4].log_softmax(-1) for side in (student, teacher)]
        log_q, log_p = pair if name == "forward_kl" else reversed(pair)
        return functional.kl_div(log_q, log_p, reduction=reduction, log_target=True)

    def scoring(start: int, stop: int) -> Callable[[str], float]:
        return lambda name: mean(name, student[start:stop], teacher[start:stop])

    ways: dict[str, Callable[[str], float]] = {
        "**right**: sum over the vocabulary, mean over the 3 scored tokens": right,
        "`batchmean` on [1, 3, V]: divided by the 1 row": lambda name: torchs(name, "batchmean").item(),
        "elementwise `mean`: divided by V = 3 too": lambda name: torchs(name, "none").mean().item(),
        "labels not shifted: logits at 2, 3, 4": scoring(2, 5),
        "padding scored too: logits at 1 to 6": scoring(1, 7),
        "prompt and padding scored too: logits at 0 to 6": scoring(0, 7),
    }
    rows = [[way, *told(value(name) for name in KLS)] for way, value in ways.items()]
    return table("what is computed | forward KL | reverse KL", rows)


FIGURES: dict[str, Callable[[], str]] = {"two_kls": two_kls, "temperature": temperature}
TABLES: dict[str, Callable[[], str]] = {
    "fits": fits,
    "supports": supports,
    "tails": tails,
    "draws": draws,
    "betas": betas,
    "temperatures": temperatures,
    "mistakes": mistakes,
}


def filled(page: str) -> str:
    """The page with every table between its markers.

    Raises:
        ValueError: a table's markers are not there exactly once.
    """
    for name, make in TABLES.items():
        begin, end = f"<!-- begin:{name} -->\n", f"<!-- end:{name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"losses.md needs the markers begin:{name} and end:{name}, once each.")
        head, rest = page.split(begin)
        page = head + begin + make() + "\n" + end + rest.split(end)[1]
    return page


def made() -> dict[Path, str]:
    """Every file this script owns, with what belongs into it."""
    page = DOCS / "losses.md"
    figures = {DOCS / "figures" / f"{name}.svg": str(draw()) for name, draw in FIGURES.items()}
    return {page: filled(page.read_text(encoding="utf-8"))} | figures


def main(arguments: Sequence[str]) -> int:
    """Write what is stale, or with --check name it; the exit status."""
    files = made()
    stale = [p for p, new in files.items() if not p.is_file() or p.read_text(encoding="utf-8") != new]
    if "--check" in arguments:
        print("\n".join(f"stale: {path.name}" for path in stale) or "all figures and tables are current")
        return int(bool(stale))
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
        print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
