"""Who may see what, proved against the real storage: nothing here asks our own code to refuse."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import boto3
import pytest
import urllib3
from botocore.config import Config
from botocore.exceptions import ClientError

from fedlearn.adapters import signing
from fedlearn.core.ports import UploadGrant
from fedlearn.local.seaweed import MODELS, UPDATES, Role
from fedlearn.local.storage import LocalStorage

SECRET = b"what one device has learnt " * 20
KEY = "access/1/updates/device-0/0"
MODEL_KEY = "access/models/0"
SESSION = boto3.session.Session()


@pytest.fixture(scope="module", autouse=True)
def objects(storage: LocalStorage) -> None:
    """One update and one model that everybody here is after."""
    storage.store(Role.AGGREGATOR, UPDATES).put(KEY, SECRET)
    storage.store(Role.AGGREGATOR, MODELS).put(MODEL_KEY, SECRET)


@pytest.fixture(autouse=True)
def untouched(storage: LocalStorage, objects: None) -> Iterator[None]:
    """Whatever a test tried, the bytes and the list of keys are what they were."""
    updates, models = storage.store(Role.AGGREGATOR, UPDATES), storage.store(Role.AGGREGATOR, MODELS)
    before = updates.list("access/"), models.list("access/")
    yield
    assert (updates.list("access/"), models.list("access/")) == before
    assert updates.get(KEY) == models.get(MODEL_KEY) == SECRET


def s3(storage: LocalStorage, role: Role) -> Any:
    """boto3 itself, with this role's key: what somebody who has stolen it would use."""
    access_key, secret_key = storage.credentials(role)
    return SESSION.client(
        "s3",
        endpoint_url=storage.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def refused(call: Callable[[], Any]) -> bool:
    try:
        answer = call()
    except ClientError as error:
        return bool(error.response["ResponseMetadata"]["HTTPStatusCode"] == 403)
    # deleting many answers 200 and says of each key that it was refused
    errors = answer.get("Errors", [])
    return bool(errors) and all(error["Code"] == "AccessDenied" for error in errors)


UPDATE = {"Bucket": UPDATES, "Key": KEY}
MODEL = {"Bucket": MODELS, "Key": MODEL_KEY}
POLICY = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"*"}]}'


# --- the server's key


SERVER_ON_UPDATES: Mapping[str, Callable[[Any], Any]] = {
    "get": lambda c: c.get_object(**UPDATE),
    "get a range": lambda c: c.get_object(**UPDATE, Range="bytes=0-0"),
    "get what is not there": lambda c: c.get_object(Bucket=UPDATES, Key="access/nothing"),
    "head": lambda c: c.head_object(**UPDATE),
    "attributes": lambda c: c.get_object_attributes(**UPDATE, ObjectAttributes=["ETag", "ObjectSize"]),
    "tags": lambda c: c.get_object_tagging(**UPDATE),
    "list": lambda c: c.list_objects_v2(Bucket=UPDATES),
    "list below a prefix": lambda c: c.list_objects_v2(Bucket=UPDATES, Prefix="access/"),
    "list, the old way": lambda c: c.list_objects(Bucket=UPDATES),
    "list versions": lambda c: c.list_object_versions(Bucket=UPDATES),
    "list uploads": lambda c: c.list_multipart_uploads(Bucket=UPDATES),
    "put": lambda c: c.put_object(**UPDATE, Body=b"forged"),
    "put a new key": lambda c: c.put_object(Bucket=UPDATES, Key="access/new", Body=b"forged"),
    "delete": lambda c: c.delete_object(**UPDATE),
    "delete many": lambda c: c.delete_objects(Bucket=UPDATES, Delete={"Objects": [{"Key": KEY}]}),
    "copy out": lambda c: c.copy_object(Bucket=MODELS, Key="access/stolen", CopySource=UPDATE),
    "copy in": lambda c: c.copy_object(**UPDATE, CopySource=MODEL),
    "copy within": lambda c: c.copy_object(Bucket=UPDATES, Key="access/copy", CopySource=UPDATE),
    "upload in parts": lambda c: c.create_multipart_upload(**UPDATE),
    "open it by a policy": lambda c: c.put_bucket_policy(Bucket=UPDATES, Policy=POLICY),
    "open it by an ACL": lambda c: c.put_bucket_acl(Bucket=UPDATES, ACL="public-read"),
    "delete the bucket": lambda c: c.delete_bucket(Bucket=UPDATES),
}

SERVER_ON_MODELS: Mapping[str, Callable[[Any], Any]] = {
    "put": lambda c: c.put_object(**MODEL, Body=b"forged"),
    "put a new key": lambda c: c.put_object(Bucket=MODELS, Key="access/new", Body=b"forged"),
    "delete": lambda c: c.delete_object(**MODEL),
    "delete many": lambda c: c.delete_objects(Bucket=MODELS, Delete={"Objects": [{"Key": MODEL_KEY}]}),
    "copy": lambda c: c.copy_object(Bucket=MODELS, Key="access/copy", CopySource=MODEL),
    "upload in parts": lambda c: c.create_multipart_upload(**MODEL),
    "open it by a policy": lambda c: c.put_bucket_policy(Bucket=MODELS, Policy=POLICY),
    "open it by an ACL": lambda c: c.put_bucket_acl(Bucket=MODELS, ACL="public-read"),
    "delete the bucket": lambda c: c.delete_bucket(Bucket=MODELS),
    "make a bucket": lambda c: c.create_bucket(Bucket="fedlearn-mine"),
}


@pytest.mark.parametrize("call", SERVER_ON_UPDATES.values(), ids=SERVER_ON_UPDATES.keys())
def test_the_servers_key_does_nothing_with_updates(storage: LocalStorage, call: Callable[[Any], Any]) -> None:
    assert refused(lambda: call(s3(storage, Role.SERVER)))


@pytest.mark.parametrize("call", SERVER_ON_MODELS.values(), ids=SERVER_ON_MODELS.keys())
def test_the_servers_key_changes_nothing_about_models(storage: LocalStorage, call: Callable[[Any], Any]) -> None:
    assert refused(lambda: call(s3(storage, Role.SERVER)))


def test_the_servers_key_reads_and_lists_models(storage: LocalStorage) -> None:
    server = s3(storage, Role.SERVER)
    assert server.get_object(**MODEL)["Body"].read() == SECRET
    assert server.head_object(**MODEL)["ContentLength"] == len(SECRET)
    assert MODEL_KEY in [entry["Key"] for entry in server.list_objects_v2(Bucket=MODELS)["Contents"]]


def test_the_server_does_not_even_see_that_there_is_a_bucket_of_updates(storage: LocalStorage) -> None:
    assert [bucket["Name"] for bucket in s3(storage, Role.SERVER).list_buckets()["Buckets"]] == [MODELS]


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_url_that_the_server_signs_for_an_update_is_refused(storage: LocalStorage, method: str) -> None:
    store = storage.store(Role.SERVER, UPDATES)
    grant = store.sign_put("access/new", size_bytes=len(SECRET), sha256=digest(SECRET), seconds=60)
    if method == "PUT":
        assert send("PUT", grant.url, SECRET, grant.headers)[0] == 403
    else:
        status, body = send("GET", store.sign_get(KEY, seconds=60))
        assert status == 403
        assert SECRET not in body


# --- the aggregator's key


AGGREGATOR: Mapping[str, Callable[[Any], Any]] = {
    "make a bucket": lambda c: c.create_bucket(Bucket="fedlearn-mine"),
    "delete a bucket": lambda c: c.delete_bucket(Bucket=UPDATES),
    "open a bucket by a policy": lambda c: c.put_bucket_policy(Bucket=UPDATES, Policy=POLICY),
    "open a bucket by an ACL": lambda c: c.put_bucket_acl(Bucket=UPDATES, ACL="public-read"),
    "open an object by an ACL": lambda c: c.put_object_acl(**UPDATE, ACL="public-read"),
}


@pytest.mark.parametrize("call", AGGREGATOR.values(), ids=AGGREGATOR.keys())
def test_the_aggregators_key_opens_nothing_to_others(storage: LocalStorage, call: Callable[[Any], Any]) -> None:
    assert refused(lambda: call(s3(storage, Role.AGGREGATOR)))


# --- signed URLs (what a grant takes and refuses stands in the contract of the object store as well)


def test_a_grant_carries_its_bytes_to_its_key_once_and_reads_nothing(storage: LocalStorage) -> None:
    store, body = storage.store(Role.AGGREGATOR, UPDATES), b"sealed" * 100
    grant = store.sign_put("access/granted", size_bytes=len(body), sha256=digest(body), seconds=60)
    other_key = UploadGrant(grant.url.replace("granted", "updates"), grant.headers)
    longer = {**grant.headers, "Content-Length": str(len(body) + 1)}
    other_digest = {**grant.headers, "x-amz-checksum-sha256": "x" * 43 + "="}
    try:
        assert send("GET", grant.url)[0] == 403
        assert send("PUT", grant.url, body[::-1], grant.headers)[0] == 400
        assert send("PUT", grant.url, body + b"x", longer)[0] == 403
        assert send("PUT", grant.url, body[::-1], other_digest)[0] == 403
        assert send("PUT", other_key.url, body, other_key.headers)[0] == 403
        assert store.list("access/granted") == []
        assert send("PUT", grant.url, body, grant.headers)[0] == 200
        assert send("PUT", grant.url, body, grant.headers)[0] == 412
        assert send("GET", grant.url)[0] == 403
        assert send("DELETE", grant.url)[0] == 403
        assert store.get("access/granted") == body
    finally:
        store.delete(["access/granted"])


@pytest.mark.parametrize("left_out", ["x-amz-checksum-sha256", "If-None-Match"])
def test_a_grant_is_void_without_the_headers_that_were_signed(storage: LocalStorage, left_out: str) -> None:
    store = storage.store(Role.AGGREGATOR, UPDATES)
    grant = store.sign_put("access/granted", size_bytes=len(SECRET), sha256=digest(SECRET), seconds=60)
    headers = {name: value for name, value in grant.headers.items() if name != left_out}
    assert send("PUT", grant.url, SECRET, headers)[0] == 403


def test_a_grant_does_not_copy_another_devices_update(storage: LocalStorage) -> None:
    store = storage.store(Role.AGGREGATOR, UPDATES)
    grant = store.sign_put("access/granted", size_bytes=0, sha256=digest(b""), seconds=60)
    try:
        assert send("PUT", grant.url, b"", {**grant.headers, "x-amz-copy-source": f"/{UPDATES}/{KEY}"})[0] == 403
        assert send("PUT", grant.url, b"", grant.headers)[0] == 200
    finally:
        store.delete(["access/granted"])


@pytest.mark.parametrize(("age_seconds", "statuses"), [(30, {"GET": 200, "PUT": 200}), (61, {"GET": 403, "PUT": 403})])
def test_a_signed_url_is_void_after_its_time(
    storage: LocalStorage, age_seconds: int, statuses: Mapping[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = storage.store(Role.AGGREGATOR, UPDATES)
    with monkeypatch.context() as signed_then:
        signed_then.setattr(signing, "gmtime", lambda: time.gmtime(time.time() - age_seconds))
        url = store.sign_get(KEY, seconds=60)
        grant = store.sign_put("access/late", size_bytes=len(SECRET), sha256=digest(SECRET), seconds=60)
    try:
        assert send("GET", url)[0] == statuses["GET"]
        assert send("PUT", grant.url, SECRET, grant.headers)[0] == statuses["PUT"]
    finally:
        store.delete(["access/late"])


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def send(method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """What anybody can do who has the URL."""
    answer = urllib3.request(method, url, body=body or None, headers=dict(headers or {}), retries=False, timeout=30)
    return answer.status, answer.data
