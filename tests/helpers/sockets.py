"""A server that answers every connection in the same way."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """Yield the address of a server that sends bytes and hangs up, or, if they are None, says nothing."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        silent: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:  # the server is closed
                    return
                silent.append(connection)
                if answer is not None:
                    connection.recv(100)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f'127.0.0.1:{server.getsockname()[1]}'
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in silent:
                connection.close()
