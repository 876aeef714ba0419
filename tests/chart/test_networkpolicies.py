"""What the NetworkPolicies mean: who reaches whom, worked out from them as a cluster does."""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from support.chart import NAMESPACE, SEVERAL, Manifest, Rendered, render, values

PORTS = {"server": 8000, "aggregator": 8003, "device": 8001, "evaluator": 8004, "storage": 8333}
REACHES = {
    "server": {"aggregator", "storage"},
    "aggregator": {"server", "storage"},
    "device": {"server", "aggregator", "storage"},
    "evaluator": {"server", "storage"},
    "task": {"server", "storage"},
    "test": {"server"},
    "storage": set(),
}
STRANGER = {"app.kubernetes.io/name": "something-else"}


def labels(rendered: Rendered, component: str) -> Mapping[str, str]:
    return rendered.pods[component].labels


def selects(selector: Mapping[str, Any], found: Mapping[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= found.items()


def rules(rendered: Rendered, pod: Mapping[str, str], direction: str) -> Iterator[Manifest] | None:
    """The rules for a pod in one direction; None where no policy selects it, and everything is allowed."""
    policies = [p["spec"] for p in rendered.of("NetworkPolicy").values() if selects(p["spec"]["podSelector"], pod)]
    policies = [p for p in policies if direction.capitalize() in p["policyTypes"]]
    return (rule for policy in policies for rule in policy.get(direction) or ()) if policies else None


def allowed(rendered: Rendered, pod: Mapping[str, str], direction: str, peer: Mapping[str, str] | str, port: int) -> bool:
    """Whether a pod's policies allow this direction with a pod of this namespace (its labels) or an address."""
    found = rules(rendered, pod, direction)
    side = "from" if direction == "ingress" else "to"
    return found is None or any(
        (side not in rule or any(_is_peer(candidate, peer) for candidate in rule[side]))
        and ("ports" not in rule or any(p["port"] == port and p.get("protocol", "TCP") == "TCP" for p in rule["ports"]))
        for rule in found
    )


def _is_peer(rule: Manifest, peer: Mapping[str, str] | str) -> bool:
    if isinstance(peer, str):
        return "ipBlock" in rule and ipaddress.ip_address(peer) in ipaddress.ip_network(rule["ipBlock"]["cidr"])
    if "namespaceSelector" in rule:
        return selects(rule["namespaceSelector"], {"kubernetes.io/metadata.name": NAMESPACE})
    return "podSelector" in rule and selects(rule["podSelector"], peer)


def reaches(rendered: Rendered, one: str, other: str) -> bool:
    here, there, port = labels(rendered, one), labels(rendered, other), PORTS[other]
    return allowed(rendered, here, "egress", there, port) and allowed(rendered, there, "ingress", here, port)


@pytest.mark.parametrize("one", REACHES)
def test_a_role_reaches_whom_it_needs_and_nobody_else(default: Rendered, one: str) -> None:
    assert {other for other in PORTS if other != one and reaches(default, one, other)} == REACHES[one]


@pytest.mark.parametrize("component", PORTS)
def test_a_stranger_in_the_namespace_reaches_nobody(default: Rendered, component: str) -> None:
    pod = labels(default, component)
    assert not any(allowed(default, pod, "ingress", STRANGER, port) for port in (*PORTS.values(), 9333, 18888, 18333))


def test_devices_do_not_reach_each_other(default: Rendered) -> None:
    device = labels(default, "device")
    assert not allowed(default, device, "egress", device, PORTS["device"])
    assert not allowed(default, device, "ingress", device, PORTS["device"])


def test_servers_reach_each_other_where_there_are_several(default: Rendered) -> None:
    assert not reaches(default, "server", "server")
    assert reaches(render(SEVERAL), "server", "server")


def test_the_device_of_another_release_reaches_nobody(default: Rendered) -> None:
    foreign = {**labels(default, "device"), "app.kubernetes.io/instance": "other"}
    assert not any(allowed(default, labels(default, other), "ingress", foreign, port) for other, port in PORTS.items())


@pytest.mark.parametrize("port", [8888, 9333, 8080, 18333, 18888, 19333, 18080])
def test_the_store_s_other_ports_are_open_to_nobody(default: Rendered, port: int) -> None:
    store = labels(default, "storage")
    assert not any(allowed(default, store, "ingress", labels(default, name), port) for name in default.pods)


class TestAddressesOutside:
    INTERNET, API = "203.0.113.1", "10.0.0.1"

    def test_only_those_who_ask_the_cluster_reach_its_api(self, default: Rendered) -> None:
        for port in (443, 6443):
            asking = {name for name in default.pods if allowed(default, labels(default, name), "egress", self.API, port)}
            assert asking == {"server", "aggregator"}

    def test_nobody_reaches_another_port_anywhere(self, default: Rendered) -> None:
        for name in default.pods:
            assert not any(allowed(default, labels(default, name), "egress", self.INTERNET, port) for port in (80, 22, 8333))

    def test_everybody_but_the_store_reaches_the_cluster_s_dns(self, default: Rendered) -> None:
        asking = {name for name in default.pods if allowed(default, labels(default, name), "egress", self.API, 53)}
        assert asking == default.pods.keys() - {"storage"}

    def test_a_store_and_a_database_of_the_user_s_own_are_reached_by_those_who_need_them(self) -> None:
        given = values("full")
        given["task"]["enabled"] = given["evaluator"]["enabled"] = True
        rendered = render(given)
        reaching = {
            address: {n for n in rendered.pods if allowed(rendered, labels(rendered, n), "egress", address, port)}
            for address, port in (("192.0.2.9", 9000), ("198.51.100.7", 5433), ("10.0.0.1", 6443))
        }
        assert reaching == {
            "192.0.2.9": {"server", "aggregator", "device", "evaluator", "task"},
            "198.51.100.7": {"server"},
            "10.0.0.1": {"server", "aggregator"},
        }
        assert "storage" not in rendered.pods

    def test_the_user_may_let_his_own_in_to_the_server(self) -> None:
        peer = {"podSelector": {"matchLabels": STRANGER}}
        rendered = render({"networkPolicy": {"serverFrom": [peer]}})
        admitting = {c for c, port in PORTS.items() if allowed(rendered, labels(rendered, c), "ingress", STRANGER, port)}
        assert admitting == {"server"}


class TestMetrics:
    READ = ("server", "aggregator", "device", "evaluator")

    @staticmethod
    def reading(rendered: Rendered, peer: Mapping[str, str], namespace: str = NAMESPACE) -> set[str]:
        return {
            name
            for name, port in PORTS.items()
            for rule in rules(rendered, labels(rendered, name), "ingress") or ()
            if any(p["port"] == port for p in rule["ports"]) and any(_is_peer_in(c, peer, namespace) for c in rule["from"])
        }

    def test_are_read_from_the_monitoring_namespace_alone(self) -> None:
        rendered = render({"monitoring": {"namespace": "observability"}})
        assert self.reading(rendered, STRANGER, "observability") == set(self.READ)
        assert self.reading(rendered, STRANGER) == self.reading(rendered, STRANGER, "elsewhere") == set()

    def test_are_read_by_nobody_unless_a_namespace_is_named(self, default: Rendered) -> None:
        assert self.reading(default, STRANGER, "monitoring") == set()

    def test_are_read_by_the_chart_s_own_prometheus_which_only_its_grafana_asks(self) -> None:
        rendered = render({"monitoring": {"demo": {"enabled": True}}})
        prometheus, grafana = (labels(rendered, name) for name in ("prometheus", "grafana"))
        assert self.reading(rendered, prometheus) == set(self.READ)
        assert all(allowed(rendered, prometheus, "egress", labels(rendered, n), PORTS[n]) for n in self.READ)
        asking = {n for n in rendered.pods if allowed(rendered, prometheus, "ingress", labels(rendered, n), 9090)}
        assert asking == {"grafana"}
        assert allowed(rendered, grafana, "egress", prometheus, 9090)
        assert not any(allowed(rendered, grafana, "ingress", labels(rendered, n), 3000) for n in rendered.pods)
        assert not any(allowed(rendered, grafana, "egress", TestAddressesOutside.API, port) for port in (443, 6443))


def _is_peer_in(rule: Manifest, peer: Mapping[str, str], namespace: str) -> bool:
    if "namespaceSelector" in rule:
        inside = selects(rule["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
        return inside and selects(rule.get("podSelector", {}), peer)
    return namespace == NAMESPACE and _is_peer(rule, peer)


def test_every_pod_is_under_a_policy_in_both_directions(every: Rendered) -> None:
    if not every.of("NetworkPolicy"):
        pytest.skip("these values switch them off")
    for pod in every.pods.values():
        assert rules(every, pod.labels, "ingress") is not None
        assert rules(every, pod.labels, "egress") is not None


def test_every_rule_says_whom_it_is_for(default: Rendered) -> None:
    for name, text in default.texts.items():
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if name.endswith("networkpolicy.yaml") and line.lstrip().startswith(("- podSelector", "- ports", "- to:")):
                nested = lines[number - 1].strip() == "- to:"
                assert nested or "-->" in lines[number - 1], f"{name}: {line}"
