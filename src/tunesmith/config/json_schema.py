"""The JSON Schema that a setting names: read and checked, so that it can be relied on later.

A schema may refer to parts of itself, never to another file or address: nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.config.files import read_json
from tunesmith.errors import ConfigError


def read_json_schema(path: str | Path) -> dict[str, Any] | bool:
    """The schema in a file, valid by the draft that it names (2020-12 when it names none).

    Raises:
        ConfigError: there is no such file, it is not JSON, or it is no valid schema.
    """
    import jsonschema

    try:
        schema = read_json(path)
        if not isinstance(schema, dict | bool):
            raise ConfigError("no JSON Schema: it is no object", where=str(path), remedy="see https://json-schema.org")
        jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror or error}", where=str(path), remedy="name a file") from error
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", where=str(path), remedy="write it as JSON") from error
    except jsonschema.SchemaError as error:
        place = "/".join(str(part) for part in error.absolute_path) or "the top"
        raise ConfigError(
            f"no JSON Schema: {error.message}, at {place}", where=str(path), remedy="see https://json-schema.org"
        ) from error
    return schema
