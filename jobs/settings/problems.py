"""The errors of settings, which name the variable that an operator has to correct and say what it must be."""

from collections.abc import Iterator

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from quant_engine.policy.wording import fault


def with_variables(error: ValidationError, *, prefix: str) -> ValidationError:
    """Return the same errors by the names of environment variables, without pydantic's words and without any value."""
    return ValidationError.from_exception_data(error.title, list(_details(error, prefix)), hide_input=True)


def _details(error: ValidationError, prefix: str) -> Iterator[InitErrorDetails]:
    errors = error.errors(include_url=False, include_input=False)
    # A default that is made from a setting that is wrong is not a fault of its own.
    own = [each for each in errors if each["type"] != "default_factory_not_called"]
    for each in own or errors:
        words = fault(each)
        variables = tuple(f"{prefix}{step}".upper() for step in each["loc"][:1])
        # Checks of our own may name the variable already; those of several settings together name all of them.
        text = words if words.startswith(prefix) or not variables else f"{variables[0]} {words}"
        # Braces would be taken for places to fill in.
        message = text.replace("{", "(").replace("}", ")")
        yield InitErrorDetails(type=PydanticCustomError(each["type"], message), loc=variables, input=None)
