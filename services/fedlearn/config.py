"""Typed settings of the services, from `FEDLEARN_*` environment variables (nested groups by `__`), checked at boot.

`FEDLEARN_STORAGE__ENDPOINT_URL` is `storage.endpoint_url`, and so on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fedlearn.core.errors import Code, SetupError
from fedlearn.core.faults import describe
from fedlearn.core.ids import MAX_AGGREGATORS

Port = Annotated[int, Field(ge=0, le=65535)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageSettings(_Group):
    """An S3-compatible object storage, seen with one role's credential."""

    endpoint_url: str | None = Field(None, description="Its address for this service; none for AWS' own.")
    public_endpoint_url: str | None = Field(
        None, description="Its address as devices reach it, since a signature covers the host. Default: endpoint_url."
    )
    region: str = Field("us-east-1", description="The region that signatures name.")
    access_key: str | None = Field(None, description="This role's access key; none to use the machine's own (IRSA).")
    secret_key: SecretStr | None = Field(None, description="This role's secret key.")
    models_bucket: str = Field("fedlearn-models", description="Holds plans, model versions and server-optimizer state.")
    updates_bucket: str = Field("fedlearn-updates", description="Holds sealed updates of running rounds.")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key go together")
        return self

    @property
    def renews(self) -> bool:
        """Whether the credential is renewed now and then, so that to sign may take a call over the network."""
        return self.access_key is None


class IdentitySettings(_Group):
    """How callers' tokens are checked, and which service accounts play which role."""

    mode: Literal["token_review", "jwks"] = Field(
        "token_review",
        description="token_review: by the cluster (a ClusterRole lets this service ask). jwks: by the issuer's public keys.",
    )
    jwks: str | None = Field(None, description="With jwks: where the issuer's public keys are, a file or an http(s) URL.")
    jwks_ca_file: Path | None = Field(None, description="The CA of that URL's server, where the system's don't know it.")
    jwks_token_file: Path | None = Field(None, description="The token to show at that URL; Kubernetes' own wants one.")
    issuer: str | None = Field(None, description="With jwks: what `iss` must be; none to accept any issuer of these keys.")
    namespace: str = Field("fedlearn", description="The namespace that all callers live in.")
    server: str = Field("fedlearn-server", description="The server's service account.")
    aggregator: str = Field("fedlearn-aggregator", description="The aggregator's service account.")
    device: str = Field("fedlearn-device", description="The devices' service account.")
    evaluator: str = Field("fedlearn-evaluator", description="The evaluator's service account.")

    @model_validator(mode="after")
    def _keys_where_they_are_used(self) -> Self:
        if (self.mode == "jwks") != (self.jwks is not None):
            raise ValueError("mode jwks wants jwks, the place of the issuer's keys, and no other mode does")
        return self


class ClusterSettings(_Group):
    """The Kubernetes cluster around the server: it watches the device pods there, and tells how rounds end."""

    enabled: bool = Field(False, description="Whether it does; its account then needs a Role. Rounds run without it as well.")
    namespace: str = Field("fedlearn", min_length=1, description="The namespace of the server's and the device pods.")
    device_selector: str = Field(
        "app.kubernetes.io/component=device", min_length=1, description="The labels that tell this release's device pods."
    )
    statefulset: str = Field("fedlearn-device", min_length=1, description="The devices' StatefulSet, which Events name.")
    pod_name: str | None = Field(None, description="With enabled: the server's own pod, which Events are of.")
    pod_uid: str | None = Field(None, description="With enabled: that pod's UID.")

    @model_validator(mode="after")
    def _knows_its_pod(self) -> Self:
        if self.enabled and not (self.pod_name and self.pod_uid):
            raise ValueError("enabled wants pod_name and pod_uid: set them by the downward API")
        return self


class ReplicaSettings(_Group):
    """This server as one of several on one PostgreSQL, of which one leads the rounds. With SQLite there is one server."""

    address: str | None = Field(
        None, description="How the other servers reach this one. Default: http://host:port, for 0.0.0.0 with its own address."
    )
    lease: str | None = Field(
        None, min_length=1, description="The Kubernetes Lease that the leader holds; none: an advisory lock of PostgreSQL."
    )
    lease_seconds: int = Field(8, ge=3, le=60, description="A leader that is silent for so long is replaced.")


class LimitSettings(_Group):
    """What callers may ask of a service. Health, readiness and metrics are always answered."""

    body_bytes: int = Field(8 * 1024 * 1024, ge=65536, le=1 << 30, description="The longest body; longer: `body_too_large`.")
    open_requests: int = Field(
        20_000, ge=16, le=1_000_000, description="Requests at once, held check-ins among them; one more: `busy`."
    )
    requests_per_second: float = Field(
        200.0, ge=1, le=100_000, description="Of a pod, or of an address on routes open to all; more: `too_many_requests`."
    )
    failures_per_second: float = Field(
        10.0, ge=1, le=100_000, description="Wrong tokens from one address; more: `too_many_requests`, right ones too."
    )
    arrival_seconds: float = Field(
        60.0, ge=1, le=600, description="Until a request must have come whole; its connection is closed then."
    )


def addresses(text: str) -> list[str]:
    """The addresses in a setting that may hold several, by commas."""
    return [address for part in text.split(",") if (address := part.strip().rstrip("/"))]


class _Service(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FEDLEARN_", env_nested_delimiter="__", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="The address to listen on.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least level that is logged.")
    limits: LimitSettings = LimitSettings()


class ServerSettings(_Service):
    """The main server."""

    port: Port = Field(8000, description="The port to listen on.")
    database_url: str = Field("sqlite:///fedlearn.db", description="SQLite (WAL) or postgresql+psycopg://…")
    storage: StorageSettings = Field(description="With the server's credential: it reads models and nothing else.")
    identity: IdentitySettings
    cluster: ClusterSettings = ClusterSettings()
    replica: ReplicaSettings = ReplicaSettings()
    aggregator_url: str = Field(
        "http://127.0.0.1:8003",
        description="The aggregator's address; where several share rounds, all of them by commas, number 0 first.",
    )
    aggregator_token_file: Path = Field(description="This server's token for the aggregator (audience fedlearn-aggregator).")
    operator_token_file: Path = Field(description="The bearer token of operators; it changes tasks.")
    ticket_grace_seconds: float = Field(60.0, ge=0, le=3600, description="How long a ticket outlives its round's deadline.")
    manual: bool = Field(False, description="Commit at `/send_model_clients`, for the walk-through: anybody may call it.")
    show_labels: bool = Field(False, description="Whether the console shows how many examples of each label a device holds.")
    max_checkin_seconds: float = Field(60.0, ge=0, le=300, description="The longest that a check-in is held.")
    max_checkins_per_second: float = Field(
        200.0, ge=1, le=100_000, description="A large fleet is told to come back this often."
    )
    max_away_seconds: float = Field(900.0, ge=1, le=86400, description="The longest that a device is told to stay away.")

    @model_validator(mode="after")
    def _lease_where_there_are_several(self) -> Self:
        if self.replica.lease is not None and self.database_url.startswith("sqlite"):
            raise ValueError("replica.lease wants a PostgreSQL database_url: SQLite has one server")
        if self.replica.lease is not None and not self.cluster.pod_name:
            raise ValueError("replica.lease wants cluster.pod_name: set it by the downward API")
        return self


class AggregatorSettings(_Service):
    """The secure aggregator."""

    port: Port = Field(8003, description="The port to listen on.")
    storage: StorageSettings = Field(description="With the aggregator's credential: it reads and writes both buckets.")
    identity: IdentitySettings
    server_url: str = Field("http://127.0.0.1:8000", description="The server's address.")
    server_token_file: Path = Field(description="This aggregator's token for the server (audience fedlearn-server).")
    identity_key_file: Path = Field(description="Its Ed25519 identity (PEM): it signs and wraps every round's sealing key.")
    min_cohort: int = Field(2, ge=1, le=100_000, description="It publishes no aggregate of fewer distinct devices.")
    upload_seconds: int = Field(900, ge=10, le=86400, description="How long a signed upload URL is valid.")
    manual: bool = Field(
        False, description="Fold at `/aggregate_models`, report at `/send_model_secagg`: the walk-through, open to anybody."
    )
    workers: int = Field(4, ge=1, le=64, description="Updates that are fetched and opened at once.")
    save_every: int = Field(
        100,
        ge=1,
        le=100_000,
        description="After more updates than this their sum goes to storage, sealed, and they are deleted; "
        "about as many more may be under way.",
    )
    number: int = Field(
        0,
        ge=0,
        lt=MAX_AGGREGATORS,
        description="Which one this is, from 0, where several share rounds; 0 publishes the models.",
    )


class DeviceSettings(_Service):
    """A process that hosts one device or several."""

    port: Port = Field(8001, description="The port of its health, readiness and metrics.")
    server_url: str = Field("http://127.0.0.1:8000", description="The server's address.")
    server_token_file: Path = Field(description="Its token for the server (audience fedlearn-server).")
    aggregator_url: str = Field(
        "http://127.0.0.1:8003", description="As the server's setting of this name, and never taken from the server."
    )
    aggregator_token_file: Path = Field(description="Its token for the aggregator (audience fedlearn-aggregator).")
    aggregator_identity_file: Path = Field(description="The aggregator's public identity key (PEM).")
    dataset: str = Field("mnist", min_length=1, description="What its shards are of; a task of another dataset passes it by.")
    shards: Path | None = Field(
        None, description="A shard's directory, or with `count` a directory of directories 0, 1, …; this or `loader`."
    )
    loader: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="In place of `shards`: `package.module:function`, called with `first_shard` + slot; see docs/data.md.",
    )
    feature_columns: str = Field(
        "x", min_length=1, description="In Parquet shards: the column of features, or several of one number each, by commas."
    )
    label_column: str = Field("y", min_length=1, description="In Parquet shards: the column of labels.")
    classes: int | None = Field(
        None, ge=1, le=1_000_000, description="How many classes the labels number, from 0; a shard with others is refused."
    )
    count: int | None = Field(None, ge=1, le=4096, description="How many devices it hosts; none for one, without slots.")
    first_shard: int = Field(
        0, ge=0, description="With `count`: the name of the first device's directory; with `loader`: its number."
    )
    learner: Literal["keras", "synthetic"] = Field("keras", description="synthetic: random deltas, for load and chaos.")
    synthetic_seconds: float = Field(0.0, ge=0, le=3600, description="How long the synthetic learner lets a training last.")
    seed: int = Field(0, ge=0, lt=2**32, description="Makes local training repeatable.")
    state: Path | None = Field(
        None,
        description="A directory of its own for what it needs in later rounds, such as what `top_k` has not sent yet; none: "
        "until the process ends.",
    )
    manual: bool = Field(
        False, description="Train at `/modeltrain` and so on, for the walk-through: anybody may call it. Without `count`."
    )
    conditions_file: Path | None = Field(
        None,
        description="JSON with idle, charging, unmetered, kept current by whoever watches the machine; none: always all three.",
    )
    tells_labels: bool = Field(False, description="Whether it tells the server how many examples of each label it holds.")
    checkin_seconds: float = Field(30.0, gt=0, le=300, description="How long one check-in may be held.")

    @model_validator(mode="after")
    def _one_device_by_hand(self) -> Self:
        if self.manual and self.count is not None:
            raise ValueError("manual wants a process for each device: leave count out")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.shards is None) == (self.loader is None):
            raise ValueError("give shards, a directory, or loader, a function: one of them")
        return self


class EvaluatorSettings(_Service):
    """What scores each version on the test set."""

    port: Port = Field(8004, description="The port of its health, readiness and metrics.")
    server_url: str = Field("http://127.0.0.1:8000", description="The server's address.")
    server_token_file: Path = Field(description="Its token for the server (audience fedlearn-server).")
    dataset: str = Field("mnist", description="The test set.")
    data_dir: Path | None = Field(None, description="A directory with the dataset; none to look where `fedlearn data` does.")
    learner: Literal["keras", "synthetic"] = Field("keras", description="synthetic: made-up figures, for load and chaos.")


class BackupSettings(BaseSettings):
    """What `fedlearn backup` and `fedlearn restore` read and write: the server's database and the models."""

    model_config = SettingsConfigDict(env_prefix="FEDLEARN_", env_nested_delimiter="__", extra="ignore", frozen=True)

    database_url: str = Field(description="The server's database.")
    storage: StorageSettings = Field(description="A credential that reads models, or to restore, writes them.")


Settings = TypeVar("Settings", bound=BaseSettings)


def load(kind: type[Settings], **given: Any) -> Settings:
    """Read a service's settings; `given` values win over the environment's.

    Raises:
        SetupError: `setting_invalid`, naming every faulty setting.
    """
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors())
        raise SetupError(Code.SETTING_INVALID, f"These settings are missing or wrong: {faults}.") from error


def _fault(error: Mapping[str, Any]) -> str:
    told, place = describe(error, _variable), _variable(error["loc"])
    if error["type"] == "missing" and error["loc"] == ("storage",):  # which has several, and none of that name
        return f"{told}: see {place}__… in docs/settings.md"
    return told


def _variable(location: tuple[int | str, ...]) -> str:
    return "FEDLEARN_" + "__".join(str(part) for part in location).upper()
