"""Clients of object storages: the only module that imports boto3, their settings, and their signed URLs."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import boto3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import NoCredentialsError

from fedlearn.adapters.connections import Endpoint

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


class UrlSigner:
    """Signs URLs for one bucket: the same as boto3's `generate_presigned_url`, which takes three times as long."""

    def __init__(self, bucket: str, settings: S3Settings) -> None:
        endpoint_url = s3_client(settings).meta.endpoint_url
        self._start, self._host = f"{endpoint_url}/{bucket}/", Endpoint(endpoint_url).host
        self._region, self._credentials = settings.region, _credentials(settings)

    def sign(
        self,
        method: Literal["GET", "PUT"],
        key: str,
        seconds: int,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> str:
        """A URL that is good for so many seconds.

        Args:
            headers: what has to be sent with it, to the letter.

        Raises:
            BotoCoreError: without a credential, or when it can't be renewed.
            ClientError: when who renews it does not.
        """
        if self._credentials is None:
            raise NoCredentialsError
        known = {**(headers or {}), "host": self._host}  # otherwise it is found out of the URL, in a quarter of the time
        request = AWSRequest(method, self._start + quote(key, safe="/~"), headers=known, params=dict(params or {}))
        frozen = self._credentials.get_frozen_credentials()  # so that a renewal in between does not mix two of them
        S3SigV4QueryAuth(frozen, "s3", self._region, expires=seconds).add_auth(request)
        return str(request.url)


def _credentials(settings: S3Settings) -> Credentials | None:
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
