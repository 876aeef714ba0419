"""The one catalogue of problems: code -> HTTP status and the sentence that says what to do (RFC 9457)."""

from typing import NamedTuple

from pydantic import BaseModel

from fedlearn.core.errors import Code, FedlearnError, Outage, Refusal

MEDIA_TYPE = "application/problem+json"


class Entry(NamedTuple):
    status: int
    title: str


CATALOGUE: dict[Code, Entry] = {
    Code.BAD_REQUEST: Entry(422, "The request is not as documented: compare it with /docs."),
    Code.NOT_FOUND: Entry(404, "There is no such thing here: check the address."),
    Code.METHOD_NOT_ALLOWED: Entry(405, "This address does not take that method: see /docs."),
    Code.BODY_TOO_LARGE: Entry(413, "The body is larger than this route takes."),
    Code.TOO_MANY_REQUESTS: Entry(429, "This caller asks too often: wait a moment."),
    Code.BUSY: Entry(503, "The service has as much in hand as it may: try again in a moment."),
    Code.INTERNAL: Entry(500, "The service failed in a way it did not foresee: its log says more."),
    Code.UNAUTHENTICATED: Entry(401, "Send a valid token of this audience as 'Authorization: Bearer'."),
    Code.FORBIDDEN: Entry(403, "This identity may not do that."),
    Code.DEVICE_REPLACED: Entry(403, "A newer pod of this name has taken this device's place."),
    Code.TICKET_INVALID: Entry(403, "The ticket is not one of this server's: check in again."),
    Code.TICKET_EXPIRED: Entry(403, "The ticket has expired: check in again."),
    Code.TICKET_FOREIGN: Entry(403, "The ticket is for another device or another round."),
    Code.SEALING_KEY_UNTRUSTED: Entry(403, "The sealing key is not signed by the configured aggregator: seal nothing to it."),
    Code.PLAN_INVALID: Entry(422, "The plan is refused: mend what the detail names."),
    Code.TASK_FILE_INVALID: Entry(422, "The file defines no task: it needs a function task() that returns a fedlearn.Task."),
    Code.LAYER_NOT_ALLOWED: Entry(422, "The model has a layer that may not travel in a plan: use Keras' own layers."),
    Code.LOSS_NOT_ALLOWED: Entry(422, "The loss is not one of Keras' own: compile the model with one of those."),
    Code.METRIC_NOT_ALLOWED: Entry(422, "The metric is no mean over examples that Keras knows by name."),
    Code.OPTIMIZER_NOT_ALLOWED: Entry(422, "Devices don't have this optimizer, or not with these settings."),
    Code.MODEL_TOO_LARGE: Entry(422, "The model has more parameters than a plan may have."),
    Code.TASK_UNKNOWN: Entry(404, "There is no task of this name."),
    Code.TASK_EXISTS: Entry(409, "A task of this name exists: choose another name."),
    Code.TASK_STATE: Entry(409, "The task's state does not allow that."),
    Code.MODEL_UNKNOWN: Entry(404, "There is no such model version."),
    Code.MODEL_MISSING: Entry(409, "The model's file is not in object storage: upload it first."),
    Code.MODEL_MISMATCH: Entry(422, "The model's file does not fit the plan or its digest."),
    Code.BASE_SUPERSEDED: Entry(409, "The task has moved on to another model since the round began."),
    Code.ROUND_UNKNOWN: Entry(404, "There is no such round."),
    Code.ROUND_CLOSED: Entry(409, "The round has closed."),
    Code.ROUND_CONFLICT: Entry(409, "Another writer was first: read again."),
    Code.NOT_SELECTED: Entry(403, "This device is not in this round."),
    Code.TOO_FEW_DEVICES: Entry(409, "Too few devices checked in before the selection timeout."),
    Code.TOO_FEW_REPORTS: Entry(409, "Too few devices reported before the deadline."),
    Code.COHORT_TOO_SMALL: Entry(409, "Fewer distinct devices than the aggregator's min_cohort: nothing is published."),
    Code.TOO_FEW_FOR_RULE: Entry(409, "The task's aggregation rule needs more updates than were counted."),
    Code.TOO_MANY_FOR_RULE: Entry(409, "More updates were counted than the task's aggregation rule takes."),
    Code.AGGREGATE_NOT_FINITE: Entry(409, "The next model would hold NaN or infinity: nothing is published."),
    Code.AGGREGATOR_KEY_LOST: Entry(410, "The round's sealing key is lost, so its updates can't be opened."),
    Code.PARTIAL_SUM_DAMAGED: Entry(410, "The sums that the aggregator keeps on its way do not fit together."),
    Code.AGGREGATOR_UNREACHABLE: Entry(503, "The aggregator does not answer: try again later."),
    Code.AGGREGATION_TIMEOUT: Entry(504, "The aggregator did not publish in time."),
    Code.TASK_CANCELLED: Entry(409, "The task was cancelled."),
    Code.STEP_OUT_OF_ORDER: Entry(409, "This step of the walk-through is not the next one: take what the detail names first."),
    Code.UPDATE_LATE: Entry(409, "The round no longer takes updates: this one is dropped."),
    Code.UPDATE_REPEATED: Entry(409, "This device's update is counted already: the first one stays."),
    Code.UPDATE_FOREIGN: Entry(403, "The update is of a device or a round that it was not made for."),
    Code.UPDATE_MISSING: Entry(404, "The update is not in object storage: upload it first."),
    Code.UPDATE_TOO_LARGE: Entry(413, "The update is larger than its plan allows."),
    Code.UPDATE_MALFORMED: Entry(422, "The update is no envelope of version 1."),
    Code.UPDATE_TAMPERED: Entry(422, "The update's seal does not open: wrong key, context or bytes."),
    Code.UPDATE_DIGEST: Entry(422, "The stored bytes do not have the promised digest."),
    Code.UPDATE_SHAPE: Entry(422, "The update does not have the plan's shape."),
    Code.UPDATE_DTYPE: Entry(422, "The update does not have the plan's encoding or dtype."),
    Code.UPDATE_NOT_FINITE: Entry(422, "The update holds NaN or infinity."),
    Code.UPDATE_EXAMPLES: Entry(422, "The number of examples is out of the plan's bounds."),
    Code.UPDATE_BASE: Entry(422, "The update was made from another model than the round's."),
    Code.SHARD_INVALID: Entry(422, "The device's shard can't be used."),
    Code.TRAINING_FAILED: Entry(422, "Training gave no finite weights: try a smaller learning rate."),
    Code.NOT_ELIGIBLE: Entry(409, "The device does not meet what the task demands any more."),
    Code.DEVICE_STOPPING: Entry(409, "The device is being stopped."),
    Code.STORAGE_UNAVAILABLE: Entry(503, "The object storage does not answer: try again later."),
    Code.STORAGE_DENIED: Entry(502, "The object storage refuses this service's credential: check its Secret and policy."),
    Code.DATABASE_UNAVAILABLE: Entry(503, "The database does not answer: try again later."),
    Code.SERVER_UNREACHABLE: Entry(503, "The server does not answer: check its address, and whether it runs."),
    Code.NOT_LEADER: Entry(503, "Another replica of the server leads the rounds: try again later."),
    Code.TOO_MANY_PAGES: Entry(503, "Too many pages follow this server: close some of them."),
    Code.IDENTITY_UNAVAILABLE: Entry(503, "Tokens can't be checked now: see whether what checks them can be reached."),
    Code.CLUSTER_UNAVAILABLE: Entry(503, "The Kubernetes API does not answer: try again later."),
    Code.CLUSTER_DENIED: Entry(502, "The Kubernetes API refuses this: check the Role of the one who asks."),
    Code.SETTING_INVALID: Entry(500, "A setting is not valid."),
    Code.PORT_BUSY: Entry(500, "A port is taken: stop what holds it or choose another."),
    Code.DISK_FULL: Entry(507, "The disk is full: make room."),
    Code.DATA_MISSING: Entry(500, "The dataset is not on this machine: fetch it first."),
    Code.DATA_CORRUPT: Entry(500, "The dataset's files are damaged: delete them and fetch them again."),
    Code.BACKUP_REFUSED: Entry(409, "The backup can't be restored there, or is none."),
    Code.STORAGE_FAILED: Entry(500, "The embedded object storage did not start."),
    Code.SERVICE_FAILED: Entry(500, "A service of this run has ended by itself."),
}  # fmt: skip


class Problem(BaseModel):
    """The body of every answer that is no success."""

    type: str = "about:blank"
    title: str
    status: int
    code: Code
    detail: str


def problem_of(error: FedlearnError) -> Problem:
    entry = CATALOGUE[error.code]
    return Problem(
        type=f"urn:fedlearn:problem:{error.code}", title=entry.title, status=entry.status, code=error.code, detail=error.detail
    )


def error_of(problem: Problem) -> FedlearnError:
    """The error that an answer stands for, at the caller's side: 429 and statuses from 500 on are outages, others refusals."""
    kind = Outage if problem.status >= 500 or problem.status == CATALOGUE[Code.TOO_MANY_REQUESTS].status else Refusal
    return kind(problem.code, problem.detail)
