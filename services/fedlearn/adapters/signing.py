"""Signed URLs of a bucket: AWS' Signature Version 4 in the query, without a digest of the body.

The storage recomputes it from what it is asked for: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html.
botocore's signer gives the same URLs by ten times as many calls, which counts for an aggregator that reads thousands of updates
and a server that signs for as many devices; see docs/decisions/0020-folding.md.
"""

import hashlib
import hmac
from collections.abc import Mapping
from functools import lru_cache, partial
from time import gmtime, strftime
from typing import Final, Literal
from urllib.parse import quote, urlsplit

from botocore.exceptions import NoCredentialsError

from fedlearn.adapters.connections import Endpoint
from fedlearn.adapters.s3 import S3Settings, credentials_of, s3_client

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_quoted = lru_cache(maxsize=256)(partial(quote, safe=""))  # most of what is in a query is in the next one too


class UrlSigner:
    """Signs URLs for one bucket: the same as boto3's `generate_presigned_url`. Safe for threads."""

    def __init__(self, bucket: str, settings: S3Settings) -> None:
        endpoint = urlsplit(s3_client(settings).meta.endpoint_url)
        self._origin, self._path = f"{endpoint.scheme}://{endpoint.netloc}", f"{endpoint.path}/{bucket}/"
        self._host = Endpoint(self._origin).host
        self._region, self._credentials = settings.region, credentials_of(settings)

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
        frozen = self._credentials.get_frozen_credentials()  # so that a renewal in between does not mix two of them
        now = strftime("%Y%m%dT%H%M%SZ", gmtime())
        day = now[:8]
        scope = f"{day}/{self._region}/s3/aws4_request"
        signed = {"host": self._host} | {name.lower(): value.strip() for name, value in (headers or {}).items()}
        names = ";".join(sorted(signed))
        query = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{frozen.access_key}/{scope}",
            "X-Amz-Date": now,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": names,
        }
        if frozen.token is not None:
            query["X-Amz-Security-Token"] = frozen.token
        asked = "&".join([f"{name}={_quoted(value)}" for name, value in sorted((query | dict(params or {})).items())])
        path = self._path + quote(key, safe="/")
        lines = [f"{name}:{value}" for name, value in sorted(signed.items())]
        request = "\n".join([method, path, asked, *lines, "", names, "UNSIGNED-PAYLOAD"])
        claim = "\n".join([_ALGORITHM, now, scope, hashlib.sha256(request.encode()).hexdigest()])
        signature = hmac.digest(_signing_key(frozen.secret_key, day, self._region), claim.encode(), "sha256").hex()
        return f"{self._origin}{path}?{asked}&X-Amz-Signature={signature}"


@lru_cache(maxsize=16)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    """A credential's key for one day, region and service."""
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
