"""The licence that a model's own files state: its card, a licence file, or the field of a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path

from potstill.models.source import Source

MOST = 20_000  # bytes that are read of a file
CARD = "README.md"
FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")
_HEADER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)


def licence(source: Source) -> str:
    """What the files on this machine say, "" where they say nothing; nothing is looked up elsewhere."""
    if source.kind == "gguf":
        return _of_gguf(source.path)
    card = _file(source, CARD)
    if card is not None and (named := _of_card(_start(card))):
        return named
    texts = (_start(file) for name in FILES if (file := _file(source, name)) is not None)
    return next((title for text in texts if (title := _title(text))), "")


def _file(source: Source, name: str) -> Path | None:
    if source.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source.location, name, revision=source.revision)
        return Path(cached) if isinstance(cached, str) else None
    path = source.path / name
    return path if path.is_file() else None


def _start(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            return handle.read(MOST).decode(errors="replace")
    except OSError:  # a licence that cannot be read stops no run
        return ""


def _of_card(text: str) -> str:
    """The licence in the header of a model card; its own name where it is none of the usual ones."""
    header = _HEADER.match(text)
    named = dict(
        re.findall(r"^(license|license_name):[ \t]*(\S.*?)[ \t]*$", header[1] if header else "", re.M)
    )
    plain = {key: value.strip("\"'") for key, value in named.items()}
    return plain.get("license_name") or plain.get("license", "")


def _title(text: str) -> str:
    """The first lines of a licence's text: its name, and its version where that stands below."""
    lines = [line.strip(" #*\t") for line in text.splitlines() if line.strip(" #*\t")][:2]
    if not lines:
        return ""
    version = f", {lines[1]}" if lines[1:] and lines[1].lower().startswith("version") else ""
    return f"{lines[0]}{version}"[:100]


def _of_gguf(file: Path) -> str:
    from gguf import GGUFReader

    try:
        field = GGUFReader(file).get_field("general.license")
        return "" if field is None else str(field.contents())[:100]
    except Exception:  # whatever a damaged file raises, loading it has said it or will
        return ""
