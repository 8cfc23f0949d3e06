"""The figures and tables of docs/losses.md, made from the code.

python docs/make_figures.py            write them
python docs/make_figures.py --check    exit 1 when one on disk differs from what the code makes
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from potstill import divergences

DOCS = Path(__file__).parent
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 300, 48, 24, 44
INK, TEACHER, FORWARD, REVERSE, CARD = "#333333", "#555555", "#b3541e", "#1e6fb3", "#fdfcf9"


def grid() -> torch.Tensor:
    return torch.linspace(-6, 6, 241, dtype=torch.float64)


def two_modes() -> torch.Tensor:
    """Log-probabilities of a teacher with modes at -2.5 and 2.5."""
    x = grid()
    return torch.log_softmax(
        torch.logaddexp(-(((x + 2.5) / 0.8) ** 2) / 2, -(((x - 2.5) / 0.8) ** 2) / 2 - 0.3), 0
    )


def one_mode(mean: torch.Tensor, log_width: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of a student that can only be one bell."""
    return torch.log_softmax(-(((grid() - mean) / log_width.exp()) ** 2) / 2, 0)


def fit(name: str) -> torch.Tensor:
    """The bell with the least divergence, the best of three starts: reverse KL has local optima."""
    divergence = importlib.import_module(f"potstill.divergences.{name}")
    best, least = one_mode(torch.tensor(0.0).double(), torch.tensor(0.0).double()), float("inf")
    for start in (-2.0, 0.0, 2.0):
        mean = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        log_width = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([mean, log_width], lr=0.05)
        for _ in range(600):
            optimizer.zero_grad()
            value = divergence.value(one_mode(mean, log_width)[None], two_modes()[None]).sum()
            value.backward()
            optimizer.step()
        if value.item() < least:
            best, least = one_mode(mean, log_width).detach(), value.item()
    return best


def svg(title: str, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="14" fill="{INK}"><title>{title}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{CARD}"/>{body}</svg>\n'
    )


def line(values: Sequence[float], top: float, colour: str, dash: str = "") -> str:
    step = (WIDTH - 2 * LEFT) / (len(values) - 1)
    height = HEIGHT - TOP - BOTTOM
    points = " ".join(
        f"{LEFT + i * step:.1f},{TOP + height * (1 - v / top):.1f}" for i, v in enumerate(values)
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>'


def label(x: float, y: float, text: str, colour: str = INK, anchor: str = "middle") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" text-anchor="{anchor}">{text}</text>'


def axis(text: str) -> str:
    y = HEIGHT - BOTTOM
    return f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - LEFT}" y2="{y}" stroke="{INK}"/>' + label(
        WIDTH / 2, HEIGHT - 14, text
    )


def two_kls() -> str:
    """A two-mode teacher, and the one-mode student that each KL prefers."""
    teacher, forward, reverse = two_modes().exp(), fit("forward_kl"), fit("reverse_kl")
    top = 1.15 * float(max(teacher.max(), reverse.exp().max()))
    body = axis("outcomes")
    body += line(teacher.tolist(), top, TEACHER, "6 4")
    body += line(forward.exp().tolist(), top, FORWARD)
    body += line(reverse.exp().tolist(), top, REVERSE, "2 3")
    body += label(560, 150, "teacher (dashed)", TEACHER) + label(372, 190, "forward KL covers", FORWARD)
    body += label(345, 50, "reverse KL seeks (dotted)", REVERSE)
    return svg(
        "A teacher with two modes: forward KL spreads one bell over both, reverse KL puts it on one", body
    )


def softened(temperature: float) -> list[float]:
    return torch.softmax(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64) / temperature, 0).tolist()


def temperature() -> str:
    """softmax([3, 2, 1] / T) at T = 1 and 4."""
    body = axis("logits 3, 2 and 1")
    height = HEIGHT - TOP - BOTTOM
    for group, (t, colour) in enumerate(((1.0, FORWARD), (4.0, REVERSE))):
        for index, value in enumerate(softened(t)):
            x = 120 + group * 280 + index * 75
            tall = height * value / 0.75
            y = HEIGHT - BOTTOM - tall
            body += f'<rect x="{x}" y="{y:.1f}" width="56" height="{tall:.1f}" fill="{colour}"/>'
            body += label(x + 28, y - 6, f"{value:.4f}")
        body += label(120 + group * 280 + 103, TOP + 10, f"T = {t:g}", colour)
    return svg("softmax of the logits 3, 2, 1 at temperature 1 and 4", body)


def supports() -> str:
    """Which signals each divergence takes."""
    rows = [
        "| divergence | what it is | dense | top-k | sampled | T power | 0 at equality |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in divergences.names():
        module = importlib.import_module(f"potstill.divergences.{name}")
        purpose = (module.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("|", "\\|")
        marks = ["yes" if kind in module.SUPPORTS else "–" for kind in ("dense", "topk", "sampled")]
        vanishes = "yes" if module.VANISHES else "no"
        rows.append(
            f"| `{name}` | {purpose} | {' | '.join(marks)} | {module.TEMPERATURE_POWER} | {vanishes} |"
        )
    return "\n".join(rows)


FIGURES: dict[str, Callable[[], str]] = {"two_kls": two_kls, "temperature": temperature}


def made() -> dict[Path, str]:
    """Every file this script owns, with what belongs into it."""
    page = DOCS / "losses.md"
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- begin:supports -->\n", "<!-- end:supports -->"
    head, rest = text.split(begin)
    files = {page: head + begin + supports() + "\n" + end + rest.split(end)[1]}
    return files | {DOCS / "figures" / f"{name}.svg": draw() for name, draw in FIGURES.items()}


def main() -> None:
    stale = [
        path
        for path, text in made().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"stale: {path.name}" for path in stale) or "all figures and tables are current")
        sys.exit(bool(stale))
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
