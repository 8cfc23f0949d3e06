"""docs/losses.md says what the code computes, and says it of everything there is."""

from __future__ import annotations

import importlib.util
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

from potstill import divergences

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "losses.md").read_text(encoding="utf-8")
P, Q = [math.exp(z) / sum(map(math.exp, (2, 1, 0))) for z in (2, 1, 0)], [1 / 3] * 3


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_figures", DOCS / "make_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kl(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def soft(temperature: float, *logits: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def cells(name: str) -> list[list[str]]:
    """The rows of a generated table, without its head."""
    block = PAGE.split(f"<!-- begin:{name} -->")[1].split(f"<!-- end:{name} -->")[0]
    rows = [line for line in block.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rows[2:]]


def test_the_check_of_the_page_passes_and_notices_a_change(tmp_path, monkeypatch, capsys):
    assert script().main(["--check"]) == 0
    (tmp_path / "figures").mkdir()
    (tmp_path / "losses.md").write_text(PAGE.replace("| 0.088739 |", "| 0.088740 |"), encoding="utf-8")
    monkeypatch.setattr(script(), "DOCS", tmp_path)
    assert script().main(["--check"]) == 1
    assert capsys.readouterr().out.split("\n")[1:-1] == [
        "stale: losses.md",
        "stale: two_kls.svg",
        "stale: temperature.svg",
    ]
    assert script().main([]) == 0
    assert script().main(["--check"]) == 0
    assert (tmp_path / "losses.md").read_text(encoding="utf-8") == PAGE


def test_a_table_without_its_markers_is_not_skipped():
    with pytest.raises(ValueError, match="begin:mistakes"):
        script().filled(PAGE.replace("<!-- begin:mistakes -->", ""))


def test_every_divergence_is_listed_with_what_it_takes():
    listed = {line[0].strip("`"): line for line in cells("supports")}
    assert list(listed) == list(divergences.names())
    for name, line in listed.items():
        module = getattr(divergences, name)
        assert {
            kind
            for kind, mark in zip(("dense", "topk", "sampled", "vector"), line[3:7], strict=True)
            if mark == "yes"
        } == (module.SUPPORTS)
        assert line[7:] == [str(module.TEMPERATURE_POWER), "yes" if module.VANISHES else "no"]


def test_the_divergences_that_merging_can_raise_are_named():
    sentence = next(line for line in PAGE.splitlines() if line.startswith("Merging ids"))
    able = {n for n in divergences.names() if "topk" in getattr(divergences, n).SUPPORTS}
    raised = {n for n in able if "merging" in getattr(getattr(divergences, n), "DISCLAIMS", {})}
    assert {n for n in able if f"`{n}`" in sentence} == raised


def test_the_worked_position_in_prose_is_computed():
    assert f"Forward KL is {kl(P, Q):.6f}, reverse KL {kl(Q, P):.6f}." in PAGE
    entropy = -sum(x * math.log(x) for x in P)
    assert f"{kl(P, Q) + entropy:.6f} on the worked position, H(p) = {entropy:.6f} more" in PAGE


def test_every_long_number_in_prose_is_one_that_is_computed_here():
    prose = re.sub(r"<!-- begin:(\w+) -->.*?<!-- end:\1 -->", "", PAGE, flags=re.DOTALL)
    prose = re.sub(r"arXiv:\d{4}\.\d{5}", "", prose)
    told = {f"{v:.6f}" for v in (kl(P, Q), kl(Q, P), math.log(3), math.log(3) - kl(P, Q))}
    assert set(re.findall(r"\d+\.\d{4,}", prose)) == told


def test_the_table_of_mistakes_is_computed():
    forward, reverse = kl(P, Q), kl(Q, P)
    factors = {
        "right": 1,
        "batchmean": 3,
        "elementwise": 1 / 3,
        "not shifted": 2 / 3,
        "padding": 1 / 2,
        "prompt": 3 / 7,
    }
    for (word, factor), line in zip(factors.items(), cells("mistakes"), strict=True):
        assert word in line[0]
        assert line[1:] == [f"{factor * forward:.6f}", f"{factor * reverse:.6f}"]


def test_the_table_of_temperatures_is_computed():
    for t in (1.0, 4.0):
        told = ", ".join(f"{value:.4f}" for value in soft(t, 3, 2, 1))
        assert f"({told}) at T = {t:g}" in PAGE
    for line in cells("temperatures"):
        t = float(line[0])
        raw = kl(soft(t, 2, 1, 0), Q)
        assert line[1:] == [f"{raw:.6f}", f"{t**2 * raw:.6f}", f"{t**4 * raw:.6f}"]


def test_the_table_of_betas_is_computed():
    for line in cells("betas"):
        beta = float(line[0])
        m, wrong = (
            [share * a + (1 - share) * b for a, b in zip(P, Q, strict=True)] for share in (beta, 1 - beta)
        )
        jsd = beta * kl(P, m) + (1 - beta) * kl(Q, m)
        ends = {0.0: (kl(P, Q), kl(P, Q)), 1.0: (kl(Q, P), kl(Q, P))}
        plain, normal = ends.get(beta) or (jsd, jsd / (beta * (1 - beta)))
        mixed = beta * kl(P, wrong) + (1 - beta) * kl(Q, wrong)
        assert line[1:] == [f"{plain:.6f}", f"{normal:.6f}", f"{mixed:.6f}"]


def test_tails():
    p, q = [0.5, 0.3, 0.1, 0.06, 0.04], [0.2] * 5
    rest = [*p[:2], 0.2]
    values = (
        kl(p, q),
        kl(rest, [0.2, 0.2, 0.6]),
        kl(p[:2], q[:2]),
        kl([0.625, 0.375], [0.5, 0.5]),
    )
    assert [line[1] for line in cells("tails")] == [f"{value:.6f}" for value in values]
    exact, bucket, _, renormalised = (line[2].split(", ") for line in cells("tails"))
    assert bucket[:2] == exact[:2] == ["−0.300", "−0.100"]
    assert bucket[2:] == ["+0.133"] * 3
    assert renormalised[:2] == ["−0.125", "+0.125"]


def test_drawn_ids_report_the_kl_on_average():
    (_, *equal), (_, *apart) = cells("draws")
    entropy = -sum(x * math.log(x) for x in P)
    assert equal == ["0.000000", "0.000000", f"{entropy:.6f}"]
    assert apart == [f"{kl(P, Q):.6f}", f"{kl(P, Q):.6f}", f"{math.log(3):.6f}"]


def test_the_fits_show_what_the_text_says():
    one, other, free = ([float(x.replace("−", "-")) for x in line[2:] if x != "–"] for line in cells("fits"))
    assert one[2] < other[2]
    assert other[3] < one[3]
    assert abs(one[0]) < 1
    assert one[1] > 2
    assert (other[0], other[1]) == pytest.approx((-2.5, 0.8), abs=0.05)
    assert free == [0, 0]


def test_a_bell_moved_or_widened_fits_no_better():
    make = script()
    teacher = make.two_modes()[None]
    for name in ("forward_kl", "reverse_kl"):
        centre, log_width = make.fit(name)
        loss = make.divergence(name).value
        best = loss(make.bell(centre, log_width)[None], teacher)
        for shift, stretch in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
            assert loss(make.bell(centre + shift, log_width + stretch)[None], teacher) > best


def test_stated_facts_about_other_tools_hold():
    # The degenerate αβ-divergence with 1/β in place of 1/β²: half the value at ½.
    root = [[math.sqrt(x) for x in side] for side in (P, Q)]
    theirs = 2 * sum(q * math.log(q / p) - q + p for p, q in zip(*root, strict=True))
    lp = [torch.tensor([side]).double().log() for side in (P, Q)]
    assert divergences.alpha_beta.value(lp[1], lp[0], alpha=0.0, beta=0.5).item() == pytest.approx(2 * theirs)
    # An id 120 below on both sides.
    logits = torch.tensor([[0.0, -120.0]])
    mixture = logits.softmax(-1)
    assert (mixture * mixture.log()).sum().isnan()
    assert divergences.skew_kl.value(logits.log_softmax(-1), logits.log_softmax(-1)).item() == 0
    # A forbidden id whose -inf logit is replaced by 0 before the softmax.
    forbidden = torch.tensor([1.0, 1.0, -math.inf])
    assert forbidden.softmax(0)[2] == 0
    assert forbidden.masked_fill(forbidden.isinf(), 0).softmax(0)[2] > 0.1


def test_links_lead_to_files_and_headings():
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGE) if "://" not in link]
    assert len(links) > 10
    for link in links:
        file, _, anchor = link.partition("#")
        assert (DOCS / file).exists()
        if not file:
            assert anchor in headings


@pytest.mark.parametrize("name", ["two_kls", "temperature"])
def test_a_figure_stands_alone_in_light_and_dark(name):
    root = ElementTree.parse(DOCS / "figures" / f"{name}.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    card, *rest = [element for element in root if element.tag in (f"{svg}rect", f"{svg}text", f"{svg}line")]
    assert card.get("fill") == "#ffffff"
    assert card.get("width") == root.get("viewBox").split()[2]
    assert root.find(f"{svg}title").text
    assert all(element.get("fill") or element.get("stroke") for element in rest)
    assert "class=" not in ElementTree.tostring(root, encoding="unicode")


def test_the_page_stays_short_enough_to_read():
    assert len(PAGE.splitlines()) < 250
