"""Groups of the configuration that change where and how fast a run goes, but no result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MeshConfig:
    """The grid ensemble x data x model of all devices of all processes."""

    data: int = 0  # devices that share each batch; 0 takes all that are left
    ensemble: int = 1  # devices, or rows of them, that members are spread over
    model: int = 1  # devices that share the channels of each wide layer
    shard_state: bool = True  # cut large parameters and moments over data, within a slice (FSDP)


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes, one a host or one a GPU; see docs/scaling.md."""

    coordinator: str = ""  # host:port of process 0; auto asks TPU, SLURM, Kubernetes or Open MPI
    num_processes: int = 0  # 0 takes JAX_NUM_PROCESSES, or finds it with auto
    process_id: int = -1  # -1 takes JAX_PROCESS_ID, or finds it with auto
    connect_seconds: int = 300  # to wait for the other processes at the start
    lost_seconds: int = 60  # without a sign of life, after which a process counts as lost


@dataclass(frozen=True)
class ProfileConfig:
    """A trace that TensorBoard and Perfetto open."""

    steps: str = ""  # FIRST-LAST, counted from the start of this attempt, e.g. 10-14


@dataclass(frozen=True)
class TrackingConfig:
    """Where the scalars and files of a run go beside its own folder; see docs/tracking.md."""

    loggers: tuple[str, ...] = ("tensorboard",)  # of tensorboard, mlflow, wandb
    store: str = ""  # of mlflow: sqlite:///FILE or http://HOST; empty asks MLFLOW_TRACKING_URI
    experiment: str = "drifa"  # that the runs belong to; of wandb the project
    keep_checkpoints: bool = True  # hand the checkpoints on as well, when training has ended
