"""What other projects call the divergences, and which of our options their parameters are.

One letter means different things: two repositories of one author run "GKD" with opposite β. Each row states
the project, its loss, and for each of its parameters our option, equal to it or to 1 minus it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from potstill.errors import RecipeError


@dataclass(frozen=True)
class Parameter:
    """Their parameter, our option, their default if they have one; `mirrored`: ours = 1 - theirs."""

    theirs: str
    ours: str
    default: float | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Alias:
    """Our divergence, its fixed options and translated parameters; None if none is equal, and `why`."""

    divergence: str | None
    parameters: tuple[Parameter, ...] = ()
    options: Mapping[str, float] | None = None
    why: str = ""


_SWAPPED = (
    "its mixture has the teacher's and the student's shares swapped against the weights, which equals no beta"
)
_LOG_SPACE = "it interpolates log-probabilities without normalising them, which equals no beta"

ALIASES: Mapping[tuple[str, str], Alias] = {
    ("gkd", "jsd"): Alias("jsd", (Parameter("beta", "beta"),)),
    ("trl", "gkd"): Alias("jsd", (Parameter("beta", "beta", 0.5),)),
    ("trl 2024-10-09 to 2025-03-13", "gkd"): Alias(None, why=_SWAPPED),
    ("trl before 2024-10-09", "gkd"): Alias(None, why=_LOG_SPACE),
    ("trl", "sdft"): Alias("jsd", (Parameter("distillation_alpha", "beta"),)),
    ("trl", "sdpo"): Alias("jsd", (Parameter("distillation_alpha", "beta"),)),
    ("distillm", "js_distance"): Alias("jsd", (Parameter("lam", "beta", 0.9, mirrored=True),)),
    ("distillm", "symmetric_kl"): Alias("symmetric_kl", (Parameter("lam", "weight", 0.9),)),
    ("distillm", "skewed_forward_kl"): Alias("skew_kl", (Parameter("lam", "alpha", 0.1),)),
    ("distillm", "skewed_reverse_kl"): Alias("skew_reverse_kl", (Parameter("lam", "alpha", 0.1),)),
    ("abkd", "js_distance"): Alias("jsd", (Parameter("lam", "beta", 0.1, mirrored=True),)),
    ("abkd", "ab_div"): Alias("alpha_beta", (Parameter("alpha", "alpha"), Parameter("beta", "beta"))),
    ("distillm-2", "gkd"): Alias("jsd", (Parameter("alpha", "beta", 0.9),)),
    ("dskd", "js_divergence"): Alias("jsd", options={"beta": 0.5}),
}


def translate(project: str, loss: str, **options: float) -> tuple[str, dict[str, float]]:
    """Our divergence and options for another project's loss.

    `translate("distillm", "js_distance", lam=0.9)` is `("jsd", {"beta": 0.1})`, up to rounding. Parameters
    left out take that project's default.

    Raises:
        RecipeError: the loss or a parameter is unknown, a parameter without a default is missing, or nothing
            here equals that loss.
    """
    alias = ALIASES.get((project, loss))
    if alias is None:
        known = "; ".join(" / ".join(key) for key in ALIASES)
        raise RecipeError(f"no translation of {project} / {loss}.", fix=f"Known: {known}.", value=loss)
    if alias.divergence is None:
        raise RecipeError(
            f"{project} / {loss} has no equal here: {alias.why}.",
            fix="Use jsd with a beta of your own.",
            value=loss,
        )
    if unknown := options.keys() - {parameter.theirs for parameter in alias.parameters}:
        takes = ", ".join(parameter.theirs for parameter in alias.parameters) or "no parameters"
        raise RecipeError(
            f"{project} / {loss} has no {', '.join(sorted(unknown))}.", fix=f"It takes {takes}."
        )
    ours = dict(alias.options or {})
    for parameter in alias.parameters:
        given = options.get(parameter.theirs, parameter.default)
        if given is None:
            raise RecipeError(
                f"{project} / {loss} has no default {parameter.theirs}.", fix="Say which one was used."
            )
        ours[parameter.ours] = 1 - given if parameter.mirrored else given
    return alias.divergence, ours
