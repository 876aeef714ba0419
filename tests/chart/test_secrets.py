"""Secrets: made right, kept apart, and never where they do not belong."""

import base64
import json
import tomllib
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from helm_python import HelmError

from fedlearn.local import seaweed
from support.chart import Rendered, render, values


def content(rendered: Rendered, secret: str) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in rendered.of("Secret")[secret]["data"].items()}


class TestWhoReadsWhat:
    def test_by_default(self, default: Rendered) -> None:
        assert {name: pod.secrets for name, pod in default.pods.items()} == {
            "server": {"fedlearn-operator", "fedlearn-storage-server"},
            "aggregator": {"fedlearn-aggregator-identity", "fedlearn-storage-aggregator"},
            "storage": {"fedlearn-storage"},
            "task": {"fedlearn-operator"},
            "device": set(),
            "evaluator": set(),
            "test": set(),
        }

    def test_with_secrets_of_the_user_s_own(self) -> None:
        rendered = render(values("existing-secrets"))
        assert not rendered.of("Secret")
        assert {name: pod.secrets for name, pod in rendered.pods.items() if pod.secrets} == {
            "server": {"my-operator", "my-storage-server", "my-database"},
            "aggregator": {"my-identity", "my-storage-aggregator"},
            "storage": {"my-storage"},
            "task": {"my-operator"},
        }

    def test_with_a_cloud_s_own_identities_there_is_no_credential(self) -> None:
        rendered = render(values("aws"))
        assert rendered.pods["aggregator"].secrets == {"fedlearn-aggregator-identity"}
        assert rendered.pods["server"].secrets == {"fedlearn-operator", "rds"}
        assert not any(name.startswith("fedlearn-storage") for name in rendered.of("Secret"))
        assert "FEDLEARN_STORAGE__ENDPOINT_URL" not in rendered.environment("server")

    def test_every_secret_that_is_read_is_there_or_was_named(self, every: Rendered) -> None:
        named = set(every.of("Secret")) | {"my-operator", "my-storage-server", "my-database", "my-identity", "rds"}
        named |= {"my-storage-aggregator", "my-storage", "operators", "postgresql", "s3-server", "s3-aggregator"}
        named |= {"aggregator-identity"}
        for pod in every.pods.values():
            assert pod.secrets <= named

    def test_no_secret_stands_in_the_clear(self) -> None:
        rendered = render(values("keys"))
        clear = json.dumps([m for m in rendered.manifests if m["kind"] != "Secret"]) + rendered.notes
        for secret in (
            "server-key",
            "server-secret",
            "aggregator-secret",
            "operator-token",
            "password",
            "MC4CAQAwBQYDK2VwBCIE",
        ):
            assert secret in json.dumps(values("keys"))
            assert secret not in clear


class TestWhatIsMade:
    def test_is_given_by_values_first(self) -> None:
        rendered = render(values("keys"))
        assert content(rendered, "fedlearn-operator") == {"token": "operator-token"}
        assert content(rendered, "fedlearn-storage-server") == {"access_key": "server-key", "secret_key": "server-secret"}
        assert content(rendered, "fedlearn-database")["url"].startswith("postgresql+psycopg://")

    def test_is_long_and_new_each_time(self) -> None:
        made = [render() for _ in range(2)]
        for secret, key in [("operator", "token"), ("storage-server", "secret_key"), ("storage-aggregator", "secret_key")]:
            first, second = (content(rendered, f"fedlearn-{secret}")[key] for rendered in made)
            assert len(first) >= 40
            assert first != second

    def test_is_made_once_a_rendering(self, default: Rendered) -> None:
        """The store's list of identities and the roles' own Secrets are two templates that speak of the same keys."""
        identities = json.loads(content(default, "fedlearn-storage")["identities.json"])["identities"]
        listed = {i["name"]: i["credentials"][0] for i in identities}
        for role in ("server", "aggregator"):
            own = content(default, f"fedlearn-storage-{role}")
            assert listed[role] == {"accessKey": own["access_key"], "secretKey": own["secret_key"]}


class TestTheAggregatorSIdentity:
    def test_devices_know_it_by_its_public_half(self) -> None:
        for _ in range(20):  # bytes of any value may surround what the template looks for
            rendered = render()
            key = serialization.load_pem_private_key(
                content(rendered, "fedlearn-aggregator-identity")["private.pem"].encode(), None
            )
            public = rendered.of("ConfigMap")["fedlearn-aggregator-identity"]["data"]["public.pem"].encode()
            assert isinstance(key, Ed25519PrivateKey)
            assert serialization.load_pem_public_key(public) == key.public_key()

    def test_it_may_be_given(self) -> None:
        rendered = render(values("keys"))
        public = rendered.of("ConfigMap")["fedlearn-aggregator-identity"]["data"]["public.pem"]
        assert public.strip() == values("existing-secrets")["aggregator"]["identity"]["publicKey"].strip()

    @pytest.mark.parametrize(
        "pem",
        [
            "-----BEGIN EC PRIVATE KEY-----\n"
            "MHcCAQEEIPM8Z8aIhd3WfAfqgm+WJ+awzHuescFGLfHK+Db6z/bU7oAoGCCqGSM49\n"
            "AwEHoUQDQgAEwxZqezWXNf4jpslrTO9TLoJ8EGVC2/C5sqssFGb6pgL+DUtZ7EZC\n0f6AQ0MAdDUaMDw0ImtfmUZ3J/blf4yxkQ==\n"
            "-----END EC PRIVATE KEY-----\n",
            "nonsense",
        ],
        ids=["of another kind", "no key"],
    )
    def test_another_key_is_refused(self, pem: str) -> None:
        with pytest.raises(HelmError):
            render({"aggregator": {"identity": {"privateKey": pem}}})


class TestTheStore:
    def test_its_certificate_is_good_for_both_ends_on_the_loopback_interface(self, default: Rendered) -> None:
        made = content(default, "fedlearn-storage")
        authority, node = (x509.load_pem_x509_certificate(made[name].encode()) for name in ("ca.pem", "node.pem"))
        node.verify_directly_issued_by(authority)
        usages = node.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert {usage._name for usage in usages} == {"serverAuth", "clientAuth"}
        names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(name) for name in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
        assert (node.not_valid_after_utc - datetime.now(UTC)).days > 3600
        key = serialization.load_pem_private_key(made["node-key.pem"].encode(), None)
        assert key.public_key() == node.public_key()

    def test_nobody_can_sign_another(self, default: Rendered) -> None:
        made = content(default, "fedlearn-storage")
        authority = x509.load_pem_x509_certificate(made["ca.pem"].encode())
        keys = [serialization.load_pem_private_key(made[name].encode(), None) for name in made if "key" in name]
        assert [key.public_key() for key in keys if key.public_key() == authority.public_key()] == []

    def test_it_is_secured_as_the_embedded_one_is(self, default: Rendered, tmp_path: object) -> None:
        ours = tomllib.loads(content(default, "fedlearn-storage")["security.toml"])
        theirs = tomllib.loads(seaweed.security(seaweed.Path("/etc/seaweedfs")))
        keys = [ours["jwt"][a]["key"] for a in ("signing", "filer_signing")]
        keys += [ours["jwt"][a]["read"]["key"] for a in ("signing", "filer_signing")]
        assert len(set(keys)) == 4
        assert min(map(len, keys)) >= 32
        del ours["jwt"], theirs["jwt"]
        assert ours == theirs

    def test_its_roles_may_do_what_those_of_the_embedded_one_may(self, default: Rendered) -> None:
        identities = json.loads(content(default, "fedlearn-storage")["identities.json"])["identities"]
        embedded = json.loads(seaweed.identities(seaweed.make_keys()))["identities"]
        rights = {i["name"]: sorted(i["actions"]) for i in identities}
        assert rights == {i["name"]: sorted(i["actions"]) for i in embedded if i["name"] != "administrator"}

    def test_it_is_started_as_the_embedded_one_is(self, default: Rendered) -> None:
        ports = seaweed.Ports(8333, 18333, 9333, 19333, 8080, 18080, 8888, 18888)
        theirs = set(seaweed.flags(seaweed.Path("/x"), ports))
        ours = set(default.pods["storage"].main["args"])
        assert {flag.partition("=")[0] for flag in ours} == {flag.partition("=")[0] for flag in theirs}
        # where its files are, and that other pods may knock at the one port
        assert {flag.partition("=")[0] for flag in ours ^ theirs} == {
            "-dir", "-master.dir", "-s3.config", "-s3.ip.bind", "-s3.localSocket", "-filer.localSocket",
        }  # fmt: skip
        assert [flag for flag in ours if flag.endswith("=0.0.0.0")] == ["-s3.ip.bind=0.0.0.0"]

    def test_its_buckets_are_those_that_the_services_use(self) -> None:
        rendered = render({"objectStore": {"buckets": {"models": "some-models", "updates": "some-updates"}}})
        made = rendered.pods["storage"].main["lifecycle"]["postStart"]["exec"]["command"][-2:]
        used = [rendered.environment("server")[f"FEDLEARN_STORAGE__{kind}_BUCKET"] for kind in ("MODELS", "UPDATES")]
        assert made == used == ["some-models", "some-updates"]
