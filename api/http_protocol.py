"""uvicorn's HTTP protocol with a limit on the head of a request, which uvicorn itself collects without any limit."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.doors.middleware import MAX_HEADER_BYTES, MAX_TARGET_BYTES

# More than the middleware allows, so that what is a little too long is answered by a problem.
MAX_HEAD_BYTES: Final = 2 * (MAX_HEADER_BYTES + MAX_TARGET_BYTES)
_REFUSAL: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\ncache-control: no-store\r\n\r\n"
)


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection whose request line and headers do not end; for uvicorn's option ``http``."""

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse what arrived. The part in which a head begins is not counted: it is small."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.write(_REFUSAL)
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting: the body has limits of its own."""
        self._in_head = False
        super().on_headers_complete()
