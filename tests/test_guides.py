"""The files of the guides are what their tools accept: shellcheck, and the schemas of Kubernetes."""

import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

GUIDES = Path(__file__).resolve().parents[1] / "docs" / "guides"
MANIFESTS = list(yaml.safe_load_all((GUIDES / "kubernetes.yaml").read_text()))


def test_the_batch_script_passes_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), str(GUIDES / "slurm.sbatch")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_a_manifest_fits_the_schema_of_its_kind(manifest):
    kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_the_job_finds_its_service_and_its_claim():
    service, claim, job = MANIFESTS
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    endpoint = next(word for word in pod["containers"][0]["command"] if "endpoint" in word)
    assert endpoint.endswith(f"{job['metadata']['name']}-0.{service['metadata']['name']}:{service['spec']['ports'][0]['port']}")
