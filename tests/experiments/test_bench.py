"""bench.py measures a method's stages: compiling, steps, operations, pipeline."""

import functools
import json
import os
import subprocess
import sys

import jax
import pytest

import bench
from costs import narrow
from ophjax.methods import dualsr
from ophjax.train import host


@pytest.fixture
def measured(monkeypatch, capsys):
    """Runs bench.py in this process: its exit code, what it printed and what it complained of."""
    monkeypatch.setattr(host, "prepare_compiler", lambda: None)
    monkeypatch.setattr(host, "keep_memory", lambda: None)
    monkeypatch.setattr(bench, "product_speed", lambda dtype: 1e10)

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["bench.py", *argv])
        return bench.main(), *capsys.readouterr()

    return call


def test_a_stage_is_measured(measured):
    cache = jax.config.jax_compilation_cache_dir
    code, out, _ = measured("--method", "fccl", "--preset", "smoke", "--steps", "2", "--cold", "--json")
    found = json.loads(out.splitlines()[-1])
    (stage,) = found["stages"]
    assert code == 0 and found["devices"] == jax.device_count() and stage["name"] == "classifier"
    # Three convolutions, forward and back, cost more than a matrix product of the batch, and all is timed.
    assert stage["gflop_per_step"] > 1e-3
    assert stage["share_of_matrix_product"] == pytest.approx(stage["gflop_per_step"] / stage["step_ms"] * 100, rel=1e-3)
    assert 0 < stage["compile_cached_s"] < stage["compile_cold_s"]
    assert jax.config.jax_compilation_cache_dir == cache
    assert "GFLOP a step" in out and "from the cache of programs" in out


def test_seeds_together_are_timed_against_separate_ones(measured):
    code, out, _ = measured("--method", "fccl", "--preset", "smoke", "--steps", "2", "--seeds", "2", "--json")
    found = json.loads(out.splitlines()[-1])
    (stage,) = found["stages"]
    ratio = 2 * stage["step_ms"] / stage["step_together_ms"]
    assert code == 0 and stage["seeds_times_step_over_together"] == pytest.approx(ratio)
    separate = 2 * (stage["compile_s"] + stage["steps"] * stage["step_ms"] / 1000)
    together = stage["compile_together_s"] + stage["steps"] * stage["step_together_ms"] / 1000
    assert found["separate_over_together"] == pytest.approx(separate / together)
    assert "2 separate runs take" in out


def test_a_method_without_a_choice_of_precision_says_so(measured):
    code, _, complaint = measured("--method", "hyperinit", "--preset", "smoke", "--precision", "bfloat16")
    assert code == 2 and "hyperinit" in complaint and "--precision" in complaint


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process's greatest resident memory")
def test_the_dry_runs_memory_against_a_process(tmp_path):
    """In a process of its own, with one device: no less than the dry run says, and scratch of convolutions besides."""
    settings = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, bench.__file__, "--method", "fccl", "--memory", "2048", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stderr
    (stage,) = json.loads(done.stdout.splitlines()[-1])["stages"]
    assert stage["said_mib"] > 100 and stage["taken_over_said"] == stage["taken_mib"] / stage["said_mib"]
    assert 0.85 < stage["taken_over_said"] < 2


def test_a_process_with_several_devices_is_refused(measured):
    code, _, complaint = measured("--method", "fccl", "--memory", "64")
    assert code == 2 and "one CPU device" in complaint


def test_a_compact_net_is_timed_against_the_dense_one(monkeypatch, measured):
    monkeypatch.setattr(narrow, "SIDES", (8,))
    monkeypatch.setattr(narrow, "BATCH", 1)
    monkeypatch.setattr(narrow, "SCALE", 2)
    monkeypatch.setattr(dualsr, "Config", functools.partial(dualsr.Config, blocks=1, width=8))
    code, out, _ = measured("--compact", "0.5", "--steps", "2", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and "without 50% of its channels" in out
    assert 0.4 < found["multiply_adds"] < 0.6
    assert all(found["sides"]["8"][what]["median"] > 0 for what in ("step", "prediction"))
    for ratio in ("0", "1.5"):
        code, _, complaint = measured("--compact", ratio)
        assert code == 2 and f"--compact {float(ratio)}" in complaint
