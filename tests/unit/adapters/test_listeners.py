import socket

import pytest

from fedlearn.adapters.listeners import listen
from fedlearn.core.errors import Code, SetupError


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"Port {port}") as caught:
            listen("127.0.0.1", port)
    assert caught.value.code is Code.PORT_BUSY


def test_a_free_port_is_found() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0
