"""The bytes that each token of a vocabulary stands for, where its tokenizer says so exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how a tokenizer that falls back to bytes names one


def token_bytes(tokenizer: Any) -> Mapping[int, bytes]:
    """The bytes of every token by its id, added tokens by their content; empty where tokens have no bytes of their own.

    Byte-level tokenizers write each byte as a character; those of sentencepiece a space as U+2581 and single bytes as
    <0xAB>. Of others, such as whole words that a decoder joins by spaces, nobody can tell.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    kinds = {part.get("type") for part in _parts(json.loads(backend.to_str()).get("decoder"))}
    added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    plain = {index: token for token, index in tokenizer.get_vocab().items() if index not in added}
    if "ByteLevel" in kinds:
        letters = {letter: byte for byte, letter in _letters().items()}
        words = {
            index: bytes(letters[letter] for letter in token)
            for index, token in plain.items()
            if all(letter in letters for letter in token)
        }
    elif "ByteFallback" in kinds:
        words = {index: _of_piece(token) for index, token in plain.items()}
    else:
        return {}
    return words | {index: token.encode() for index, token in added.items()}


def _parts(decoder: Any) -> list[Mapping[str, Any]]:
    """A decoder, and those that it is made of."""
    if not isinstance(decoder, Mapping):
        return []
    return [decoder, *(part for one in decoder.get("decoders", ()) for part in _parts(one))]


def _of_piece(token: str) -> bytes:
    single = _BYTE.fullmatch(token)
    return bytes([int(single[1], 16)]) if single else token.replace("\u2581", " ").encode()


def _letters() -> dict[int, str]:
    """The character that byte-level tokenizers write for each byte: itself where it prints, else one from U+0100 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {byte: chr(byte) for byte in printing} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }
