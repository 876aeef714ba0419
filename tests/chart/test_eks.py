"""What lies beside the chart for Amazon EKS agrees with it, and gives each role no more than the embedded store does."""

import fnmatch
import json
from typing import Any

import pytest
import yaml

from support.chart import CHART, Rendered, render

ROOT = CHART.parents[1]
IAM = ROOT / "docs" / "iam"


@pytest.fixture(scope="module")
def eks() -> Rendered:
    return render(yaml.safe_load((ROOT / "k8s" / "values-eks.yaml").read_text()), namespace="fedlearn")


def may(role: str, action: str, arn: str) -> bool:
    """Whether a role's policy allows an action."""
    statements: list[dict[str, Any]] = json.loads((IAM / f"{role}.json").read_text())["Statement"]
    return any(
        s["Effect"] == "Allow"
        and any(fnmatch.fnmatchcase(action, a) for a in _many(s["Action"]))
        and any(fnmatch.fnmatchcase(arn, r) for r in _many(s["Resource"]))
        for s in statements
    )


def _many(found: str | list[str]) -> list[str]:
    return [found] if isinstance(found, str) else found


def buckets(eks: Rendered) -> tuple[str, str]:
    settings = eks.environment("aggregator")
    return tuple(f"arn:aws:s3:::{settings[f'FEDLEARN_STORAGE__{kind}_BUCKET']}" for kind in ("MODELS", "UPDATES"))  # type: ignore[return-value]


def test_the_server_reads_models_and_nothing_of_an_update(eks: Rendered) -> None:
    models, updates = buckets(eks)
    assert may("server", "s3:GetObject", f"{models}/task/models/1")
    assert not may("server", "s3:PutObject", f"{models}/task/models/1")
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert not may("server", action, f"{updates}/task/1/update")
    assert not may("server", "s3:ListBucket", updates)


def test_the_aggregator_reads_and_writes_both_and_changes_no_bucket(eks: Rendered) -> None:
    for bucket in buckets(eks):
        assert all(may("aggregator", f"s3:{verb}Object", f"{bucket}/x") for verb in ("Get", "Put", "Delete"))
        assert may("aggregator", "s3:ListBucket", bucket)
        assert not may("aggregator", "s3:DeleteBucket", bucket)
        assert not may("aggregator", "s3:PutBucketPolicy", bucket)


def test_nobody_holds_a_credential(eks: Rendered) -> None:
    assert not any("STORAGE" in secret.upper() for pod in eks.pods.values() for secret in pod.secrets)
    roles = {name: a["metadata"].get("annotations", {}) for name, a in eks.of("ServiceAccount").items()}
    assert {name for name, found in roles.items() if "eks.amazonaws.com/role-arn" in found} == {
        "fedlearn-server",
        "fedlearn-aggregator",
    }


def test_the_trust_is_in_a_service_account_that_is_there(eks: Rendered) -> None:
    condition = json.loads((IAM / "trust.json").read_text())["Statement"][0]["Condition"]["StringEquals"]
    (subject,) = (value for key, value in condition.items() if key.endswith(":sub"))
    _, _, namespace, account = subject.split(":")
    assert namespace == "fedlearn"
    assert account in eks.of("ServiceAccount")


def test_updates_that_both_sweeps_missed_outlast_the_longest_round(eks: Rendered) -> None:
    (rule,) = json.loads((IAM / "updates-lifecycle.json").read_text())["Rules"]
    longest = json.loads((CHART / "values.schema.json").read_text())["properties"]["task"]["properties"]
    assert rule["Expiration"]["Days"] * 86400 > longest["reportingTimeoutSeconds"]["maximum"]
