"""The values: a closed schema, defaults that agree with it, a file that sets everything, a README that is generated from it."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
import yaml
from helm_python import HelmError

from fedlearn.core.policy import RoundPolicy
from fedlearn.protocol.aggregations import Aggregation, Rule
from fedlearn.protocol.plans import Codec, ModelEncoding
from support.chart import CHART, chart, render, values
from support.chart_readme import README, generated

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
UNUSED_HERE = {"global"}


def schema() -> Mapping[str, Any]:
    found = chart().schema
    assert found is not None
    return found


def nodes(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every value of the schema by its dotted path, the groups included."""
    if "$ref" in node:
        node = {**schema()["$defs"][node["$ref"].rpartition("/")[2]], **node}
    if path:
        yield path, node
    for name, child in node.get("properties", {}).items():
        if name not in UNUSED_HERE:
            yield from nodes(child, f"{path}.{name}" if path else name)


def leaves(given: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted path, as deep as the schema goes."""
    known = dict(nodes(schema()))
    for name, value in given.items():
        here = f"{path}.{name}" if path else name
        if isinstance(value, dict) and "properties" in known.get(here, {}):
            yield from leaves(value, here)
        else:
            yield here, value


LEAVES = {path: node for path, node in nodes(schema()) if "properties" not in node}


def test_the_schema_is_closed_everywhere() -> None:
    assert schema()["additionalProperties"] is False
    for path, node in nodes(schema()):
        if "properties" in node:
            assert node["additionalProperties"] is False, path


def test_every_value_says_what_it_is() -> None:
    assert len(LEAVES) > 100
    for path, node in LEAVES.items():
        assert node["description"].endswith("."), path


def test_every_value_has_a_default_and_every_default_is_in_the_schema() -> None:
    deep = {path for path in dict(leaves(DEFAULTS)) if path not in LEAVES}
    assert not deep
    assert LEAVES.keys() <= dict(leaves(DEFAULTS)).keys()


def test_the_full_file_sets_every_value_to_something_else() -> None:
    full, ours = dict(leaves(values("full"))), dict(leaves(DEFAULTS))
    assert full.keys() == ours.keys()
    # a secret's name and its content exclude each other
    same = {path for path in full if full[path] == ours[path]}
    assert same == {
        "networkPolicy.enabled",
        "task.keepFraction",
        "aggregator.identity.privateKey",
        "objectStore.server.accessKey",
        "objectStore.server.secretKey",
        "objectStore.aggregator.accessKey",
        "objectStore.aggregator.secretKey",
        "database.url",
        "operator.token",
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"server": {"replicas": 0}}, "/server/replicas"),
        ({"server": {"replicas": 2}}, "/database"),
        ({"serverr": {}}, "serverr"),
        ({"device": {"data": {"partitoner": "iid"}}}, "partitoner"),
        ({"device": {"data": {"partitioner": "fair"}}}, "/device/data/partitioner"),
        ({"task": {"minFraction": 0}}, "/task/minFraction"),
        ({"task": {"learningRate": "fast"}}, "/task/learningRate"),
        ({"task": {"strategy": "fedprox"}}, "/task/strategy"),
        ({"task": {"robust": "mean"}}, "/task/robust"),
        ({"task": {"strategyOptions": {"momentun": 0.9}}}, "momentun"),
        ({"task": {"strategyOptions": {"momentum": "much"}}}, "/task/strategyOptions/momentum"),
        ({"task": {"proximalMu": -1}}, "/task/proximalMu"),
        ({"task": {"codec": "int4"}}, "/task/codec"),
        ({"task": {"codec": "top_k", "keepFraction": 0.6}}, "/task/keepFraction"),
        ({"task": {"modelEncoding": "int8"}}, "/task/modelEncoding"),
        ({"task": {"name": "My Task"}}, "/task/name"),
        ({"objectStore": {"endpoint": "s3.example.com"}}, "/objectStore/endpoint"),
        ({"objectStore": {"buckets": {"models": "No"}}}, "/objectStore/buckets/models"),
        ({"database": {"url": "mysql://host/name"}}, "/database/url"),
        ({"identity": {"mode": "trust"}}, "/identity/mode"),
        ({"device": {"data": {"path": "../other"}}}, "/device/data/path"),
        ({"device": {"resources": {"requests": None}}}, "/device/resources"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else given,
)
def test_what_the_schema_does_not_know_or_allow_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(HelmError, match=says):
        render(given)


@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        ({"device": {"replicas": 11}}, "raise device.data.totalShards"),
        ({"device": {"data": {"source": "directory"}}}, "device.data.existingClaim"),
        ({"task": {"goal": 1}}, "close with reports of 1.* aggregator.minCohort = 2 .* raise task.minFraction or task.goal"),
        ({"task": {"goal": 2}}, "close with reports of 1.* aggregator.minCohort"),
        ({"task": {"goal": 5}, "aggregator": {"minCohort": 4}}, "close with reports of 3.* aggregator.minCohort = 4"),
        ({"task": {"keepFraction": 0.1}}, "set codec to top_k"),
        ({"task": {"codec": "top_k", "robust": "median"}}, "leave task.robust empty"),
        ({"objectStore": {"server": {"accessKey": "key"}}}, "accessKey and secretKey go together"),
        ({"objectStore": {"server": {"existingSecret": "s"}}}, "or for none"),
        ({"objectStore": {"endpoint": "https://s3.example.com"}}, "objectStore.seaweedfs.enabled to false"),
        ({"aggregator": {"identity": {"existingSecret": "s"}}}, "needs aggregator.identity.publicKey"),
        ({"aggregator": {"identity": {"publicKey": "p"}}}, "goes with existingSecret"),
        ({"monitoring": {"podMonitor": {"enabled": True}}}, "monitoring.namespace"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else given,
)
def test_values_that_contradict_each_other_fail_with_the_way_out(given: dict[str, Any], way_out: str) -> None:
    with pytest.raises(HelmError, match=way_out):
        render(given)


@pytest.mark.parametrize(
    "given",
    [
        {"task": {"goal": 2, "minFraction": 0.6}},
        {"task": {"goal": 5}, "aggregator": {"minCohort": 3}},
        {"task": {"goal": 1, "keepFraction": 0.1, "enabled": False}},
        {"task": {"codec": "top_k", "keepFraction": 0.1}},
    ],
    ids=["rounded up", "just enough", "no task", "a part with top_k"],
)
def test_values_that_go_together_are_taken(given: dict[str, Any]) -> None:
    assert render(given).manifests


@pytest.mark.parametrize(
    ("goal", "fraction"),
    [(3, 0.5), (3, 2 / 3), (9, 5 / 9), (10, 0.1 + 0.2), (50, 0.14), (100, 0.55), (100, 0.07), (100_000, 0.00001), (7, 1)],
)
def test_the_chart_and_the_server_count_alike_with_how_few_a_round_may_close(goal: int, fraction: float) -> None:
    minimum = RoundPolicy(goal=goal, min_fraction=fraction).minimum
    task = {"goal": goal, "minFraction": fraction}
    assert render({"task": task, "aggregator": {"minCohort": minimum}}).manifests
    with pytest.raises(HelmError, match=rf"close with reports of {minimum}, "):
        render({"task": task, "aggregator": {"minCohort": minimum + 1}})


def test_the_schema_knows_every_strategy_rule_option_and_codec_and_no_other() -> None:
    def choices(name: str) -> list[str]:
        return list(LEAVES[f"task.{name}"]["enum"])

    strategies, rules = (get_args(get_args(union)[0]) for union in (Aggregation, Rule))
    named = {"strategy": strategies, "name": rules}
    names = {by: [get_args(kind.model_fields[by].annotation)[0] for kind in kinds] for by, kinds in named.items()}
    assert choices("strategy") == names["strategy"]
    assert choices("robust") == ["", *names["name"]]
    options = {field for kind in (*strategies, *rules) for field in kind.model_fields} - {"strategy", "name", "rule"}
    assert set(LEAVES["task.strategyOptions"]["propertyNames"]["enum"]) == options
    assert choices("codec") == list(get_args(Codec))
    assert choices("modelEncoding") == list(get_args(ModelEncoding))


def test_notes_tell_of_a_goal_that_the_fleet_can_t_reach() -> None:
    assert "scale the devices up" not in render().notes
    assert "scale the devices up" in render({"task": {"goal": 8}}).notes


def test_the_readme_is_the_one_that_the_schema_makes() -> None:
    assert README.read_text() == generated(), "run python tests/support/chart_readme.py"
