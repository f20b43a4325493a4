"""What a user asked, checked against the options there are: a pydantic model."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from probe.core.errors import OptionError, nearest

Options = TypeVar("Options", bound=BaseModel)


def read_options(options: type[Options], given: Mapping[str, Any], of: str) -> Options:
    """The options as given, the others at their defaults.

    Args:
        options: What there is to choose.
        given: Name → value.
        of: What they are options of, as an error calls it.

    Raises:
        OptionError: An unknown option, with the nearest known one; or a value it cannot have.
    """
    for name in given:
        if name not in options.model_fields:
            raise OptionError(
                f'{of} has no option "{name}"', remedy=nearest(name, options.model_fields)
            )
    try:
        return options.model_validate(dict(given))
    except ValidationError as error:
        raise OptionError("\n".join(_lines(of, error, options))) from None


def _lines(of: str, error: ValidationError, options: type[BaseModel]) -> list[str]:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        field = options.model_fields.get(name)
        value = f" {name}={problem['input']!r}:" if name else ""
        about = f" ({field.description})" if field is not None and field.description else ""
        lines.append(f"{of}:{value} {problem['msg']}{about}")
    return lines
