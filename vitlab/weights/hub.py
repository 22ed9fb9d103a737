"""Where published weights lie: a file, a folder as transformers and timm write it, the hub."""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

from vitlab.errors import InputError

HUB = "hf:"
# What a folder or a repository may hold, the safest first.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclasses.dataclass(frozen=True)
class Found:
    """Files on this machine.

    Attributes:
        where: the name that was asked for.
        weights: the file, or the files that it is cut into.
        config: of `config.json`, {} where there is none; `preprocessor` likewise.
        licence: as the model card or the file says; "" where neither does.
    """

    where: str
    weights: tuple[pathlib.Path, ...]
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    licence: str


def is_published(name: str) -> bool:
    """Whether a name is of the hub, of a file, or of a folder with weights and no checkpoints."""
    name = os.path.expanduser(name)
    path = pathlib.Path(name)
    if name.startswith(HUB) or path.is_file() or _cut(name)[1]:
        return True
    return path.is_dir() and any((path / file).exists() for file in WEIGHTS)


def find(name: str) -> tuple[Found, str]:
    """The files of a name, and the part of an npz that it names (`file.npz:img`).

    Args:
        name: a file; a folder with `model.safetensors` and `config.json`; or `hf:OWNER/NAME`,
            with `@REVISION` and `/FILE` if wanted, which is downloaded to the hub's cache.

    Raises:
        InputError: it is not there, or the hub cannot be reached.
    """
    if name.startswith(HUB):
        return _found(name, *_from_hub(name)), ""
    name, part = _cut(os.path.expanduser(name))
    path = pathlib.Path(name)
    if path.is_dir():
        for file in WEIGHTS:
            if (path / file).exists():
                return _found(name, path / file, lambda other: _existing(path / other)), part
        if (path / "checkpoints").is_dir():
            raise InputError(f"{name} is a run: vitlab.load_model gives its module and variables")
        raise InputError(f"{name} has no {', '.join(WEIGHTS)}: name the file")
    if not path.exists():
        raise InputError(f"{name} does not exist")
    return _found(name, path, lambda other: _existing(path.parent / other)), part


def _cut(name: str) -> tuple[str, str]:
    """A file's name, and what follows a colon behind it."""
    before, colon, after = name.rpartition(":")
    is_part = colon and not os.path.exists(name) and os.path.isfile(before)
    return (before, after) if is_part else (name, "")


def _found(where: str, weights: pathlib.Path, other: Callable[[str], pathlib.Path | None]) -> Found:
    """What there is, with `other` to get a file that lies beside the weights."""
    files = (weights,)
    if weights.name.endswith(".index.json"):
        mapped = _json(weights).get("weight_map", {})
        if not isinstance(mapped, dict) or not all(isinstance(n, str) for n in mapped.values()):
            raise InputError(f"{weights}: its weight_map gives no names of files")
        names = sorted(set(mapped.values()))
        files = tuple(other(name) or pathlib.Path(name) for name in names)
        for file in files:
            if not file.exists():
                raise InputError(f"{where}: {weights.name} names {file.name}, which is not there")
    config, preprocessor = (other(f"{n}.json") for n in ("config", "preprocessor_config"))
    card = other("README.md")
    settings = _json(config) if config else {}
    if "architecture" in settings and "pretrained_cfg" not in settings:
        settings = {**settings, "pretrained_cfg": settings}  # timm's before 0.9
    return Found(
        where,
        files,
        settings,
        _json(preprocessor) if preprocessor else {},
        _licence(card) if card else "",
    )


def _from_hub(name: str) -> tuple[pathlib.Path, Callable[[str], pathlib.Path | None]]:
    """The weights of a repository, and what gets another file of it."""
    from huggingface_hub import HfApi, errors, hf_hub_download, try_to_load_from_cache

    match = re.fullmatch(r"hf:(\w[\w.-]*/\w[\w.-]*)(?:@([\w.-]+))?(?:/(\w[\w./-]*))?", name)
    if match is None:
        raise InputError(f"{name}: a name on the hub is hf:OWNER/NAME, hf:OWNER/NAME@REVISION/FILE")
    repository, revision, file = match.groups()
    offline = False
    try:
        # One request tells whether there is a hub: each download would try for half a minute.
        HfApi().model_info(repository, revision=revision, timeout=10)
    except errors.RevisionNotFoundError:
        raise InputError(f"{name}: the repository has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{name}: the hub has no such repository, or not for you") from None
    except errors.HFValidationError as e:
        raise InputError(f"{name}: {str(e).splitlines()[0]}") from None
    except Exception:  # which of them depends on the library below the hub's
        offline = True

    def _known_absent(repository, revision):
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
        return found is not None and not isinstance(found, str)

    def get(filename):
        try:
            path = hf_hub_download(
                repository, filename, revision=revision, local_files_only=offline
            )
        except errors.LocalEntryNotFoundError:
            # Without it a model might be taken for another.
            if filename == "config.json" and not _known_absent(repository, revision):
                raise InputError(
                    f"{name}: the hub cannot be reached, and config.json is not in its cache"
                ) from None
            return None
        except errors.GatedRepoError:
            raise InputError(
                f"{name}: its owner asks for consent: give it on the hub's page, then hf auth login"
            ) from None
        except errors.EntryNotFoundError:
            return None
        except Exception as e:
            raise InputError(f"{name}: {filename}: {str(e).splitlines()[0]}") from e
        return pathlib.Path(path)

    wanted = (file,) if file else WEIGHTS
    for each in wanted:
        path = get(each)
        if path is not None:
            return path, get
    if offline:
        raise InputError(
            f"{name}: the hub cannot be reached, and {' or '.join(wanted)} is not in its cache"
        )
    raise InputError(f"{name} has no {' or '.join(wanted)}")


def _existing(path: pathlib.Path) -> pathlib.Path | None:
    return path if path.is_file() else None


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path}: {str(e).splitlines()[0]}") from e
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object")
    return _without_nulls(content)


def _without_nulls(content: dict[str, Any]) -> dict[str, Any]:
    """What is null is not there."""
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if value is not None
    }


def _licence(card: pathlib.Path) -> str:
    """What the front matter of a model card says."""
    text = card.read_text(errors="replace")
    front = re.match(r"---\n(.*?)\n---", text, re.S)
    named = re.search(r"^licen[cs]e(?:_name)?:\s*(\S+)", front[1], re.M) if front else None
    return named[1] if named else ""
