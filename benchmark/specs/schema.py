"""The door through which files come in: strict pydantic models, and their complaints in one sentence."""

import json
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from methods.errors import InputError, nearest


class Strict(BaseModel):
    """A frozen record that refuses unknown keys, converts no types and holds no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], data: object, where: str) -> Model:
    """Return ``data`` (plain values, from YAML or JSON) as a ``model``.

    Raises:
        InputError: an unknown key, a missing one or a wrong type; the sentence begins with ``where``.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where} must be a mapping of settings, not {data!r}.")
    try:
        return model.model_validate_json(json.dumps(data))
    except TypeError as error:
        raise InputError(f"{where} holds a value that is not plain: {error}.") from error
    except ValidationError as error:
        raise InputError(f"{where}: {_complaint(error, model)}") from error


def _complaint(error: ValidationError, model: type[BaseModel]) -> str:
    # A misspelt key is also a missing one; the misspelling explains both.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        # The fields of a nested record are not at hand, so only top-level keys get a suggestion.
        known = list(model.model_fields) if len(first["loc"]) == 1 else []
        return f'unknown key "{key}".{nearest(key, known)}'
    if first["type"] == "missing":
        return f'the key "{key}" is missing.'
    # Pydantic puts "Value error" in front of what a validator of ours says.
    said = str(first["ctx"]["error"]) if first["type"] == "value_error" and "ctx" in first else first["msg"]
    message = said[0].lower() + said[1:]
    return f'"{key}" is {first["input"]!r}, but {message}.'
