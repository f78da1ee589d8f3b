"""The manifests are valid by the schema of Kubernetes' API and keep what docs/deployment.md promises."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.app import create_app
from service.auth.keys import add_key, read_keys
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "docker" / "kubernetes" / "xclip-search.yaml"
OLDEST, NEWEST = "1.30", "1.37"
"""Each reads schemas for half a second: the Deployment, which has most fields, is held against both."""

OBJECTS: dict[str, Any] = {
    f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(MANIFEST.read_text())
}
POD = OBJECTS["Deployment/xclip-search"]["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
ENVIRONMENT = {one["name"]: one["value"] for one in SERVER["env"]}


@pytest.mark.parametrize(
    ("name", "version"), [("Deployment/xclip-search", OLDEST), *((name, NEWEST) for name in OBJECTS)]
)
def test_a_manifest_is_valid_by_the_schema_of_the_api(name: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[name], version, strict=True)


def test_the_schema_knows_a_misspelt_key_and_a_wrong_type() -> None:
    for change in ({"enableServicelinks": False}, {"terminationGracePeriodSeconds": "75"}):
        wrong = copy.deepcopy(OBJECTS["Deployment/xclip-search"])
        wrong["spec"]["template"]["spec"] |= change
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_the_settings_are_ours_and_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {name: value for name, value in ENVIRONMENT.items() if name.startswith("XCLIP_")}
    assert {name[6:].lower() for name in ours} <= set(Settings.model_fields)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    # And there is time to end.
    ending = settings.drain_delay_seconds + settings.drain_timeout_seconds + settings.worker_grace_seconds
    assert POD["terminationGracePeriodSeconds"] > ending


def test_the_probes_ask_for_what_there_is() -> None:
    document = create_app(Settings(index=Path("nowhere"))).openapi()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert SERVER[probe]["httpGet"]["path"] in document["paths"]
        assert SERVER[probe]["httpGet"]["port"] in {port["name"] for port in SERVER["ports"]}
    assert SERVER["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert SERVER["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_objects_name_each_other() -> None:
    labels = OBJECTS["Deployment/xclip-search"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["Deployment/xclip-search"]["spec"]["selector"]["matchLabels"] == labels
    service = OBJECTS["Service/xclip-search"]["spec"]
    assert service["selector"] == labels
    assert service["ports"][0]["targetPort"] == SERVER["ports"][0]["name"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in POD["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert {f"PersistentVolumeClaim/{claim}" for claim in claims} <= set(OBJECTS)
    (rule,) = OBJECTS["Ingress/xclip-search"]["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "xclip-search", "port": {"name": service["ports"][0]["name"]}}


def test_the_image_and_the_pod_agree_and_it_is_confined() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert f"ARG USER_ID={POD['securityContext']['runAsUser']}\n" in dockerfile
    for mount in SERVER["volumeMounts"]:
        assert mount["mountPath"] == "/tmp" or mount["mountPath"] in dockerfile
    assert SERVER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["enableServiceLinks"] is False and POD["automountServiceAccountToken"] is False
    deployment = OBJECTS["Deployment/xclip-search"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")


def test_keys_are_read_as_a_secret_is_mounted(tmp_path: Path) -> None:
    """Kubernetes mounts a link to a link, readable by the group of fsGroup."""
    data = tmp_path / "..2026_01_31"
    data.mkdir()
    add_key(data / "keys.json", "me", "read")
    (data / "keys.json").chmod(0o440)
    (tmp_path / "..data").symlink_to(data.name)
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    assert [key.name for key in read_keys(tmp_path / "keys.json")] == ["me"]
