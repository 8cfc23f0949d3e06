"""Text that a teacher wrote before it left, from the folder that a capture stage filled. Nothing is written here."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import CacheMiss
from potstill.generate.request import Completion, Request, digest_of


def write(request: Request) -> Iterator[Completion]:
    """The completions of a request as they were written.

    Raises:
        CacheMiss: one of them was not, or with other settings.
    """
    stored = request.teacher.written(request.settings)
    for index, prompt in enumerate(request.prompts):
        digest = digest_of(prompt)
        for sample in range(request.samples):
            if (index, sample) in request.skip:
                continue
            line = stored.get((digest, sample))
            if line is None:
                raise CacheMiss(
                    f"{request.teacher.folder} holds no answer {sample} to prompt {index}: its ids are none of "
                    "those that were answered.",
                    fix="Prepare the prompts as the capture did (template, tokenizer, rows, samples).",
                )
            yield Completion(index, sample, tuple(line["ids"]), line["finish"])
