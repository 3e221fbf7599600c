"""Strict settings for every test: eight virtual CPU devices, no silent broadcasting, no key used twice.

The tests run on several cores (pytest-xdist), file by file; ``-n 0`` runs them in one process.
"""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from xdist.scheduler import LoadScopeScheduling

from ophjax.train import host

host.prepare_compiler()  # first, as in a user's run
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# The tests compile much and run little.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # of the processes that tests start
if jax.__version_info__[:2] == (0, 10):
    # XLA's older way to emit fused loops compiles a train step in half the time; later versions have no such flag. It
    # is given by the environment, where processes started by tests see it too.
    # Two programs at a time take the cores anyway, so each is compiled in one piece. Old instructions compile faster.
    faster = ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    faster += ["--xla_cpu_max_isa=SSE4_2"] if platform.machine() == "x86_64" else []
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *faster]).strip()
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "ophjax-tests")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class ByFile(LoadScopeScheduling):
    """Keeps the tests of a file on one core, since they share programs and runs; those of every method by method.

    Not xdist's own groups: pytest 9.2 takes no notice of the names by which xdist 3.8 tells them apart.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, test = nodeid.split("::", 1)
        by_method = file.endswith(("test_contract.py", "test_deployment.py")) and "[" in test
        return file + test[test.index("[") :] if by_method else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The contract, which takes longest, goes first."""
    items.sort(key=lambda item: item.path.name != "test_contract.py")


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Frees the compiled programs of a file when its tests are done; all together they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets named by OPHJAX_DATA; tests that need it are skipped where it is not set."""
    folder = os.environ.get("OPHJAX_DATA")
    if not folder:
        pytest.skip(
            "OPHJAX_DATA is not set: give it the folder that holds drishti_gs1, ph2, ddti_cropped, shenzhen_cxr, "
            "vessels_drive_chase, bubil_multirater, pneumoniamnist and refuge_mini"
        )
    return Path(folder)
