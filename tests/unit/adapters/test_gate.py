import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import Request

from fedlearn.adapters.gate import make_gate, operator_gate
from fedlearn.adapters.identity import Caller, LocalIssuer
from fedlearn.config import IdentitySettings, LimitSettings
from fedlearn.core.errors import Code, Outage, Refusal

FROM_DEVICE = Request({"type": "http", "client": ("10.0.0.7", 40000)})
ISSUER = LocalIssuer(Ed25519PrivateKey.generate())
AUDIENCE = "fedlearn-server"


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(ISSUER.jwks()))
    return path


def bearer(account: str = "fedlearn-device", *, issuer: LocalIssuer = ISSUER, audience: str = AUDIENCE) -> str:
    return f"Bearer {issuer.mint(account, 'fedlearn-device-0', audience, 3600)}"


async def admit(settings: IdentitySettings, authorization: str | None) -> Caller:
    check: Any = make_gate(settings, AUDIENCE).admit(settings.device)
    caller = await check(FROM_DEVICE, authorization)
    assert isinstance(caller, Caller)
    return caller


async def test_the_role_s_account_comes_in_as_its_pod(jwks: Path) -> None:
    caller = await admit(IdentitySettings(mode="jwks", jwks=str(jwks)), bearer())
    assert (caller.service_account, caller.pod) == ("fedlearn-device", "fedlearn-device-0")


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (bearer("fedlearn-evaluator"), Code.FORBIDDEN),
        (bearer(issuer=LocalIssuer(Ed25519PrivateKey.generate())), Code.UNAUTHENTICATED),
        (bearer(audience="fedlearn-aggregator"), Code.UNAUTHENTICATED),
        (None, Code.UNAUTHENTICATED),
        (bearer().replace("Bearer", "Basic"), Code.UNAUTHENTICATED),
    ],
    ids=["another role", "another issuer", "another audience", "no token", "another scheme"],
)
async def test_nobody_else_does(jwks: Path, authorization: str | None, code: Code) -> None:
    with pytest.raises(Refusal) as refusal:
        await admit(IdentitySettings(mode="jwks", jwks=str(jwks)), authorization)
    assert refusal.value.code is code


async def test_an_account_of_that_name_in_another_namespace_does_not(jwks: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        await admit(IdentitySettings(mode="jwks", jwks=str(jwks), namespace="elsewhere"), bearer())
    assert refusal.value.code is Code.FORBIDDEN


async def test_a_pod_that_calls_too_often_has_to_wait_and_others_have_not(jwks: Path) -> None:
    settings = IdentitySettings(mode="jwks", jwks=str(jwks))
    check: Any = make_gate(settings, AUDIENCE, LimitSettings(requests_per_second=1)).admit(settings.device)
    for _ in range(25):
        await check(FROM_DEVICE, bearer())
    with pytest.raises(Outage) as refused:
        await check(FROM_DEVICE, bearer())
    assert refused.value.code is Code.TOO_MANY_REQUESTS
    await check(FROM_DEVICE, f"Bearer {ISSUER.mint('fedlearn-device', 'fedlearn-device-1', AUDIENCE, 3600)}")


async def test_an_address_of_many_wrong_tokens_is_not_listened_to_but_where_the_token_is_known(jwks: Path) -> None:
    settings = IdentitySettings(mode="jwks", jwks=str(jwks))
    gate = make_gate(settings, AUDIENCE, LimitSettings(failures_per_second=1))
    check: Any = gate.admit(settings.device)
    known = bearer()
    await check(FROM_DEVICE, known)
    for number in range(25):
        with pytest.raises(Refusal):
            await check(FROM_DEVICE, f"Bearer wrong-{number}")
    with pytest.raises(Outage) as refused:
        await check(FROM_DEVICE, bearer())
    assert refused.value.code is Code.TOO_MANY_REQUESTS
    await check(FROM_DEVICE, known)
    await check(Request({"type": "http", "client": ("10.0.0.8", 40000)}), bearer())
    check_operator: Any = operator_gate(lambda: "secret", gate.rates)
    with pytest.raises(Outage):
        await check_operator(FROM_DEVICE, "Bearer guess")


class TestKeysOfACluster:
    """They lie behind TLS of the cluster's own CA, and want a token."""

    @pytest.fixture
    def cluster(self, tmp_path: Path) -> Iterator[tuple[str, Path]]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.headers.get("Authorization") == "Bearer of-this-pod"
                self.send_response(200 if known else 403)
                self.end_headers()
                self.wfile.write(json.dumps(ISSUER.jwks()).encode())

            def log_message(self, *_: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_certificate(tmp_path))
        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield f"https://127.0.0.1:{server.server_port}/openid/v1/jwks", tmp_path / "tls.pem"
            server.shutdown()
            thread.join()

    async def test_are_read_with_its_ca_and_this_pod_s_token(self, cluster: tuple[str, Path], tmp_path: Path) -> None:
        url, ca = cluster
        token = tmp_path / "token"
        token.write_text("of-this-pod\n")
        assert await admit(IdentitySettings(mode="jwks", jwks=url, jwks_ca_file=ca, jwks_token_file=token), bearer())

    @pytest.mark.parametrize("lacking", ["jwks_ca_file", "jwks_token_file"])
    async def test_are_not_to_be_had_without(self, cluster: tuple[str, Path], tmp_path: Path, lacking: str) -> None:
        url, ca = cluster
        token = tmp_path / "token"
        token.write_text("of-this-pod\n")
        given = {"jwks_ca_file": ca, "jwks_token_file": token, lacking: None}
        with pytest.raises(Outage) as outage:
            await admit(IdentitySettings(mode="jwks", jwks=url, **given), bearer())
        assert outage.value.code is Code.IDENTITY_UNAVAILABLE


def _certificate(directory: Path) -> Path:
    """A certificate that signs itself for 127.0.0.1, and its key, in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(minutes=9))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = directory / "tls.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + secret)
    return path
