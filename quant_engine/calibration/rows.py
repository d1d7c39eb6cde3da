"""Turn the rows of a data set into documents: ``text`` as it is, ``messages`` through the chat template."""

from typing import Any, Final

from quant_engine.calibration.chat import ChatRenderer
from quant_engine.calibration.data_files import Row
from quant_engine.calibration.documents import Document
from quant_engine.errors import InvalidDataset

TEXT: Final = "text"
MESSAGES: Final = "messages"

_MESSAGES_HINT: Final = 'Messages are a list of objects, each with "role" and "content", and both of these are text.'


def row_document(row: Row, column: str | None, chat: ChatRenderer) -> Document:
    """Return the document of one row.

    Args:
        column: the field with the text or the messages; None for ``text``, or ``messages`` where that is missing.

    Raises:
        InvalidDataset: the row has no such field, or it is neither text nor messages.
        NoChatTemplate: the row holds messages, and the model has no chat template.
    """
    names = (TEXT, MESSAGES) if column is None else (column,)
    found = next((row.fields[name] for name in names if row.fields.get(name) is not None), None)
    if isinstance(found, str):
        return Document(_clean(found, row.where))
    if isinstance(found, list) and found:
        messages = [_message(each, row.where) for each in found]
        return Document(_clean(chat.render(messages, row.where), row.where), rendered=True)
    if column is not None:
        raise InvalidDataset(
            detail=f"{row.where}: the row has no text and no messages in the asked column.",
            hint="Name a column that every row has, or leave `column` out.",
        )
    raise InvalidDataset(
        detail=f"{row.where}: the row has neither text nor messages.",
        hint=f'A row needs "text", or "messages". {_MESSAGES_HINT}',
    )


def _message(message: Any, where: str) -> dict[str, str]:
    if isinstance(message, dict):
        role, content = message.get("role"), message.get("content")
        if isinstance(role, str) and isinstance(content, str):
            # Other fields, such as a time, are not the conversation's.
            return {"role": _clean(role, where), "content": _clean(content, where)}
    raise InvalidDataset(detail=f"{where}: one of the messages is not of the right form.", hint=_MESSAGES_HINT)


def _clean(text: str, where: str) -> str:
    # JSON can hold lone surrogates ("\ud800"), which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidDataset(
            detail=f"{where}: the text is not valid Unicode.", hint="Remove its lone surrogates."
        ) from error
    return text
