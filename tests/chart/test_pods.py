"""Every pod under every values file: what Pod Security "restricted" and a careful operator demand."""

import pytest

from support.chart import Pod, Rendered, render, values

SERVICES = {"server": 8000, "aggregator": 8003, "device": 8001, "evaluator": 8004}


@pytest.fixture
def pods(every: Rendered) -> list[Pod]:
    assert every.pods
    return list(every.pods.values())


class TestPodSecurity:
    def test_no_pod_runs_as_root_or_without_seccomp(self, pods: list[Pod]) -> None:
        for pod in pods:
            security = pod.spec["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] >= 10000
            assert security["runAsGroup"] == security["fsGroup"] == security["runAsUser"]
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}

    def test_no_container_may_gain_anything(self, pods: list[Pod]) -> None:
        for container in [container for pod in pods for container in pod.containers]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }

    def test_no_pod_shares_anything_with_its_node(self, pods: list[Pod]) -> None:
        for pod in pods:
            assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
            assert not any("hostPath" in volume for volume in pod.spec["volumes"])

    def test_storage_runs_as_a_user_of_its_own_and_not_by_its_image_s_entrypoint(self, default: Rendered) -> None:
        users = {name: pod.spec["securityContext"]["runAsUser"] for name, pod in default.pods.items()}
        assert [name for name, user in users.items() if user == users["storage"]] == ["storage"]
        assert default.pods["storage"].main["command"] == ["weed"]


class TestEveryPod:
    def test_asks_for_cpu_and_memory_and_is_bounded_in_memory(self, pods: list[Pod]) -> None:
        for container in [container for pod in pods for container in pod.containers]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]

    def test_can_write_to_tmp_alone_and_to_its_data(self, pods: list[Pod]) -> None:
        for pod in pods:
            writable = {m["mountPath"] for c in pod.containers for m in c["volumeMounts"] if not m.get("readOnly")}
            assert writable <= {"/tmp", "/data", "/master", "/state"}
            assert "/tmp" in writable

    def test_gets_no_service_of_the_cluster_as_a_setting(self, pods: list[Pod]) -> None:
        assert not any(pod.spec["enableServiceLinks"] for pod in pods)

    def test_has_an_image_with_a_tag(self, pods: list[Pod]) -> None:
        for container in [container for pod in pods for container in pod.containers]:
            assert container["image"].rpartition(":")[2].removeprefix("v")[0].isdigit()

    def test_uses_every_volume_that_it_has(self, pods: list[Pod]) -> None:
        for pod in pods:
            claims = {"data"} if "volumeClaimTemplates" in pod.owner.get("spec", {}) else set()
            volumes = {volume["name"] for volume in pod.spec["volumes"]} | claims
            assert {m["name"] for c in pod.containers for m in c["volumeMounts"]} == volumes

    def test_takes_the_user_s_placement_labels_and_annotations(self) -> None:
        given = values("full")
        for switched in (given["task"], given["evaluator"], given["objectStore"]["seaweedfs"]):
            switched["enabled"] = True
        given["objectStore"].update(endpoint="")
        wanted = given["server"]["pod"]
        for pod in render(given).pods.values():
            assert pod.spec["nodeSelector"] == wanted["nodeSelector"]
            assert pod.spec["tolerations"] == wanted["tolerations"]
            assert pod.spec["affinity"] == wanted["affinity"]
            assert pod.spec["topologySpreadConstraints"] == wanted["topologySpreadConstraints"]
            assert pod.spec["priorityClassName"] == "learning"
            assert pod.spec["imagePullSecrets"] == [{"name": "registry"}]
            assert all(c["image"].startswith("registry.example.com/team/mirror/") for c in pod.containers)
            if pod.component in {*SERVICES, "storage"}:
                assert pod.labels["example.com/pod"] == "labelled"
                assert pod.annotations["example.com/pod"] == "annotated"


class TestProbes:
    @pytest.mark.parametrize("component", SERVICES)
    def test_of_a_service_ask_different_things(self, default: Rendered, component: str) -> None:
        container = default.pods[component].main
        paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
        assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
        assert container["ports"] == [{"name": "http", "containerPort": SERVICES[component]}]
        assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in paths} == {"http"}

    def test_give_time_to_start_then_react_sooner_to_what_is_not_ready_than_to_what_is_dead(self, default: Rendered) -> None:
        for component in (*SERVICES, "storage"):
            container = default.pods[component].main
            patience = {
                probe: container[f"{probe}Probe"]["periodSeconds"] * container[f"{probe}Probe"]["failureThreshold"]
                for probe in ("startup", "liveness", "readiness")
            }
            assert patience["startup"] >= 120
            assert patience["readiness"] < patience["liveness"] < patience["startup"]

    def test_of_storage_ask_its_one_open_port(self, default: Rendered) -> None:
        container = default.pods["storage"].main
        assert container["ports"] == [{"name": "s3", "containerPort": 8333}]
        assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "liveness", "readiness")} == {"s3"}


class TestTokens:
    def test_are_mounted_where_they_are_used_one_for_each_receiver(self, default: Rendered) -> None:
        assert {name: pod.tokens for name, pod in default.pods.items()} == {
            "server": {"fedlearn-aggregator", "kubernetes"},
            "aggregator": {"fedlearn-server", "kubernetes"},
            "device": {"fedlearn-server", "fedlearn-aggregator"},
            "evaluator": {"fedlearn-server"},
            "storage": set(),
            "task": set(),
            "test": set(),
        }

    def test_are_mounted_by_no_one_else_s_doing(self, every: Rendered) -> None:
        assert not any(pod.spec["automountServiceAccountToken"] for pod in every.pods.values())
        assert not any(account["automountServiceAccountToken"] for account in every.of("ServiceAccount").values())

    def test_are_of_the_account_that_the_settings_name(self, default: Rendered) -> None:
        for service in ("server", "aggregator"):
            settings = default.environment(service)
            for role in SERVICES:
                account = settings[f"FEDLEARN_IDENTITY__{role.upper()}"]
                assert default.pods[role].spec["serviceAccountName"] == account
                assert account in default.of("ServiceAccount")
            assert settings["FEDLEARN_IDENTITY__NAMESPACE"] == "learning"

    def test_live_as_long_as_the_values_say(self) -> None:
        pod = render({"identity": {"tokenSeconds": 1800}}).pods["device"]
        sources = next(v["projected"]["sources"] for v in pod.spec["volumes"] if v["name"] == "tokens")
        assert {source["serviceAccountToken"]["expirationSeconds"] for source in sources} == {1800}


CHANGES = {
    "server": {"server": {"maxCheckinSeconds": 10}},
    "aggregator": {"aggregator": {"workers": 7}},
    "device": {"device": {"seed": 7}},
}


class TestRestarts:
    """A pod starts anew when what it reads at its start has changed, and not before."""

    @staticmethod
    def templates(given: dict[str, object]) -> dict[str, object]:
        keys = values("keys")
        return {
            name: (pod.labels, pod.annotations, pod.spec)
            for name, pod in render({**keys, **{k: {**keys.get(k, {}), **v} for k, v in given.items()}}).pods.items()  # type: ignore[dict-item]
            if name in {*SERVICES}
        }

    @pytest.mark.parametrize("component", CHANGES)
    def test_a_setting_restarts_its_own_component(self, component: str) -> None:
        before, after = self.templates({}), self.templates(CHANGES[component])
        assert [name for name in before if before[name] != after[name]] == [component]

    def test_a_new_operator_s_token_restarts_the_server(self) -> None:
        before, after = self.templates({}), self.templates({"operator": {"token": "another"}})
        assert [name for name in before if before[name] != after[name]] == ["server"]

    def test_a_new_aggregator_s_identity_restarts_it_and_those_that_know_it(self) -> None:
        pods = [render(values("keys")).pods, render({**values("keys"), "aggregator": {}}).pods]
        changed = [name for name in SERVICES if pods[0][name].annotations != pods[1][name].annotations]
        assert changed == ["aggregator", "device"]
