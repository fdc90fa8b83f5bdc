"""The suite runs on CPU with strict dtypes and a compilation cache, on one device of eight."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import os
from importlib import metadata
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Nearly all that a test waits for is compiling programs that run for milliseconds: LLVM's optimiser
# is left out, and MLIR's, which a loop of a hundredth of a second goes through, six hundred of them
# in a training step. Where compiling itself is the claim, the test asks for it
# (`test_exactness.py`).
UNOPTIMISED = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# Later versions know no other way, and XLA ends the process at an option that it does not know.
if metadata.version("jaxlib").startswith("0.10."):
    UNOPTIMISED += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", UNOPTIMISED)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Threads of scikit-learn and PyTorch spin while they wait for each other, on cores that other
# workers of the suite need.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))

import jax
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A program over eight devices takes a third longer to compile than over one, which is what a test
# sees unless it asks for `every_device`.
all_devices = jax.devices
jax.devices = lambda backend=None: all_devices(backend)[:1]

# Grain's worker processes read a flag; outside `absl.app.run` nobody parses it.
flags.FLAGS.mark_as_parsed()


def pytest_collection_finish():
    """Nothing imported so far is garbage; to look among it took half a second, time and again."""
    gc.collect()
    gc.freeze()


LONGEST = (
    "docs/test_examples",
    "predict/test_export",
    "explain/test_grad_cam",
    "train/test_attempts",
    "models/backbones/test_one_network",
    "docs/test_howto",
    "train/test_loop",
    "train/test_program",
    "interop/test_pretrained",
    "interop/test_torch_drifa_net",
    "train/test_exactness",
    "interop/test_golden_network",
    "test_experts_run",
    "ablate/test_running",
    "report/test_explained_cases",
    "train/test_evaluated",
    "models/test_rematerialisation",
)
"""Files that take more than 15 seconds, which are begun first: no worker is left alone with one."""


def pytest_collection_modifyitems(items):
    places = [ROOT / "tests" / f"{name}.py" for name in LONGEST]
    items.sort(key=lambda item: places.index(item.path) if item.path in places else len(places))


TOGETHER = {"explain": "explain", "predict": "predict", "serve": "predict"}
"""Folders whose files go to one worker, since the networks that they share take long to compile."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return TOGETHER.get(Path(file).parent.name, file)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def every_device(monkeypatch):
    """Eight devices instead of one, for a test that is about several."""
    monkeypatch.setattr(jax, "devices", all_devices)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the authors' golden numbers and real images, which only developers have."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the developers' data folder {folder}")
    return folder


@pytest.fixture(scope="session")
def reference():
    """`tests/reference/attention.py`, the attention in NumPy."""
    path = Path(__file__).parent / "reference" / "attention.py"
    spec = importlib.util.spec_from_file_location("attention_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_config():
    """Two epochs of four steps; keywords change `train`.

    The network is two channels wide and fuses once, which compiles in a quarter of the time that
    the paper's takes; the documents train that one.
    """
    from drifa_jax.config import from_mapping, modality

    def config(**train):
        return from_mapping(
            {
                "data": {
                    "modalities": {
                        "mri": modality(height=16, width=16, channels=1),
                        "ct": modality(height=16, width=16, channels=1),
                    },
                    "phantoms": {"num_train": 32, "num_validation": 12, "num_test": 20},
                    "augmentation": "flip",
                },
                "model": {
                    "width": 2,
                    "backbone": "resnet10",
                    "mfa_parts": (),
                    "fuse_at": (-1,),
                },
                "train": {"batch_size": 8, "num_epochs": 2, **train},
                "eval": {"batch_size": 8},
                "uncertainty": {"fit_decisions": False},
            }
        )

    return config


@pytest.fixture(scope="session")
def finished_run(tiny_config, tmp_path_factory, worker_id) -> Path:
    """The directory of a run that nothing disturbed; to be copied, not changed.

    The first of several test workers trains it for all.
    """
    from drifa_jax.commands.train import train_and_test

    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    workdir = folder / "finished_run"
    with (folder / "finished_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished_run.done").exists():
            # Optax raises a float to an integer power, which strict dtypes forbid.
            with jax.numpy_dtype_promotion("standard"):
                assert train_and_test(tiny_config(), workdir) == 0
            (folder / "finished_run.done").touch()
    return workdir
