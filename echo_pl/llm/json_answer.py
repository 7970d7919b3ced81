"""Answers of a model as JSON: form (a pydantic model), schema, and strict validation.

Messages hold names of the form only, none of the answer's own words.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from echo_pl.llm.chat import AnswerError

Form = Literal["json_schema", "json_object"]
"""Request for JSON: with its schema, or, for endpoints without schemas, without."""


class Answer(BaseModel):
    """Base of all forms: strict types, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


AnswerT = TypeVar("AnswerT", bound=Answer)


def response_format(form: Form, name: str, kind: type[Answer]) -> dict[str, Any]:
    """Return the request's field that asks for JSON of this kind.

    Raises:
        ValueError: an unknown form.
    """
    if form == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": answer_schema(kind)}}
    if form == "json_object":
        return {"type": "json_object"}
    raise ValueError(f"the form of answers must be json_schema or json_object, got {form!r}")


def answer_schema(kind: type[Answer]) -> dict[str, Any]:
    """Return the JSON schema of a kind of answer without references, as strict mode wants it."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rpartition("/")[2]])
        return {key: resolve(value) for key, value in node.items() if key not in ("title", "description")}

    found: dict[str, Any] = resolve(schema)
    return found


def parse_answer(text: str, kind: type[AnswerT]) -> AnswerT:
    """Validate the text of an answer.

    Raises:
        AnswerError: the text is not JSON, repeats a key, or has another form.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise wrong("an object repeats a key")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except AnswerError:
        raise
    except (ValueError, RecursionError):
        raise AnswerError("not_json", "the model's answer is not JSON", again="at_once") from None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = first["loc"][:-1] if first["type"] == "extra_forbidden" else first["loc"]  # an unknown key is the answer's word
        raise wrong(f"{'.'.join(map(str, place)) or 'the answer'}: {first['type']}") from None


def wrong(what: str) -> AnswerError:
    """Return the error for an answer that has not the form asked for."""
    return AnswerError("wrong_form", what, again="at_once")
