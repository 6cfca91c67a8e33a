"""Files of a checkpoint, in a folder or a hub repository: which are there, what tensors they hold.

Only headers and single tensors are read here; transformers loads the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from transformers.utils.hub import cached_file

HEAD_NAMES = (
    "score.weight",
    "value_head.weight",
    "v_head.summary.weight",
    "head.weight",
)
"""Names of a decoder's scoring head, a [1, hidden size] tensor: of transformers' classes and TRL,
of OpenRLHF, of TRL's value head (LLaMA-Factory), of our own head files."""

ENCODER_HEAD_NAMES = ("classifier.weight", "classifier.out_proj.weight", "logits_proj.weight")
"""Names of an encoder's last layer; the class decides what that layer reads."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


class ModelRefusedError(ValueError):
    """A model that this service cannot serve: which, why, and what it takes instead."""


def first_line(error: BaseException) -> str:
    """An error's first line, or its class's name where it has no text.

    A line that ends in a colon says nothing without the next.
    """
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":"):
        first = f"{first} {rest.strip().partition(chr(10))[0]}".strip()
    return first or type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelRefusedError: the file holds something else.
    """
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelRefusedError(f"{path} is no JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelRefusedError(f"{path} holds no JSON object")
    return cast("dict[str, Any]", value)


@dataclass(slots=True)
class Headers:
    """Shapes of a checkpoint's tensors by name; empty where it has no safetensors files here."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def head(self, names: tuple[str, ...] = HEAD_NAMES) -> tuple[str, int] | None:
        """The scoring head's name and its number of rows."""
        for name in names:
            shape = self.shapes.get(name, ())
            if len(shape) == 2:
                return name, shape[0]
        return None


def refuse_pointers(model: str) -> None:
    """Refuse a folder that is not there, or whose files git-lfs has not fetched."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")):
            raise ModelRefusedError(f"there is no folder {model}")
        return
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024:
            with path.open("rb") as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise ModelRefusedError(
                        f"{path} is a git-lfs pointer, not the file itself: run git lfs pull in "
                        f"{folder}"
                    )


def has_tokenizer(model: str) -> bool:
    """Whether a folder or hub id brings a tokenizer of its own."""
    names = ("tokenizer_config.json", "tokenizer.json")
    return any(file_of(model, name, download=True) is not None for name in names)


def headers_of(
    model: str,
    whole: str = WEIGHTS,
    *,
    heads: tuple[str, ...] = (*HEAD_NAMES, *ENCODER_HEAD_NAMES),
    download: bool,
) -> Headers:
    """Shapes of a checkpoint's tensors, from the headers of its safetensors files.

    Of a checkpoint in shards, only those that hold one of `heads` are read (and fetched).
    """
    weight_map = _weight_map(model, download=download) if whole == WEIGHTS else None
    names = [whole]
    if weight_map is not None:
        names = sorted({shard for name, shard in weight_map.items() if name in heads})
    headers = Headers()
    for name in names:
        path = file_of(model, name, download=download)
        if path is None:
            continue
        try:
            with safe_open(path, "pt") as file:
                keys: list[str] = list(file.keys())
                headers.shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in keys}
        except Exception as error:
            raise ModelRefusedError(
                f"{path} is no safetensors file: {first_line(error)}"
            ) from error
    return headers


def read_tensors(model: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Tensors of a checkpoint's safetensors files, by name; those that it lacks are left out."""
    weight_map = _weight_map(model, download=True)
    files = {WEIGHTS}
    if weight_map is not None:
        files = {weight_map[name] for name in names if name in weight_map}
    tensors: dict[str, Any] = {}
    for name in files:
        path = file_of(model, name, download=True)
        if path is not None:
            with safe_open(path, "pt") as file:
                present = set(file.keys())
                tensors |= {key: file.get_tensor(key) for key in names if key in present}
    return tensors


def _weight_map(model: str, *, download: bool) -> dict[str, str] | None:
    """Shards by tensor name; None: the checkpoint is one file."""
    index = file_of(model, WEIGHTS_INDEX, download=download)
    if index is None:
        return None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelRefusedError(f"{index} has no weight_map")
    return cast("dict[str, str]", weight_map)


def file_of(model: str, name: str, *, download: bool) -> Path | None:
    """A file of a folder or of a hub repository; None where it has none of that name."""
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    try:
        found = cached_file(
            model,
            name,
            local_files_only=not download,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)
