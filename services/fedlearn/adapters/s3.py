"""Clients of object storages, their settings and credentials: the only module that imports boto3."""

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.credentials import Credentials

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONNECT_SECONDS, _READ_SECONDS = 5, 30
_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a storage is, and one role's credential for it.

    Args:
        endpoint_url: its address; None for AWS' own.
        access_key: None, together with `secret_key`, to look where boto3 does (IRSA, the environment, a profile).
        public_endpoint_url: its address as those see it who get signed URLs, since a signature covers the host.
    """

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    public_endpoint_url: str | None = None


_session, _session_lock = boto3.session.Session(), threading.Lock()
_clients: dict[S3Settings, "S3Client"] = {}


def s3_client(settings: S3Settings) -> "S3Client":
    """The one client for these settings. The first takes 0.2 s to make; threads may share clients, but not sessions."""
    with _session_lock:
        if settings not in _clients:
            _clients[settings] = _session.client(
                "s3",
                endpoint_url=settings.endpoint_url,
                region_name=settings.region,
                aws_access_key_id=settings.access_key,
                aws_secret_access_key=settings.secret_key,
                config=_config(tls=settings.endpoint_url is None or settings.endpoint_url.startswith("https:")),
            )
        return _clients[settings]


def credentials_of(settings: S3Settings) -> Credentials | None:
    """What these settings name, or where boto3 finds one; None without any."""
    if settings.access_key is not None and settings.secret_key is not None:
        return Credentials(settings.access_key, settings.secret_key)
    with _session_lock:
        return _session.get_credentials()


def _config(*, tls: bool) -> Config:
    return Config(
        signature_version="s3v4",
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
        retries={"total_max_attempts": 1},
        # CRC32 of every body, both ways, would find what the signature (of the body's SHA-256) or TLS finds as well, and every
        # reader of ours checks a digest or a seal that does not come from the storage
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # under TLS nobody changes a body on its way, so that its SHA-256 need not be signed as well
        s3={"addressing_style": "path", "payload_signing_enabled": not tls},
    )
