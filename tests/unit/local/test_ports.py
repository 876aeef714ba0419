import socket
from pathlib import Path

import pytest

from fedlearn.core.errors import Code, SetupError
from fedlearn.local.ports import HOST, free_port, free_ports, is_free


def test_free_ports_are_none_that_an_outgoing_connection_may_take_meanwhile() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    found = [*free_ports(20), free_port()]
    if first < 11_240:
        pytest.skip(f"Outgoing connections may take nearly any port here: {first} to {last}.")
    assert not [port for port in found if first <= port <= last]
    assert len(set(found[:20])) == 20
    assert all(map(is_free, found))


def test_a_port_that_was_given_a_moment_ago_is_not_given_again_though_nobody_listens_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A storage found its S3 port taken, once, and nobody else ran: what it had chosen for gRPC may be the same port."""
    few = range(20_000, 20_004)
    drawn = iter([few[0], few[0], few[1], few[0], few[1], few[2], few[2], few[3]])
    monkeypatch.setattr("fedlearn.local.ports._bind", lambda *_: True)
    monkeypatch.setattr("fedlearn.local.ports.secrets.choice", lambda _: next(drawn))
    assert [free_port(), free_port(), *free_ports(2)] == list(few)


def test_a_port_that_is_wanted_is_given_unless_somebody_has_it() -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        assert not is_free(taken)
        with pytest.raises(SetupError) as refused:
            free_port(taken)
        assert refused.value.code is Code.PORT_BUSY
    wanted = free_port()
    assert free_port(wanted) == wanted
