"""Texts that belong to somebody: keys of services, and what names or reaches a person."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

_PROVIDERS = (
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{40,255}"
    r"|sk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{32,}"  # OpenAI and those that copy its form
    r"|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{30,}"  # Google
    r"|hf_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{20,}|(?:sk|rk)_live_[A-Za-z0-9]{20,}"
    r"|glpat-[A-Za-z0-9_-]{20,}|npm_[A-Za-z0-9]{36}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # a JSON web token
)
API_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_PROVIDERS})(?![A-Za-z0-9_-])")
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")
# `password = "…"` with a long word of letters and digits behind it.
ASSIGNED = re.compile(
    r"\b(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?token|auth[_-]?token|passw(?:or)?d)\b[\"']?\s*[:=]\s*"
    r"[\"']?(?=[A-Za-z0-9/+_.-]*[0-9])(?=[A-Za-z0-9/+_.-]*[A-Za-z])[A-Za-z0-9/+_.-]{20,}",
    re.IGNORECASE,
)
_INVENTED = re.compile(r"example|x{4,}|\.{3,}|1234567|placeholder|your[_-]", re.IGNORECASE)

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
_NOBODYS = re.compile(
    r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|[\w-]+\.(?:example|test|invalid))$|@example\.", re.I
)
PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})"
    r"(?![\w/-]|\.\d)"
)
CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")


def secrets(text: str) -> Iterator[tuple[str, str]]:
    """What kind of secret stands in a text, and the words that are it; examples of documentation are none."""
    for kind, rule in (("private key", PRIVATE_KEY), ("API key", API_KEY), ("password", ASSIGNED)):
        for match in rule.finditer(text):
            if not _INVENTED.search(match[0]):
                yield kind, match[0]


def personal(text: str) -> Iterator[tuple[str, str]]:
    """What kind of personal data stands in a text, and the words that are it; invented addresses are none."""
    for kind, (rule, holds) in PERSONAL.items():
        for match in rule.finditer(text):
            if holds(match[0]):
                yield kind, match[0]


def _somebodys(address: str) -> bool:
    return _NOBODYS.search(address) is None


def _is_phone(number: str) -> bool:
    """As many digits as a number has, and not one of those kept for films."""
    digits = re.sub(r"\D", "", number)
    return 8 <= len(digits) <= 15 and not re.search(r"555[ .-]?01\d\d$", number)


def _is_card(number: str) -> bool:
    """The check digit is right (Luhn), and it is not one digit over and over."""
    digits = [int(digit) for digit in reversed(re.sub(r"\D", "", number))]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


PERSONAL: Mapping[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "credit card": (CARD, _is_card),
    "e-mail": (EMAIL, _somebodys),
    "phone": (PHONE, _is_phone),
}


def masked(text: str) -> str:
    """A text in which secrets and personal data are dots, to be shown."""
    for rule in (secrets, personal):
        for _, words in list(rule(text)):
            text = text.replace(words, "…")
    return text
