"""The tree of errors and their stable codes.

A `Refusal` is a decision of the domain: the same request will be refused again. An `Outage` is a dependency that does not
answer now: the same request may succeed later. What each code means on the wire stands in `protocol/problems.py`.
"""

import errno
from enum import StrEnum


class Code(StrEnum):
    """Every reason that fedlearn gives, to a caller, in a counter's label or as the reason of an abandoned round."""

    # requests
    BAD_REQUEST = "bad_request"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TOO_LARGE = "body_too_large"
    TOO_MANY_REQUESTS = "too_many_requests"
    BUSY = "busy"
    INTERNAL = "internal"
    # identity
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    DEVICE_REPLACED = "device_replaced"
    TICKET_INVALID = "ticket_invalid"
    TICKET_EXPIRED = "ticket_expired"
    TICKET_FOREIGN = "ticket_foreign"
    SEALING_KEY_UNTRUSTED = "sealing_key_untrusted"
    # tasks and models
    PLAN_INVALID = "plan_invalid"
    TASK_FILE_INVALID = "task_file_invalid"
    LAYER_NOT_ALLOWED = "layer_not_allowed"
    LOSS_NOT_ALLOWED = "loss_not_allowed"
    METRIC_NOT_ALLOWED = "metric_not_allowed"
    OPTIMIZER_NOT_ALLOWED = "optimizer_not_allowed"
    MODEL_TOO_LARGE = "model_too_large"
    TASK_UNKNOWN = "task_unknown"
    TASK_EXISTS = "task_exists"
    TASK_STATE = "task_state"
    MODEL_UNKNOWN = "model_unknown"
    MODEL_MISSING = "model_missing"
    MODEL_MISMATCH = "model_mismatch"
    BASE_SUPERSEDED = "base_superseded"
    # rounds
    ROUND_UNKNOWN = "round_unknown"
    ROUND_CLOSED = "round_closed"
    ROUND_CONFLICT = "round_conflict"
    NOT_SELECTED = "not_selected"
    TOO_FEW_DEVICES = "too_few_devices"
    TOO_FEW_REPORTS = "too_few_reports"
    COHORT_TOO_SMALL = "cohort_too_small"
    TOO_FEW_FOR_RULE = "too_few_for_rule"
    TOO_MANY_FOR_RULE = "too_many_for_rule"
    AGGREGATE_NOT_FINITE = "aggregate_not_finite"
    AGGREGATOR_KEY_LOST = "aggregator_key_lost"
    PARTIAL_SUM_DAMAGED = "partial_sum_damaged"
    AGGREGATOR_UNREACHABLE = "aggregator_unreachable"
    AGGREGATION_TIMEOUT = "aggregation_timeout"
    TASK_CANCELLED = "task_cancelled"
    STEP_OUT_OF_ORDER = "step_out_of_order"
    # updates
    UPDATE_LATE = "update_late"
    UPDATE_REPEATED = "update_repeated"
    UPDATE_FOREIGN = "update_foreign"
    UPDATE_MISSING = "update_missing"
    UPDATE_TOO_LARGE = "update_too_large"
    UPDATE_MALFORMED = "update_malformed"
    UPDATE_TAMPERED = "update_tampered"
    UPDATE_DIGEST = "update_digest"
    UPDATE_SHAPE = "update_shape"
    UPDATE_DTYPE = "update_dtype"
    UPDATE_NOT_FINITE = "update_not_finite"
    UPDATE_EXAMPLES = "update_examples"
    UPDATE_BASE = "update_base"
    # devices
    SHARD_INVALID = "shard_invalid"
    TRAINING_FAILED = "training_failed"
    NOT_ELIGIBLE = "not_eligible"
    DEVICE_STOPPING = "device_stopping"
    # outages
    STORAGE_UNAVAILABLE = "storage_unavailable"
    STORAGE_DENIED = "storage_denied"
    DATABASE_UNAVAILABLE = "database_unavailable"
    SERVER_UNREACHABLE = "server_unreachable"
    NOT_LEADER = "not_leader"
    TOO_MANY_PAGES = "too_many_pages"
    IDENTITY_UNAVAILABLE = "identity_unavailable"
    CLUSTER_UNAVAILABLE = "cluster_unavailable"
    CLUSTER_DENIED = "cluster_denied"
    # the launcher and the command line
    SETTING_INVALID = "setting_invalid"
    PORT_BUSY = "port_busy"
    DISK_FULL = "disk_full"
    DATA_MISSING = "data_missing"
    DATA_CORRUPT = "data_corrupt"
    BACKUP_REFUSED = "backup_refused"
    STORAGE_FAILED = "storage_failed"
    SERVICE_FAILED = "service_failed"


class FedlearnError(Exception):
    """The root of the tree.

    Args:
        code: the stable code; what a program decides by.
        detail: one sentence for a person, which says what to do where that is not plain.
    """

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.detail} [{self.code}]"


class Refusal(FedlearnError):
    """A decision: the request is wrong, late, foreign or not allowed, and will be when it is sent again."""


class Outage(FedlearnError):
    """A dependency (storage, database, a service) does not answer now: try again later."""


class SetupError(FedlearnError):
    """Something on this machine is not as it must be: a setting, a port, the disk, the data."""


def unforeseen(error: Exception, service: str) -> Refusal:
    """`internal` for what nobody foresaw, of which it tells the kind alone: the words may hold what devices have sent."""
    return Refusal(Code.INTERNAL, f"{type(error).__name__}: the {service}'s log says more.")


def cannot_write(what: str, error: OSError) -> SetupError:
    """What to raise when `what` could not be written: `disk_full` if that is why, else `setting_invalid`, for its place."""
    code = Code.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else Code.SETTING_INVALID
    return SetupError(code, f"{what} cannot be written: {error.strerror or error}.")
