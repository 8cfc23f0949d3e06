"""Read what stands beside a model's weights: its settings and the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from potstill.errors import ModelError
from potstill.models import claims, files, gguf, hub
from potstill.models.border import border
from potstill.models.source import Source, in_full


def read_settings(source: Source, name: str) -> dict[str, Any]:
    """A settings file of the model as it stands, {} where there is none.

    Raises:
        ModelError: it is no JSON object.
    """
    with reading(source):
        return settings_of(source, name)


def compare_claims(source: Source) -> None:
    """Refuse what the settings claim and the files cannot hold, before anything is built from them."""
    config = settings_of(source, files.CONFIG)
    if file_of(source, files.ADAPTER) is not None:
        raise ModelError(
            f"{source.location} holds an adapter ({files.ADAPTER}){' beside a full model' if config else ''}.",
            fix="Merge the adapter into its model (merge_and_unload of peft) and save that, or take it out.",
        )
    if named := config.get("transformers_weights"):
        raise ModelError(
            f"the config of {source.location} reads its weights from another file ({named}).",
            fix=f"Name the file {files.SINGLE}, and remove transformers_weights from {files.CONFIG}.",
        )
    if source.kind != "gguf":  # its config is made by a library
        claims.require_possible(config, stored_shapes(source), source.location)


def settings_of(source: Source, name: str) -> dict[str, Any]:
    """A settings file as it stands, {} where there is none; code of others that it names is refused if it may run."""
    file = file_of(source, name)
    content = {} if file is None else files.read_json(file)
    if source.trust_remote_code:
        claims.require_own_code(content, source.location)
    return content


def file_of(source: Source, name: str) -> Path | None:
    """A file of the model; None where the model has none."""
    if source.kind == "hub":
        return _hub_file(source.location, source.revision, name)
    return source.path / name if source.kind == "folder" and (source.path / name).is_file() else None


@cache  # each question may cost a request
def _hub_file(location: str, revision: str | None, name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    path = cached_file(location, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def stored_shapes(source: Source) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the stored tensors, None where they are not here yet."""
    if source.kind == "gguf":
        return gguf.tensors(source.path)
    if source.kind == "folder" and (file_of(source, files.SINGLE) or file_of(source, files.INDEX)):
        return files.tensors(source.path)
    return None


def arguments(source: Source) -> dict[str, Any]:
    """What `from_pretrained` of transformers is given for a source."""
    if source.kind == "gguf":
        # Absolute: transformers looks into the working directory first.
        path = source.path.absolute()
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": str(path)}
    return {
        "pretrained_model_name_or_path": source.location,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
    }


@contextmanager
def reading(source: Source, what: str = "model") -> Iterator[None]:
    """Report what cannot be read of a model, whatever the reason."""
    if source.kind == "hub":
        with _reading_from_hub(source, what):
            yield
        return
    with border(f"cannot load the {what} {source.location}", "Check the folder."):
        if source.kind == "folder":
            files.require_regular(source.path)
        else:
            files.require_content(source.path)
        yield


@contextmanager
def _reading_from_hub(source: Source, what: str) -> Iterator[None]:
    action = f"cannot load the {what} {source.location}"
    more = _without_organisation(source.location)
    fix = (
        "Check the name and the revision, and that this machine may reach the hub; "
        f"potstill never replaces one model by another.{more}"
    )
    with hub.within_reach() as why:
        try:
            with border(action, fix):
                yield
        except ModelError as error:
            if not why or error.__cause__ is None:  # what potstill itself refuses has no cause
                raise
            raise ModelError(
                f"{action}: the hub cannot be reached ({why}), and the cache does not hold all of it.",
                fix=f"Connect this machine to the network, or name a local folder.{more}",
            ) from error


def _without_organisation(name: str) -> str:
    """What else to say of a name on the hub that may have been meant as a folder, or has an organisation by now."""
    if "/" in name:
        return ""
    full = ", ".join(hub.cached_as(name)) or in_full(name)
    names = f"this one may be {full}" if full != name else f"as in ORGANISATION/{name}"
    return f" There is no folder {name}, and names on the hub begin with an organisation: {names}."
