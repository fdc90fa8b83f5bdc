"""Kubernetes: a JobSet of TPU hosts (GKE) or of GPU hosts, one pod for each host.

    python launch/kubernetes.py --image IMAGE --accelerator tpu-v5-lite-podslice --topology 4x4 \
        --hosts 4 --chips 4 --claim shared-runs -- --config configs/brain.py --workdir /runs/brain
    python launch/kubernetes.py --image IMAGE --gpus 8 --hosts 2 --claim shared-runs -- ...

Prints the manifest, then hands it to `kubectl apply`; `--dry-run` only prints. IMAGE holds this
package with its `tpu` or `cuda` extra in /app (launch/Dockerfile). The claim names a volume that
all pods may write (Filestore, or a bucket under GCS FUSE); it is mounted at /runs. All pods are
started again together:

- without counting, when a node was taken away or a pod was asked to stop (exit code 129, 130, 143);
- up to `--restarts` times after anything else that may pass: a process that lost another or never
  reached process 0 (75), was killed, for memory say (137), or aborted (134);
- never after a fault of the run itself: an error that the command told (1) or a wrong flag (2).

Pods of GPUs find each other by the names that JobSet gives them, so they need no rights at the API
server and no `jax[k8s]`. Needs kubectl and the JobSet controller, 0.10 or newer
(`onJobFailureMessagePatterns`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import yaml

PORT, WORKERS = 8476, "workers"

OWN_FAULT = (1, 2)
"""Exit codes of an error that the command told, and of wrong flags."""

ASKED_TO_STOP = (129, 130, 143)
"""Exit codes after SIGHUP, SIGINT and SIGTERM; everything is saved by then."""


def _said_of(codes: tuple[int, ...]) -> str:
    """What Kubernetes says of a Job that failed by these exit codes, as a regular expression."""
    return rf"failed with exit code ({'|'.join(map(str, codes))}) matching FailJob rule"


def manifest(options: argparse.Namespace) -> dict[str, Any]:
    """The JobSet."""
    train = ["python", "-m", "drifa_jax.main", *options.arguments]
    if options.gpus:
        selector = {"cloud.google.com/gke-accelerator": options.accelerator}
        devices, topology = {"nvidia.com/gpu": options.gpus}, {}
        settings = {"env": _places(options)}
    else:
        train.append("--config.distributed.coordinator=auto")
        selector = {
            "cloud.google.com/gke-tpu-accelerator": options.accelerator or "tpu-v5-lite-podslice",
            "cloud.google.com/gke-tpu-topology": options.topology,
        }
        devices, settings = {"google.com/tpu": options.chips}, {}
        own_pool = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        topology = {"annotations": {own_pool: "cloud.google.com/gke-nodepool"}}
    container = {
        "name": "train",
        "image": options.image,
        "workingDir": "/app",
        "command": train,
        **settings,
        # JAX's coordinator, and libtpu's.
        "ports": [{"containerPort": PORT}, {"containerPort": 8471}],
        "resources": {"limits": devices},
        "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
    }
    pod = {
        "restartPolicy": "Never",
        # Long enough to finish a step and write a checkpoint after SIGTERM.
        "terminationGracePeriodSeconds": 120,
        "nodeSelector": {name: value for name, value in selector.items() if value},
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": options.claim}},
        ],
    }
    failures = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": list(codes)}}
        for codes in (OWN_FAULT, ASKED_TO_STOP)
    ]
    taken = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}
    job = {
        "parallelism": options.hosts,
        "completions": options.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [*failures, taken]},
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": options.name, **topology},
        "spec": {
            "failurePolicy": {
                "maxRestarts": options.restarts,
                "rules": [
                    {
                        "name": "own_fault",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                        "onJobFailureMessagePatterns": [_said_of(OWN_FAULT)],
                    },
                    {
                        "name": "asked_to_stop",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
                ],
            },
            "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _places(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Where process 0 is, how many there are and which one a pod is, as the package reads it."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    first = f"{options.name}-{WORKERS}-0-0.{options.name}:{PORT}"
    return [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": first},
        {"name": "JAX_NUM_PROCESSES", "value": str(options.hosts)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags, and as `arguments` what comes after `--`."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Everything after -- goes to drifa train.",
    )
    parser.add_argument("--name", default="drifa")
    parser.add_argument("--image", required=True)
    parser.add_argument("--accelerator", default="", help="label of the nodes; of TPUs v5e without")
    parser.add_argument("--topology", default="2x4")
    parser.add_argument("--hosts", type=int, default=1, help="pods of the slice")
    parser.add_argument("--chips", type=int, default=8, help="of a host")
    parser.add_argument("--gpus", type=int, default=0, help="of a host; then no TPUs")
    parser.add_argument("--claim", required=True, help="PersistentVolumeClaim, ReadWriteMany")
    parser.add_argument("--restarts", type=int, default=20, help="of what counts")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest only")
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    # Whoever writes --dry-run, wherever, wants nothing to be run.
    options.dry_run |= "--dry-run" in given
    options.arguments = [word for word in given[cut + 1 :] if word != "--dry-run"]
    if not options.arguments:
        parser.error("it needs -- and the arguments of drifa train")
    return options


def main() -> int:
    """Prints the manifest and applies it."""
    options = parse()
    text = yaml.safe_dump(manifest(options), sort_keys=False)
    print(text, end="", flush=True)
    if options.dry_run:
        return 0
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode


if __name__ == "__main__":
    sys.exit(main())
