"""One machine's deployment below a directory: its files, its addresses, and each role's settings as environment variables.

What a Helm chart does in a cluster: the same services read the same settings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlearn.adapters.identity import LocalIssuer
from fedlearn.config import IdentitySettings
from fedlearn.local.identities import AGGREGATOR_AUDIENCE, SERVER_AUDIENCE, Identities

Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Addresses:
    """The ports of this machine that the services listen on."""

    server: int
    aggregator: int
    storage: int
    more_aggregators: tuple[int, ...] = ()

    @property
    def server_url(self) -> str:
        return f"http://127.0.0.1:{self.server}"

    @property
    def aggregator_url(self) -> str:
        return self.aggregator_urls[0]

    @property
    def aggregator_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in (self.aggregator, *self.more_aggregators)]


class Deployment:
    """Makes keys and tokens below `directory`, and settings that point to them.

    Args:
        storage_secrets: access key and secret key of a role (`server`, `aggregator`).
    """

    def __init__(
        self, directory: Path, addresses: Addresses, storage_secrets: Mapping[str, tuple[str, str]], *, log_level: str = "INFO"
    ) -> None:
        self.directory, self.addresses = directory, addresses
        self.identities = Identities(directory / "keys")
        self._issuer: LocalIssuer = self.identities.prepare()
        self._storage_secrets, self._log_level = storage_secrets, log_level

    def server(self) -> Environment:
        files = self.identities
        return {
            **self._common("server", self.addresses.server),
            **self._storage("server"),
            "FEDLEARN_DATABASE_URL": f"sqlite:///{self.directory / 'server.db'}",
            "FEDLEARN_AGGREGATOR_URL": ",".join(self.addresses.aggregator_urls),
            "FEDLEARN_AGGREGATOR_TOKEN_FILE": self._token("fedlearn-server", "server-0", AGGREGATOR_AUDIENCE),
            "FEDLEARN_OPERATOR_TOKEN_FILE": str(files.operator_token_file),
        }

    def aggregator(self, number: int = 0) -> Environment:
        """The settings of the aggregator of this number."""
        ports = (self.addresses.aggregator, *self.addresses.more_aggregators)
        return {
            **self._common("aggregator", ports[number]),
            "FEDLEARN_NUMBER": str(number),
            **self._storage("aggregator"),
            "FEDLEARN_SERVER_URL": self.addresses.server_url,
            "FEDLEARN_SERVER_TOKEN_FILE": self._token("fedlearn-aggregator", f"aggregator-{number}", SERVER_AUDIENCE),
            "FEDLEARN_IDENTITY_KEY_FILE": str(self.identities.aggregator_key_file),
        }

    def device(
        self, index: int, *, port: int, shards: Path, first_shard: int, count: int | None, dataset: str, seed: int
    ) -> Environment:
        """The settings of device process `index`, which hosts `count` devices from `first_shard` on; None: one, no slots."""
        slots = {} if count is None else {"FEDLEARN_FIRST_SHARD": str(first_shard), "FEDLEARN_COUNT": str(count)}
        pod = f"device-{index}"
        return {
            **self._common("device", port),
            "FEDLEARN_SERVER_URL": self.addresses.server_url,
            "FEDLEARN_SERVER_TOKEN_FILE": self._token("fedlearn-device", pod, SERVER_AUDIENCE),
            "FEDLEARN_AGGREGATOR_URL": ",".join(self.addresses.aggregator_urls),
            "FEDLEARN_AGGREGATOR_TOKEN_FILE": self._token("fedlearn-device", pod, AGGREGATOR_AUDIENCE),
            "FEDLEARN_AGGREGATOR_IDENTITY_FILE": str(self.identities.aggregator_public_file),
            "FEDLEARN_SHARDS": str(shards / str(first_shard) if count is None else shards),
            **slots,
            "FEDLEARN_DATASET": dataset,
            "FEDLEARN_SEED": str(seed),
            "FEDLEARN_STATE": str(self.directory / "state"),
        }

    def evaluator(self, *, port: int, dataset: str, data_dir: Path | None) -> Environment:
        return {
            **self._common("evaluator", port),
            "FEDLEARN_SERVER_URL": self.addresses.server_url,
            "FEDLEARN_SERVER_TOKEN_FILE": self._token("fedlearn-evaluator", "evaluator-0", SERVER_AUDIENCE),
            "FEDLEARN_DATASET": dataset,
            **({} if data_dir is None else {"FEDLEARN_DATA_DIR": str(data_dir)}),
        }

    def operator_token(self) -> str:
        return self.identities.operator_token_file.read_text()

    def _common(self, role: str, port: int) -> dict[str, str]:
        identity: IdentitySettings = self.identities.settings()
        return {
            "FEDLEARN_HOST": "127.0.0.1",
            "FEDLEARN_PORT": str(port),
            "FEDLEARN_LOG_LEVEL": self._log_level,
            **({"FEDLEARN_IDENTITY": identity.model_dump_json()} if role in ("server", "aggregator") else {}),
        }

    def _storage(self, role: str) -> dict[str, str]:
        access_key, secret_key = self._storage_secrets[role]
        storage = {
            "endpoint_url": f"http://127.0.0.1:{self.addresses.storage}",
            "access_key": access_key,
            "secret_key": secret_key,
        }
        return {"FEDLEARN_STORAGE": json.dumps(storage)}

    def _token(self, account: str, pod: str, audience: str) -> str:
        return str(self.identities.token_file(self._issuer, account, pod, audience))
