"""Kubernetes' manifests are what its schemas ask for, and what the code is."""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from app.settings import Settings
from tests.fakes import service

ROOT = Path(__file__).parent.parent
HERE = ROOT / "docker" / "k8s"
OVERLAYS = ("cpu", "gpu")
OLDEST = "1.30"  # with preStop's sleep; README.md says so
TOOLS = [[tool, *rest] for tool, rest in (("kustomize", ["build"]), ("kubectl", ["kustomize"])) if shutil.which(tool)]

Object = dict[str, Any]


def documents(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def build(folder: Path) -> list[Object]:
    """What kustomize makes of a folder, by the features that are used here: resources, images, JSON patches."""
    (told,) = documents(folder / "kustomization.yaml")
    assert set(told) <= {"apiVersion", "kind", "resources", "images", "patches"}
    paths = [(folder / name).resolve() for name in told["resources"]]
    objects = [one for path in paths for one in (build(path) if path.is_dir() else documents(path))]
    for patch in told.get("patches", ()):
        (target,) = (
            one for one in objects if (one["kind"], one["metadata"]["name"]) == tuple(patch["target"].values())
        )
        for operation in yaml.safe_load(patch["patch"]):
            apply(target, operation)
    for image in told.get("images", ()):
        for container in (one for pod in map(pod_of, objects) if pod for one in pod["containers"]):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return objects


def apply(target: Object, operation: Object) -> None:
    """RFC 6902's add and replace."""
    *way, last = operation["path"].strip("/").split("/")
    at: Any = target
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if isinstance(at, list):
        assert (operation["op"], last) == ("add", "-")
        at.append(operation["value"])
    else:
        assert operation["op"] in ("add", "replace")
        assert (last in at) == (operation["op"] == "replace")
        at[last] = operation["value"]


def pod_of(one: Object) -> Object | None:
    if one["kind"] == "InferenceService":
        return one["spec"]["predictor"]
    return one["spec"]["template"]["spec"] if one["kind"] == "Deployment" else None


def of_kind(objects: list[Object], kind: str) -> Object:
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


BUILT = {overlay: build(HERE / overlay) for overlay in OVERLAYS}
(KSERVE,) = documents(HERE / "inferenceservice.yaml")
PODS = {name: pod_of(of_kind(objects, "Deployment")) for name, objects in BUILT.items()} | {"kserve": pod_of(KSERVE)}
EVERY_OVERLAY = pytest.mark.parametrize("objects", BUILT.values(), ids=BUILT)
EVERY_POD = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def environment(pod: Object) -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod["containers"][0]["env"]}


@pytest.mark.parametrize("version", [OLDEST, all_versions()[-1]])
@EVERY_OVERLAY
def test_every_object_is_what_its_schema_asks_for(objects: list[Object], version: str) -> None:
    kinds = {"Namespace", "ServiceAccount", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"}
    assert {one["kind"] for one in objects} == kinds | {"HorizontalPodAutoscaler"}
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


def test_the_schemas_refuse_what_is_none_of_theirs() -> None:
    odd = copy.deepcopy(of_kind(BUILT["cpu"], "Deployment"))
    odd["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(odd, OLDEST, strict=True)


@pytest.mark.skipif(not TOOLS, reason="neither kustomize nor kubectl is here: its own build was not compared")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_the_same(overlay: str) -> None:
    def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
        return {(one["kind"], one["metadata"]["name"]): one for one in objects}

    for tool in TOOLS:
        made = subprocess.run([*tool, str(HERE / overlay)], capture_output=True, text=True, check=True).stdout
        assert by_name(list(yaml.safe_load_all(made))) == by_name(BUILT[overlay])


def test_the_predictor_of_kserve_is_a_pod_and_speaks_v2() -> None:
    """KServe's own fields are not validated: its schema is in no package here."""
    pod = dict(PODS["kserve"])
    assert {pod.pop(name) for name in ("minReplicas", "maxReplicas", "timeout")} == {1, 4, 30}
    as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": pod}
    kubernetes_validate.validate(as_pod, OLDEST, strict=True)
    assert (KSERVE["apiVersion"], environment(pod)["PROTOCOL"]) == ("serving.kserve.io/v1beta1", "v2")


@EVERY_POD
def test_a_pod_is_restricted_as_pod_security_has_it_and_more(pod: Object) -> None:
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} == {"emptyDir", "secret"}


@EVERY_OVERLAY
def test_the_namespace_refuses_pods_that_are_not_restricted(objects: list[Object]) -> None:
    assert of_kind(objects, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    namespaced = [one for one in objects if one["kind"] != "Namespace"]
    assert {one["metadata"]["namespace"] for one in namespaced} == {of_kind(objects, "Namespace")["metadata"]["name"]}


@EVERY_POD
def test_what_it_is_told_are_settings_and_the_keys_are_a_file(pod: Object) -> None:
    told = environment(pod)
    known = {f"NAM_{name.upper()}" for name in Settings.model_fields}
    assert set(told) - {"PROTOCOL"} <= known
    assert "NAM_API_KEYS" not in told
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "keys")
    assert Path(told["NAM_API_KEYS_FILE"]).parent == Path(mount["mountPath"])
    (volume,) = (one for one in pod["volumes"] if one["name"] == "keys")
    assert not volume["secret"].get("optional")
    assert (
        f"create secret generic {volume['secret']['secretName']} --from-file=keys=" in (HERE / "README.md").read_text()
    )


@EVERY_POD
def test_the_settings_are_taken(pod: Object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one")
    for name, value in (environment(pod) | {"NAM_API_KEYS_FILE": str(tmp_path / "keys")}).items():
        monkeypatch.setenv(name, value)
    assert Settings().host == "0.0.0.0"  # noqa: S104 - a pod's
    assert "metrics" in Settings().open_doors


@EVERY_POD
def test_the_grace_covers_the_sleep_and_the_drain_and_the_drain_the_longest_deadline(pod: Object) -> None:
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_ms = int(environment(pod)["NAM_DRAIN_MS"])
    assert drain_ms >= Settings().timeout_ms
    assert pod["terminationGracePeriodSeconds"] >= sleep + drain_ms / 1000 + 5
    readiness = pod["containers"][0]["readinessProbe"]
    assert sleep >= readiness["periodSeconds"] * readiness["failureThreshold"]


@EVERY_POD
def test_the_probes_ask_what_the_service_answers_without_a_key(pod: Object) -> None:
    probes = {
        name: pod["containers"][0][f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")
    }
    with service(api_keys="one", open="metrics") as serving:
        assert {serving.client.get(path).status_code for path in probes.values()} == {200}
        serving.load.draining = True
        assert {name: serving.client.get(path).status_code for name, path in probes.items()} == {
            "startup": 503,
            "readiness": 503,
            "liveness": 200,
        }


@EVERY_POD
def test_the_port_is_the_services(pod: Object) -> None:
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) == environment(pod)["NAM_PORT"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in (port["name"], port["containerPort"])


@EVERY_OVERLAY
def test_service_policy_budget_and_scaling_mean_the_deployment(objects: list[Object]) -> None:
    deployment = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert of_kind(objects, "Service")["spec"]["selector"] == labels
    assert of_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    scaled = of_kind(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    assert of_kind(objects, "Service")["spec"]["ports"][0]["targetPort"] == "http"


@EVERY_OVERLAY
def test_nothing_leaves_and_only_labelled_callers_come(objects: list[Object]) -> None:
    policy = of_kind(objects, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert all("namespaceSelector" in caller for caller in rule["from"])


@EVERY_OVERLAY
def test_a_new_version_takes_no_pod_away_and_one_pod_at_a_time_may_be_disrupted(objects: list[Object]) -> None:
    assert of_kind(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert of_kind(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert of_kind(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"] > 1


@EVERY_OVERLAY
def test_what_scales_is_a_metric_that_the_service_exports(objects: list[Object]) -> None:
    (metric,) = of_kind(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    ((rules,),) = (told["rules"]["custom"] for told in documents(HERE / "prometheus-adapter.yaml"))
    assert (rules["name"]["matches"], rules["seriesQuery"].partition("{")[0]) == (name, name)
    annotations = of_kind(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    with service() as serving:
        told = serving.client.get(annotations["prometheus.io/path"]).text
    assert f"# TYPE {name} gauge" in told
    assert annotations["prometheus.io/port"] == environment(pod_of(of_kind(objects, "Deployment")))["NAM_PORT"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_and_its_user_are_those_of_the_dockerfile(overlay: str) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (compose,) = documents(ROOT / "docker" / ("compose.gpu.yaml" if overlay == "gpu" else "compose.yaml"))
    assert PODS[overlay]["containers"][0]["image"] == compose["services"]["nam"]["image"] == f"nam-serve:{overlay}"
    assert f" AS {overlay}\n" in text
    (user,) = re.findall(r"^USER (\d+):(\d+)$", text, re.M)
    context = PODS[overlay]["securityContext"]
    assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user


def test_the_gpu_overlay_asks_for_one_device_and_serves_on_it_alone() -> None:
    resources = PODS["gpu"]["containers"][0]["resources"]
    assert (resources["limits"]["nvidia.com/gpu"], resources["requests"]["nvidia.com/gpu"]) == ("1", "1")
    assert environment(PODS["gpu"])["NAM_DEVICE"] == "cuda"
    assert "nvidia.com/gpu" not in PODS["cpu"]["containers"][0]["resources"]["limits"]


@EVERY_POD
def test_a_pod_says_what_it_takes(pod: Object) -> None:
    resources = pod["containers"][0]["resources"]
    assert set(resources["requests"]) == set(resources["limits"]) >= {"cpu", "memory"}
    (tmp,) = (one["emptyDir"] for one in pod["volumes"] if one["name"] == "tmp")
    assert tmp["medium"] == "Memory"
    assert "sizeLimit" in tmp
