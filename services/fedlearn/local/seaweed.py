"""How the embedded SeaweedFS is configured: identities, ports, certificates and flags, hardened.

Started plainly it has side doors: whoever reaches its filer reads every object, and its gRPC makes new keys. Here it listens on
the loopback interface only, gRPC, master and filer demand a client certificate, and the key that could sign another one is
thrown away; the volumes want a signed token for each object. Only the S3 port is left to knock at, with one identity per role.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from fedlearn.local.ports import HOST, free_ports

MODELS, UPDATES = BUCKETS = "fedlearn-models", "fedlearn-updates"


class Role(StrEnum):
    """Who holds a credential; the administrator's stays with the launcher."""

    ADMINISTRATOR = "administrator"
    AGGREGATOR = "aggregator"
    SERVER = "server"


_ACTIONS: Mapping[Role, Sequence[str]] = {
    Role.ADMINISTRATOR: ("Admin",),
    Role.AGGREGATOR: tuple(f"{action}:{bucket}" for bucket in (MODELS, UPDATES) for action in ("Read", "Write", "List")),
    Role.SERVER: (f"Read:{MODELS}", f"List:{MODELS}"),
}


class Keys(NamedTuple):
    """One identity's pair of keys."""

    access: str
    secret: str


@dataclass(frozen=True, slots=True)
class Ports:
    """All the TCP ports that it listens on. Left alone, it adds 10000 for gRPC, to a port that may be taken or not exist."""

    s3: int
    s3_grpc: int
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int

    @property
    def sockets(self) -> Sequence[Path]:
        """Unix sockets that it makes in places of its own choosing, and leaves behind when it is killed."""
        parts = {"s3": self.s3_grpc, "master": self.master_grpc, "volume": self.volume_grpc, "filer": self.filer_grpc}
        return [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in parts.items()]  # noqa: S108


def identities(keys: Mapping[Role, Keys]) -> str:
    """What each role may do, as the S3 gateway reads it (JSON)."""
    listed = [
        {
            "name": role,
            "credentials": [{"accessKey": keys[role].access, "secretKey": keys[role].secret}],
            "actions": _ACTIONS[role],
        }
        for role in Role
    ]
    return json.dumps({"identities": listed}, indent=1)


def read_identities(text: str) -> Mapping[Role, Keys]:
    """The keys in what `identities` wrote.

    Raises:
        KeyError, ValueError: for anything else.
    """
    return {
        Role(one["name"]): Keys(one["credentials"][0]["accessKey"], one["credentials"][0]["secretKey"])
        for one in json.loads(text)["identities"]
    }


def make_keys() -> Mapping[Role, Keys]:
    return {role: Keys(f"{role}-{secrets.token_hex(8)}", secrets.token_urlsafe(32)) for role in Role}


def choose_ports(s3: int) -> Ports:
    """Ports that are free now; the S3 port is `s3` unless that is 0."""
    names = [field.name for field in fields(Ports)]
    chosen = dict(zip(names, free_ports(len(names)), strict=True))
    return Ports(**{**chosen, "s3": s3 or chosen["s3"]})


def security(certificates: Path) -> str:
    """`security.toml`: gRPC, master and filer demand a client certificate; the volumes a signed token for each object.

    What objects hold goes from the volumes to the S3 gateway and back within one process, over the loopback interface: TLS
    there cost a sixth of the storage's time (docs/decisions/0002-embedded-seaweedfs.md).
    """
    authority, certificate, key = (json.dumps(str(certificates / name)) for name in ("ca.pem", "node.pem", "node-key.pem"))
    lines = [f"[grpc]\nca = {authority}"]
    lines += [f"[grpc.{part}]\ncert = {certificate}\nkey = {key}" for part in ("master", "volume", "filer", "s3", "client")]
    lines += [f"[https.{part}]\ncert = {certificate}\nkey = {key}\nca = {authority}" for part in ("master", "filer")]
    lines += [
        f"[jwt.{use}]\nkey = {json.dumps(secrets.token_urlsafe(32))}"
        for use in ("signing", "signing.read", "filer_signing", "filer_signing.read")
    ]
    return "\n".join([*lines, "[access]\nui = false", "[filer.expose_directory_metadata]\nenabled = false\n"])


MASTER = """
[master.maintenance]
scripts = ""
[master.volume_growth]
copy_1 = 2
"""
"""`master.toml`: no housekeeping meant for clusters; two volumes a bucket, so that two cores can write at once."""


def filer(directory: Path) -> str:
    """`filer.toml`: names are kept below `directory`."""
    return f"[leveldb2]\nenabled = true\ndir = {json.dumps(str(directory))}\n"


def environment(home: Path) -> Mapping[str, str]:
    """All of its environment: AWS_ACCESS_KEY_ID would make an administrator, and WEED_* would change what the files say."""
    # collecting garbage sooner costs no time that shows, and spares a third of the memory
    return {"HOME": str(home), "TMPDIR": str(home), "GOGC": "40"}


def flags(directory: Path, ports: Ports) -> Sequence[str]:
    """The arguments of `weed`, to be run where `security.toml` lies; objects go to `data` below `directory`."""
    given = {
        "dir": directory / "data",
        "master.dir": directory / "master",
        "ip": HOST,
        "ip.bind": HOST,
        "disableHttp": "true",
        "s3": "true",
        "s3.config": "identities.json",
        "s3.ip.bind": HOST,
        "s3.iam": "false",
        "s3.port": ports.s3,
        "s3.port.grpc": ports.s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": "s3.sock",
        "s3.autoCreateBucket": "false",
        # an upload takes several times its size in memory; more at once than keep the cores busy only wait inside
        "s3.concurrentUploadLimitMB": 32,
        "filer.port": ports.filer,
        "filer.port.grpc": ports.filer_grpc,
        "filer.localSocket": "filer.sock",
        # twice as many chunks of a model are on their way at once; most updates are one all the same
        "filer.maxMB": 2,
        "filer.disableHttp": "true",
        "master.port": ports.master,
        "master.port.grpc": ports.master_grpc,
        # the only master: it need not wait to be elected, nor for volumes that other machines might still announce
        "master.peers": "none",
        "master.resumeState": "false",
        "master.telemetry": "false",
        "master.electionTimeout": "1s",
        "master.heartbeatInterval": "100ms",
        # a round's updates are deleted when it ends: give their space back soon
        "master.vacuumIntervalSeconds": 30,
        "master.garbageThreshold": 0.1,
        "master.volumeSizeLimitMB": 1024,
        "volume.port": ports.volume,
        "volume.port.grpc": ports.volume_grpc,
        "volume.max": 100,
        "volume.minFreeSpace": "256MiB",
        "volume.preStopSeconds": 0,
    }
    return ["-logtostderr=true", "server", *(f"-{name}={value}" for name, value in given.items())]
