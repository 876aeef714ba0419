"""Which tasks this aggregator serves: a place for the first model of one whose rounds it could publish."""

from fedlearn.aggregator.layout import model_key
from fedlearn.core.errors import Code, Refusal
from fedlearn.core.ids import TaskId
from fedlearn.core.ports import ObjectStore, UploadGrant


class Admission:
    """For one models bucket.

    Args:
        min_cohort: no aggregate of fewer distinct devices is published.
        seconds: how long URLs are valid.
    """

    def __init__(self, models: ObjectStore, min_cohort: int, seconds: int) -> None:
        self._models, self._min_cohort, self._seconds = models, min_cohort, seconds

    def place_model(self, task: TaskId, *, minimum: int, mixed: int, size_bytes: int, sha256: str) -> tuple[str, UploadGrant]:
        """A key and a signed URL for version 0 of a task.

        Args:
            minimum: with how few reports its rounds may close.
            mixed: how many of so few its rule mixes in a result.

        Raises:
            Refusal: `cohort_too_small` for a task whose rounds might close with too few to be published.
        """
        least = self._min_cohort
        if minimum < least:
            raise Refusal(
                Code.COHORT_TOO_SMALL,
                f"By the policy's goal and its min_fraction a round may close with {minimum}, fewer than the aggregator's "
                f"min_cohort, {least}: raise one of them, so that goal times min_fraction is {least} or more.",
            )
        if mixed < least:
            raise Refusal(
                Code.COHORT_TOO_SMALL,
                f"The task's rule mixes {mixed} of the {minimum} updates with which a round may close, fewer than the "
                f"aggregator's min_cohort, {least}: take another rule, or multi_krum with a keep of {least} or more and a goal "
                "and a min_fraction that have room for it.",
            )
        key = model_key(task, 0, sha256)
        return key, self._models.sign_put(key, size_bytes=size_bytes, sha256=sha256, seconds=self._seconds)
