"""What the kernel says of a process (Linux): whether it lives, and what it listens on."""

import socket
from collections.abc import Iterator
from pathlib import Path

_LISTEN = "0A"


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie, which nobody but its parent can take away."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def listening(pid: int) -> set[tuple[str, int]]:
    """Every address and TCP port that the process listens on."""
    inodes = _inodes(pid)
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for fields in _rows(pid, table):
            if fields[3] == _LISTEN and fields[9] in inodes:
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[n : n + 8])[::-1] for n in range(0, len(address), 8)]
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


def listening_paths(pid: int) -> set[Path]:
    """Every Unix socket that the process listens on; relative ones are below its working directory."""
    inodes = _inodes(pid)
    accepts = "00010000"  # __SO_ACCEPTCON
    return {
        Path(f"/proc/{pid}/cwd").readlink() / fields[7]
        for fields in _rows(pid, "unix")
        if len(fields) > 7 and fields[3] == accepts and fields[6] in inodes
    }


def _rows(pid: int, table: str) -> Iterator[list[str]]:
    for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
        yield line.split()


def _inodes(pid: int) -> set[str]:
    links = (_link(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}


def _link(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # closed since it was listed
        return ""
