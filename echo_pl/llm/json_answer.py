"""Reading a model's answer as JSON, strictly: one value, no duplicate keys, no key too many. Messages hold names of ours only."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

from echo_pl.llm.chat import AnswerError

Value = TypeVar("Value")

Form = Literal["json_schema", "json_object"]
"""How the endpoint is told that JSON is wanted: with its schema, or, where it does not know schemas, without."""


def response_format(form: Form, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The field of a request that asks for JSON.

    Raises:
        ValueError: an unknown form.
    """
    if form == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": dict(schema)}}
    if form == "json_object":
        return {"type": "json_object"}
    raise ValueError(f"the form of answers must be json_schema or json_object, got {form!r}")


def load_json(text: str) -> Any:
    """The value that a text is.

    Raises:
        AnswerError: it is no JSON, or has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise wrong("an object has a key twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except AnswerError:
        raise
    except (ValueError, RecursionError):
        raise AnswerError("not_json", "the model's answer is not JSON", again="at_once") from None


def wrong(what: str) -> AnswerError:
    """The error that says what of an answer is not of the form asked for."""
    return AnswerError("wrong_form", what, again="at_once")


def take(value: Any, kind: type[Value], where: str) -> Value:
    """The value, if it is of this type.

    Raises:
        AnswerError: it is not.
    """
    if type(value) is not kind:
        raise wrong(f"{where} is no {kind.__name__}")
    return value


def take_object(value: Any, keys: Collection[str], where: str) -> dict[str, Any]:
    """The object, if it has these keys and no others.

    Raises:
        AnswerError: it has not.
    """
    found = take(value, dict, where)
    if missing := [key for key in keys if key not in found]:
        raise wrong(f"{where} lacks {missing[0]!r}")
    if len(found) != len(keys):
        raise wrong(f"{where} has {len(found) - len(keys)} unknown keys")
    return found
