"""Settings of the process: what compiles fast code, and memory given back."""

import importlib.util
import os

import jax
import pytest

from ophjax.train import host

EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Every setting as it was, afterwards."""
    kept = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    yield
    jax.config.update("jax_compilation_cache_dir", kept[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept[1])


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("", EIGEN),
        ("--xla_cpu_max_isa=AVX2", f"--xla_cpu_max_isa=AVX2 {EIGEN}"),
        ("--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_experimental_ynn_fusion_type="),
    ],
)
def test_convolutions_by_eigen_unless_the_flags_speak_of_it(monkeypatch, tmp_path, given, left):
    monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):  # nothing is added twice
        host.prepare_compiler(tmp_path)
        assert os.environ["XLA_FLAGS"] == left


@pytest.mark.parametrize("version", [(0, 9, 2), (0, 13, 0), (1, 0, 0)])
def test_versions_that_may_not_know_the_flag_do_not_get_it(monkeypatch, tmp_path, version):
    """XLA ends the process at a flag that it does not know."""
    monkeypatch.setattr(jax, "__version_info__", version)
    host.prepare_compiler(tmp_path)
    assert "XLA_FLAGS" not in os.environ


def test_a_tpu_host_keeps_its_flags(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    host.prepare_compiler(tmp_path)
    assert "XLA_FLAGS" not in os.environ


def test_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    host.prepare_compiler(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    host.prepare_compiler(tmp_path / "other")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_freed_memory_is_given_back():
    """What malloc holds after many small blocks were freed is less once it was told to let go."""
    status = "/proc/self/status"
    if not os.path.exists(status):
        pytest.skip("only Linux tells a process's resident memory in /proc/self/status")

    def resident():
        with open(status) as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

    blocks = [bytes(4096) for _ in range(20_000)]  # 80 MB, below the size that has pages of its own
    kept = blocks[-1]
    del blocks
    host.release_memory()
    least = resident()
    blocks = [bytes(4096) for _ in range(20_000)]
    full = resident()
    last = blocks[-1]
    del blocks
    host.release_memory()
    assert full - least > 60_000
    assert resident() - least < 0.3 * (full - least), "in KiB"
    assert kept == last
