"""What the chart is made of: valid for every Kubernetes, consistent in itself, and as the issue wants it."""

import inspect
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any

import kubernetes_validate
import pytest
from helm_python import lint
from typer.main import get_command

from fedlearn import __version__, config
from fedlearn.cli import tasks
from fedlearn.protocol.aggregations import GeometricMedianPlan, name_aggregation, read_options
from support.chart import CHART, SEVERAL, Manifest, Rendered, chart, render, values

VERSIONS = [f"1.{minor}" for minor in range(30, int(kubernetes_validate.latest_version().split(".")[1]) + 1)]


@pytest.fixture(autouse=True, scope="module")
def _schemas_are_read_once() -> Iterator[None]:
    """The library reads a megabyte of definitions anew for each manifest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
        yield


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(every: Rendered, version: str) -> None:
    for manifest in every.manifests:
        if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # the Prometheus operator's own; see test_monitoring
        kubernetes_validate.validate(dict(manifest), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_field_that_kubernetes_does_not_know_would_be_found(version: str) -> None:
    service = dict(render().of("Service")["fedlearn-server"])
    with pytest.raises(kubernetes_validate.ValidationError, match="prots"):
        kubernetes_validate.validate({**service, "spec": {**service["spec"], "prots": []}}, version, strict=True)


def test_the_oldest_version_that_is_tested_is_the_oldest_allowed() -> None:
    assert chart().metadata["kubeVersion"] == f">={VERSIONS[0]}.0-0"


def test_helm_s_own_linter_misses_nothing_but_an_icon() -> None:
    findings = lint(CHART)
    assert [message["error"] for message in findings["messages"]] == ["icon is recommended"]


def test_its_version_is_the_software_s() -> None:
    assert chart().metadata["appVersion"] == __version__
    image = render().pods["server"].main["image"]
    assert image == f"fedlearn-server:{__version__}"


class TestNames:
    @pytest.mark.parametrize(
        ("release", "given", "server"),
        [
            ("fedlearn", {}, "fedlearn-server"),
            ("blue", {}, "blue-fedlearn-server"),
            ("blue", {"fullnameOverride": "fl"}, "fl-server"),
            ("blue", {"nameOverride": "fl"}, "blue-fl-server"),
            ("r" * 53, {}, "r" * 35 + "-server"),
        ],
        ids=["release named as the chart", "another release", "whole name", "part of it", "the longest release"],
    )
    def test_come_from_the_release(self, release: str, given: dict[str, str], server: str) -> None:
        assert server in render(given, name=release).of("Deployment")

    def test_are_short_enough_for_a_dns_label_with_all_that_kubernetes_adds(self) -> None:
        rendered = render(name="r" * 53)
        assert all(len(f"data-{name}-99999") <= 63 for name in rendered.of("StatefulSet"))
        assert all(len(m["metadata"]["name"]) <= 63 for m in rendered.manifests if not m["kind"].startswith("Cluster"))

    def test_do_not_collide_between_two_releases_of_a_namespace(self) -> None:
        one, other = ({(m["kind"], m["metadata"]["name"]) for m in render(name=name).manifests} for name in ("blue", "green"))
        assert not one & other

    def test_of_the_whole_cluster_do_not_collide_between_namespaces(self) -> None:
        found = [set(render(namespace=namespace).of("ClusterRole")) for namespace in ("blue", "green")]
        assert not found[0] & found[1]
        assert all(found)


class TestLabels:
    def test_are_the_recommended_ones(self, every: Rendered) -> None:
        recommended = {"name", "instance", "component", "part-of", "version", "managed-by"}
        for manifest in every.manifests:
            assert {f"app.kubernetes.io/{label}" for label in recommended} <= manifest["metadata"]["labels"].keys()

    def test_by_which_pods_are_selected_are_few_and_hit_one_component(self, every: Rendered) -> None:
        owners = [pod.owner for pod in every.pods.values()]
        selectors = [o["spec"]["selector"]["matchLabels"] for o in owners if o["kind"] in ("Deployment", "StatefulSet")]
        selectors += [dict(service["spec"]["selector"]) for service in every.of("Service").values()]
        selectors += [pdb["spec"]["selector"]["matchLabels"] for pdb in every.of("PodDisruptionBudget").values()]
        for selector in selectors:
            selector.pop("statefulset.kubernetes.io/pod-name", None)  # of one pod, and never alone
            assert {key.rpartition("/")[2] for key in selector} == {"name", "instance", "component"}
            assert [name for name, pod in every.pods.items() if selector.items() <= pod.labels.items()] == [
                selector["app.kubernetes.io/component"]
            ]

    def test_the_server_finds_the_devices_by_them(self, default: Rendered) -> None:
        selector = default.environment("server")["FEDLEARN_CLUSTER__DEVICE_SELECTOR"]
        wanted = dict(term.split("=") for term in selector.split(","))
        assert [name for name, pod in default.pods.items() if wanted.items() <= pod.labels.items()] == ["device"]

    def test_of_pods_hold_no_version_which_would_restart_them_all(self, default: Rendered) -> None:
        for pod in [pod for pod in default.pods.values() if pod.owner["kind"] != "Pod"]:
            assert not {"helm.sh/chart", "app.kubernetes.io/version"} & pod.labels.keys()


class TestWorkloads:
    def test_there_is_one_server_which_goes_before_the_next_comes(self, default: Rendered) -> None:
        spec = default.of("Deployment")["fedlearn-server"]["spec"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})

    def test_several_servers_on_postgresql_are_replaced_one_by_one_and_never_fewer(self) -> None:
        rendered = render(SEVERAL)
        spec = rendered.of("Deployment")["fedlearn-server"]["spec"]
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
        assert (spec["replicas"], spec["strategy"]) == (2, rolling)
        budget = rendered.of("PodDisruptionBudget")["fedlearn-server"]["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"] == spec["selector"]

    def test_a_drain_may_take_a_single_server(self, default: Rendered) -> None:
        assert "fedlearn-server" not in default.of("PodDisruptionBudget")

    def test_servers_on_postgresql_know_their_lease_and_how_others_reach_them(self) -> None:
        for replicas in (1, 2):
            rendered = render({**SEVERAL, "server": {"replicas": replicas}})
            assert rendered.environment("server")["FEDLEARN_REPLICA__LEASE"] == "fedlearn-server"
            assert rendered.environment("server")["FEDLEARN_REPLICA__ADDRESS"] == "http://$(POD_IP):8000"
            names = [variable["name"] for variable in rendered.pods["server"].main["env"]]
            assert names.index("POD_IP") < names.index("FEDLEARN_REPLICA__ADDRESS")  # only what stands before is filled in

    def test_a_server_on_sqlite_has_no_lease(self, default: Rendered) -> None:
        assert not any(name.startswith("FEDLEARN_REPLICA") for name in default.environment("server"))

    def test_devices_start_side_by_side_with_a_claim_each_that_stays(self, default: Rendered) -> None:
        spec = default.of("StatefulSet")["fedlearn-device"]["spec"]
        assert (spec["replicas"], spec["podManagementPolicy"]) == (3, "Parallel")
        assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenScaled": "Retain", "whenDeleted": "Retain"}
        assert [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]] == ["data"]
        assert default.of("Service")[spec["serviceName"]]["spec"]["clusterIP"] == "None"

    def test_every_stateful_set_has_its_service(self, every: Rendered) -> None:
        for stateful in every.of("StatefulSet").values():
            assert stateful["spec"]["serviceName"] in every.of("Service")

    def test_what_was_learnt_outlives_an_uninstall(self, default: Rendered) -> None:
        claim = default.of("PersistentVolumeClaim")["fedlearn-server"]
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        storage = default.of("StatefulSet")["fedlearn-storage"]["spec"]["persistentVolumeClaimRetentionPolicy"]
        assert storage == {"whenScaled": "Retain", "whenDeleted": "Retain"}
        assert "helm uninstall" in default.notes
        assert "delete pvc" in default.notes

    def test_only_a_fleet_has_a_disruption_budget(self, default: Rendered) -> None:
        assert list(default.of("PodDisruptionBudget")) == ["fedlearn-device"]

    def test_every_pod_has_time_to_say_goodbye(self, default: Rendered) -> None:
        seconds = {c: p.spec.get("terminationGracePeriodSeconds") for c, p in default.pods.items()}
        assert seconds["server"] > 10  # uvicorn's, for running requests
        assert seconds["device"] > 5  # to tell the server that it drops out
        assert seconds["storage"] <= 5  # it would only wait for itself

    def test_hooks_are_swept_when_they_succeed_and_stay_to_be_read_when_not(self, default: Rendered) -> None:
        hooks = {m["metadata"]["name"]: m["metadata"]["annotations"] for m in default.manifests if _is_hook(m)}
        assert {name: a["helm.sh/hook"] for name, a in hooks.items()} == {
            "fedlearn-task": "post-install,post-upgrade",
            "fedlearn-test": "test",
        }
        assert {a["helm.sh/hook-delete-policy"] for a in hooks.values()} == {"before-hook-creation,hook-succeeded"}


class TestDeviceData:
    def test_is_the_shard_of_its_ordinal(self, default: Rendered) -> None:
        pod = default.pods["device"]
        arguments = dict(a.removeprefix("--").split("=") for a in pod.spec["initContainers"][0]["args"] if a.startswith("--"))
        assert arguments["index"] == "$(POD_INDEX)"
        assert arguments["shards"] == "10"
        assert arguments["out"] == default.environment("device")["FEDLEARN_SHARDS"] == "/data/$(POD_INDEX)"
        assert _ordinal(pod.spec["initContainers"][0]) == _ordinal(pod.main) == "apps.kubernetes.io/pod-index"

    def test_may_be_a_claim_of_the_user_s_own_for_each(self) -> None:
        rendered = render(values("own-claims"))
        assert rendered.environment("device")["FEDLEARN_SHARDS"] == "/data/shard"
        assert "initContainers" not in rendered.pods["device"].spec
        assert rendered.of("StatefulSet")["fedlearn-device"]["spec"]["volumeClaimTemplates"]

    @pytest.mark.parametrize(("path", "mounted"), [("hospitals", "hospitals/$(POD_INDEX)"), ("", "$(POD_INDEX)")])
    def test_may_be_a_directory_of_which_each_sees_its_own_part(self, path: str, mounted: str) -> None:
        rendered = render({"device": {"data": {"source": "directory", "existingClaim": "x-rays", "path": path}}})
        pod = rendered.pods["device"]
        mount = next(m for m in pod.main["volumeMounts"] if m["name"] == "data")
        assert mount == {"name": "data", "mountPath": "/data", "readOnly": True, "subPathExpr": mounted}
        assert rendered.environment("device")["FEDLEARN_SHARDS"] == "/data"
        assert "volumeClaimTemplates" not in pod.owner["spec"]
        assert "initContainers" not in pod.spec

    def test_no_device_writes_to_its_own(self, every: Rendered) -> None:
        mounts = every.pods["device"].main["volumeMounts"]
        assert [m.get("readOnly") for m in mounts if m["mountPath"] == "/data"] == [True]

    def test_what_a_device_needs_in_later_rounds_lies_on_its_own_volume_beside_them(self, every: Rendered) -> None:
        pod = every.pods["device"]
        (mount,) = [m for m in pod.main["volumeMounts"] if m["mountPath"] == every.environment("device")["FEDLEARN_STATE"]]
        if "volumeClaimTemplates" in pod.owner["spec"]:
            assert mount == {"name": "data", "mountPath": "/state", "subPath": "state"}
        else:
            assert mount == {"name": "state", "mountPath": "/state"}
            assert {"name": "state", "emptyDir": {}} in pod.spec["volumes"]


class TestTask:
    """The Job's arguments, read as its command reads them."""

    @staticmethod
    def submitted(**given: Any) -> dict[str, Any]:
        arguments = render({"task": given}).pods["task"].main["args"]
        assert arguments[:2] == ["tasks", "submit-builtin"]
        commands = get_command(tasks.app).commands  # type: ignore[attr-defined]  # several commands are a group
        return commands["submit-builtin"].make_context("submit-builtin", arguments[2:]).params  # type: ignore[no-any-return]

    def test_is_the_one_that_it_was_before_strategy_and_codec_could_be_named(self) -> None:
        """An upgrade submits it once more: with a plan of another digest it would be another task, and be refused."""
        options = ("strategy", "robust", "strategy_option", "proximal_mu", "codec", "keep_fraction", "model_encoding")
        defaults = inspect.signature(tasks.submit_builtin).parameters
        submitted = self.submitted()
        assert {name: submitted[name] or None for name in options} == {name: defaults[name].default or None for name in options}

    def test_has_the_strategy_and_the_rule_of_the_values(self) -> None:
        options = {"keep": 1_000_000, "byzantine": 2, "tau": 1e-7, "server_learning_rate": 0.5}
        found = self.submitted(strategy="fedyogi", robust="multi_krum", strategyOptions=options, proximalMu=0.05)
        aggregation = name_aggregation(found["strategy"], found["robust"], **read_options(found["strategy_option"]))
        assert aggregation == name_aggregation("fedyogi", "multi_krum", **options)
        assert found["proximal_mu"] == 0.05

    def test_has_options_that_are_no_numbers(self) -> None:
        found = self.submitted(robust="geometric_median", strategyOptions={"weighted": True})
        rule = name_aggregation(found["strategy"], found["robust"], **read_options(found["strategy_option"])).rule
        assert rule == GeometricMedianPlan(name="geometric_median", weighted=True)

    def test_has_its_options_in_one_order_however_they_are_written(self) -> None:
        options = {"tau": 0.01, "beta_1": 0.5, "beta_2": 0.9}
        one, other = (
            self.submitted(strategy="fedadam", strategyOptions=dict(o)) for o in (options.items(), reversed(options.items()))
        )
        assert one["strategy_option"] == other["strategy_option"] == ["beta_1=0.5", "beta_2=0.9", "tau=0.01"]

    def test_has_the_codec_and_the_encoding_of_the_values(self) -> None:
        found = self.submitted(codec="top_k", keepFraction=0.00001, modelEncoding="float16")
        assert (found["codec"], found["keep_fraction"], found["model_encoding"]) == ("top_k", 0.00001, "float16")


class TestSettings:
    MODELS = (
        ("server", config.ServerSettings),
        ("aggregator", config.AggregatorSettings),
        ("device", config.DeviceSettings),
        ("evaluator", config.EvaluatorSettings),
    )

    def test_are_those_that_the_services_know(self, every: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
        """Loaded as the services load them; what is not known, and what is missing, fails."""
        for service, model in self.MODELS:
            if service not in every.pods:
                continue
            given = dict(every.environment(service))
            elsewhere = [e for e in every.pods[service].main.get("env", ()) if "valueFrom" in e]
            given |= {e["name"]: "0" if "fieldRef" in e["valueFrom"] else "from-a-secret" for e in elsewhere}
            with monkeypatch.context() as patch:
                for name, value in given.items():
                    patch.setenv(name, value)
                loaded = config.load(model)
            fields = {name.upper() for name in model.model_fields} | {"POD_INDEX", "POD_IP"}
            assert {name.removeprefix("FEDLEARN_").partition("__")[0] for name in given} <= fields
            assert loaded.port == every.pods[service].main["ports"][0]["containerPort"]

    def test_name_services_and_ports_that_are_there(self, default: Rendered) -> None:
        urls = {v for c in ("server", "aggregator", "device", "evaluator") for v in default.environment(c).values()}
        addresses = [url.removeprefix("http://").split(":") for url in urls if url.startswith("http://")]
        assert len(addresses) == 3
        for host, port in addresses:
            assert int(port) in [p["port"] for p in default.of("Service")[host]["spec"]["ports"]]

    def test_of_several_aggregators_name_each_by_its_number_and_each_knows_its_own(self) -> None:
        rendered = render({"aggregator": {"replicas": 3}})
        urls = [f"http://fedlearn-aggregator-{number}:8003" for number in range(3)]
        for component in ("server", "device"):
            assert rendered.environment(component)["FEDLEARN_AGGREGATOR_URL"] == ",".join(urls)
        for number in range(3):
            service = rendered.of("Service")[f"fedlearn-aggregator-{number}"]["spec"]
            assert service["ports"][0]["port"] == 8003
            assert service["selector"]["statefulset.kubernetes.io/pod-name"] == f"fedlearn-aggregator-{number}"
        aggregator = rendered.of("StatefulSet")["fedlearn-aggregator"]["spec"]
        assert aggregator["replicas"] == 3
        number_of = next(e for e in rendered.pods["aggregator"].main["env"] if e["name"] == "FEDLEARN_NUMBER")
        assert number_of["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"
        assert rendered.of("PodDisruptionBudget")["fedlearn-aggregator"]["spec"]["maxUnavailable"] == 1

    def test_of_one_aggregator_name_its_service_alone(self, default: Rendered) -> None:
        assert default.environment("device")["FEDLEARN_AGGREGATOR_URL"] == "http://fedlearn-aggregator:8003"
        assert "fedlearn-aggregator-0" not in default.of("Service")
        assert "fedlearn-aggregator" not in default.of("PodDisruptionBudget")

    def test_of_another_store_go_to_those_who_use_it(self) -> None:
        rendered = render(values("full"))
        for service in ("server", "aggregator"):
            settings = rendered.environment(service)
            assert settings["FEDLEARN_STORAGE__ENDPOINT_URL"] == "https://s3.example.com"
            assert settings["FEDLEARN_STORAGE__PUBLIC_ENDPOINT_URL"] == "https://models.example.com"
        assert not any("STORAGE" in name for name in rendered.environment("device"))


class TestRights:
    def test_are_the_exact_verbs(self, default: Rendered) -> None:
        granted = {
            (role["kind"], group, resource, verb)
            for role in chain(default.of("Role").values(), default.of("ClusterRole").values())
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        assert not any("*" in part for right in granted for part in right)
        assert {right[1:] for right in granted if right[0] == "ClusterRole"} == {
            ("authentication.k8s.io", "tokenreviews", "create")
        }
        assert {right[1:] for right in granted if right[0] == "Role"} == {
            ("", "pods", "list"),
            ("", "pods", "watch"),
            ("events.k8s.io", "events", "create"),
        }

    def test_on_a_lease_are_of_servers_on_postgresql_alone_and_on_theirs_alone(self, default: Rendered) -> None:
        def leases(rendered: Rendered) -> list[Manifest]:
            return [rule for role in rendered.of("Role").values() for rule in role["rules"] if "leases" in rule["resources"]]

        assert leases(default) == []
        assert [(rule.get("resourceNames"), rule["verbs"]) for rule in leases(render(SEVERAL))] == [
            (None, ["create"]),
            (["fedlearn-server"], ["get", "update"]),
        ]

    def test_are_of_server_and_aggregator_alone(self, default: Rendered) -> None:
        bound = {
            kind: {subject["name"] for binding in default.of(kind).values() for subject in binding["subjects"]}
            for kind in ("RoleBinding", "ClusterRoleBinding")
        }
        assert bound == {
            "RoleBinding": {"fedlearn-server"},
            "ClusterRoleBinding": {"fedlearn-server", "fedlearn-aggregator"},
        }

    def test_of_the_whole_cluster_are_not_needed_with_its_public_keys(self) -> None:
        rendered = render({"identity": {"mode": "jwks"}})
        assert not rendered.of("ClusterRole")
        assert not rendered.of("ClusterRoleBinding")
        settings = rendered.environment("aggregator")
        assert settings["FEDLEARN_IDENTITY__JWKS"] == "https://kubernetes.default.svc/openid/v1/jwks"
        mounted = [m["mountPath"] for m in rendered.pods["aggregator"].main["volumeMounts"]]
        assert settings["FEDLEARN_IDENTITY__JWKS_CA_FILE"].rpartition("/")[0] in mounted


def _is_hook(manifest: Manifest) -> bool:
    return "helm.sh/hook" in manifest["metadata"].get("annotations", {})


def _ordinal(container: Manifest) -> str:
    source = next(e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if e["name"] == "POD_INDEX")
    return str(source.removeprefix("metadata.labels['").removesuffix("']"))
