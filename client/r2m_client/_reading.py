"""From an answer's JSON to a result class, driven by the class's own field types.

One reader serves both transports, so it takes protobuf's JSON as well: 64-bit integers arrive as
strings there. Keys it does not know are a newer server's and are ignored; optional fields that are
absent are None; a required one that is absent is an error, because a made-up value would be
believed.
"""

from __future__ import annotations

import base64
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from r2m_client._errors import ProtocolError, ServerError, server_error

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from r2m_client._results import Score

T = TypeVar("T", bound="DataclassInstance")
Convert = Callable[[object], Any]


def read(kind: type[T], data: object) -> T:
    """A `kind` from an answer's JSON object.

    Raises:
        ProtocolError: naming the field that is missing or has another type.
    """
    return _read(kind, data, kind.__name__)


def read_list(kind: type[T], data: object, key: str) -> list[T]:
    """The objects under `key` of an answer; absent means none.

    Raises:
        ProtocolError: naming the field that is missing or has another type.
    """
    items = _object(data, "the answer").get(key) or []
    if not isinstance(items, list):
        raise ProtocolError(f"{key} in the answer is not a list")
    return [read(kind, item) for item in cast("list[object]", items)]


def finite(score: Score) -> Score:
    """The same score: a NaN would go through a trainer unnoticed.

    Raises:
        ProtocolError: a reward that is no number.
    """
    for value in (score.reward, score.vanilla_reward):
        if value is not None and not math.isfinite(value):
            raise ProtocolError(f"the answer's reward of sample {score.id!r} is {value}")
    return score


def _read(kind: type[T], data: object, where: str) -> T:
    source = _object(data, where)
    values: dict[str, Any] = {}
    for name, convert, required in _plan(kind):
        found = source.get(name)
        if found is None:
            if required:
                raise ProtocolError(f"the answer has no {where}.{name}")
            continue
        try:
            values[name] = convert(found)
        except (TypeError, ValueError, OverflowError):
            raise ProtocolError(f"{where}.{name} in the answer is {found!r:.100}") from None
    return kind(**values)


def _object(data: object, where: str) -> Mapping[str, object]:
    if not isinstance(data, Mapping):
        raise ProtocolError(f"{where} is not a JSON object")
    return cast("Mapping[str, object]", data)


@cache
def _plan(kind: type[DataclassInstance]) -> tuple[tuple[str, Convert, bool], ...]:
    hints = get_type_hints(kind)
    return tuple(
        (
            item.name,
            _converter(hints[item.name]),
            item.default is MISSING and item.default_factory is MISSING,
        )
        for item in fields(kind)
    )


def _converter(hint: Any) -> Convert:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # X | None: None never gets here
        return _converter(next(a for a in arguments if a is not types.NoneType))
    if origin is tuple:
        item = _converter(arguments[0])
        return lambda found: tuple(item(x) for x in _list(found))
    if origin is dict:
        value = _converter(arguments[1])
        return lambda found: {key: value(x) for key, x in _mapping(found).items()}
    if is_dataclass(hint):
        return lambda found: _read(cast("type[Any]", hint), found, cast("type", hint).__name__)
    if hint is ServerError:
        return lambda found: server_error(_mapping(found))
    return _SCALARS[hint]


def _free(found: object) -> object:
    # protobuf's Struct knows doubles only: whole ones are ints here, whichever way they came.
    if isinstance(found, float) and found.is_integer() and abs(found) < 2**53:
        return int(found)
    if isinstance(found, dict):
        return {key: _free(x) for key, x in cast("dict[str, object]", found).items()}
    if isinstance(found, list):
        return [_free(x) for x in cast("list[object]", found)]
    return found


def _mapping(found: object) -> Mapping[str, object]:
    if not isinstance(found, Mapping):
        raise TypeError
    return cast("Mapping[str, object]", found)


def _list(found: object) -> list[object]:
    if not isinstance(found, list):
        raise TypeError
    return cast("list[object]", found)


def _str(found: object) -> str:
    if not isinstance(found, str):
        raise TypeError
    return found


def _bool(found: object) -> bool:
    if not isinstance(found, bool):
        raise TypeError
    return found


def _int(found: object) -> int:
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        raise TypeError
    if isinstance(found, float) and not found.is_integer():
        raise ValueError
    return int(found)


def _float(found: object) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        raise TypeError
    return float(found)  # protobuf writes "NaN" and "Infinity"


def _bytes(found: object) -> bytes:
    return base64.b64decode(_str(found), validate=True)


_SCALARS: dict[object, Convert] = {
    str: _str,
    bytes: _bytes,
    bool: _bool,
    int: _int,
    float: _float,
    Any: _free,
}
