"""Signed URLs against those that boto3 makes."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import NoCredentialsError

from fedlearn.adapters.s3 import S3Settings, s3_client
from fedlearn.adapters.signing import UrlSigner

HERE = S3Settings(endpoint_url="http://127.0.0.1:8333", access_key="someone", secret_key="a-secret")
AT_AWS = S3Settings(region="eu-central-1", access_key="someone", secret_key="a-secret")
KEY = "a task/7/updates/dévice-0/3~+%-" + "a" * 64
SUM = "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="
BOUND = {"Content-Length": "4", "x-amz-checksum-sha256": SUM}
PART = {"uploadId": "an id/with+signs=", "partNumber": "2"}
each_case = pytest.mark.parametrize(
    ("operation", "given", "method", "bound"),
    [
        ("get_object", {}, "GET", {}),
        ("put_object", {"ContentLength": 4, "ChecksumSHA256": SUM}, "PUT", {"headers": BOUND}),
        (
            "put_object",
            {"ContentLength": 4, "ChecksumSHA256": SUM, "IfNoneMatch": "*"},
            "PUT",
            {"headers": {**BOUND, "If-None-Match": "*"}},
        ),
        (
            "upload_part",
            {"ContentLength": 4, "ChecksumSHA256": SUM, "UploadId": PART["uploadId"], "PartNumber": 2},
            "PUT",
            {"headers": BOUND, "params": PART},
        ),
    ],
)


def taken_apart(url: str) -> tuple[str, str, str, dict[str, list[str]]]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc, parts.path, parse_qs(parts.query, keep_blank_values=True)


@pytest.mark.parametrize("settings", [HERE, AT_AWS], ids=["an endpoint", "AWS"])
@each_case
def test_a_url_is_signed_as_boto3_does_it(
    settings: S3Settings, operation: Any, given: dict[str, Any], method: Any, bound: dict[str, Any]
) -> None:
    for _ in range(10):  # the second may change in between
        params = {"Bucket": "updates", "Key": KEY, **given}
        due = s3_client(settings).generate_presigned_url(operation, Params=params, ExpiresIn=300)
        url = UrlSigner("updates", settings).sign(method, KEY, 300, **bound)
        if taken_apart(url)[3]["X-Amz-Date"] == taken_apart(due)[3]["X-Amz-Date"]:
            break
    assert taken_apart(url) == taken_apart(due)


def test_a_passing_credential_is_renewed_and_its_token_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = iter(("first", "second"))

    def renew() -> dict[str, str]:
        name = next(renewed)
        soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()  # so that it is renewed at each use
        return {"access_key": name, "secret_key": "a-secret", "token": f"token-of-{name}", "expiry_time": soon}

    passing = RefreshableCredentials.create_from_metadata(renew(), refresh_using=renew, method="a test")
    monkeypatch.setattr("fedlearn.adapters.s3._session.get_credentials", lambda: passing)
    signer = UrlSigner("updates", S3Settings(endpoint_url="http://127.0.0.1:8333"))
    query = taken_apart(signer.sign("GET", KEY, 300))[3]
    assert query["X-Amz-Security-Token"] == ["token-of-second"]
    assert query["X-Amz-Credential"][0].startswith("second/")


def test_nothing_is_signed_without_a_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.adapters.s3._session.get_credentials", lambda: None)
    with pytest.raises(NoCredentialsError):
        UrlSigner("updates", S3Settings(endpoint_url="http://127.0.0.1:8333")).sign("GET", KEY, 300)
