"""Turn conversations into text by the model's own chat template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from jinja2 import TemplateError

from quant_engine.errors import InvalidDataset, NoChatTemplate

_SHOWN: Final = 200
_ROLES_HINT: Final = "Check the roles and their order; some templates take no system message, or need a user's first."


@dataclass(frozen=True)
class ChatRenderer:
    """The chat template of one model.

    Attributes:
        load_tokenizer: called on the first use alone, because plain text needs no tokenizer here.
    """

    load_tokenizer: Callable[[], Any]

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self.load_tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            raise NoChatTemplate.of_model()
        return tokenizer

    def render(self, messages: Sequence[dict[str, str]], where: str) -> str:
        """Return the text of one conversation, special tokens included.

        Args:
            messages: each with ``role`` and ``content``.
            where: the place of the conversation, for errors.

        Raises:
            NoChatTemplate: the model has none.
            InvalidDataset: the template refuses these messages.
        """
        tokenizer = self._tokenizer
        try:
            rendered: str = tokenizer.apply_chat_template(list(messages), tokenize=False)
        except Exception as error:  # the template is a program of the model's author, and may fail in any way
            # Other exceptions may quote the messages; this one has the words of the template's author.
            words = f": {str(error)[:_SHOWN]}" if isinstance(error, TemplateError) else ""
            raise InvalidDataset(
                detail=f"{where}: the model's chat template can not render the messages "
                f"({type(error).__name__}{words}).",
                hint=_ROLES_HINT,
            ) from error
        return rendered
