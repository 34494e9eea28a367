"""Read a run's JSON files as records; errors name the file and the mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from compactmtl.artifacts.files import parse_json
from compactmtl.errors import ArtifactError

Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises ArtifactError where it is missing or damaged."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} is missing", "name a folder that `compactmtl train RECIPE` wrote"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: expected an object, found {type(content).__name__}", _MEND)
    return content


def parse(model: type[Model], path: Path) -> Model:
    """A JSON file as a typed record. Raises ArtifactError where it is missing, damaged or of another version."""
    content = read_json(path)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise damaged(path, error) from error


_MEND = "the file is damaged or from another version; run the command that wrote it again"


def damaged(path: Path, error: Exception) -> ArtifactError:
    """The error that names a damaged file and the mend."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        detail = str(error)
    return ArtifactError(f"{path}: {detail}", _MEND)
