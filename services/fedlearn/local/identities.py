"""The identities of one machine: keys and tokens in files, laid out as a cluster's Secrets and projected tokens would be."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from fedlearn.adapters.identity import LocalIssuer
from fedlearn.adapters.keyfiles import load_private_key, make_private_key, save_public_key
from fedlearn.config import IdentitySettings

_TOKEN_SECONDS = 365 * 86400
SERVER_AUDIENCE, AGGREGATOR_AUDIENCE = "fedlearn-server", "fedlearn-aggregator"


@dataclass(frozen=True, slots=True)
class Identities:
    """Files below `directory`; made where they are missing, so that a second start of the same directory goes on."""

    directory: Path

    @property
    def jwks_file(self) -> Path:
        return self.directory / "issuer.jwks.json"

    @property
    def operator_token_file(self) -> Path:
        return self.directory / "operator.token"

    @property
    def aggregator_key_file(self) -> Path:
        return self.directory / "aggregator.key.pem"

    @property
    def aggregator_public_file(self) -> Path:
        return self.directory / "aggregator.pub.pem"

    def prepare(self) -> LocalIssuer:
        """Make what is missing, readable by this user alone."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key_file = self.directory / "issuer.key.pem"
        issuer = LocalIssuer.load(key_file) if key_file.exists() else LocalIssuer.make(key_file)
        self.jwks_file.write_text(json.dumps(issuer.jwks()))
        if not self.operator_token_file.exists():
            _write_secret(self.operator_token_file, secrets.token_urlsafe(32))
        known = self.aggregator_key_file.exists()
        key = load_private_key(self.aggregator_key_file) if known else make_private_key(self.aggregator_key_file)
        save_public_key(self.aggregator_public_file, key.public_key())
        return issuer

    def token_file(self, issuer: LocalIssuer, account: str, pod: str, audience: str) -> Path:
        """A fresh token of this pod for one audience."""
        path = self.directory / f"{pod}.{audience}.token"
        _write_secret(path, issuer.mint(account, pod, audience, _TOKEN_SECONDS))
        return path

    def settings(self) -> IdentitySettings:
        """How the services of this machine check tokens."""
        return IdentitySettings(mode="jwks", jwks=str(self.jwks_file), issuer=LocalIssuer.ISSUER)


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
