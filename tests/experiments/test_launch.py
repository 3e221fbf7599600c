"""The launchers: their commands, with stand-ins for srun, scontrol and python."""

import os
import subprocess
from pathlib import Path

import pytest

import presets

LAUNCH = Path(presets.__file__).parent / "launch"


def launch(script, folder, *words, code=0, **env):
    """Runs a launcher where srun, scontrol and python write down how they were called; python ends with ``code``."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("srun", "scontrol", "python"):
        end = f"exit {code}" if name != "scontrol" else "exit 0"
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/called\n{end}\n')
        (tools / name).chmod(0o755)
    (folder / "called").write_text("")
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", LAUNCH / script, *words], capture_output=True, text=True, check=False, cwd=folder, env=path | env
    )
    return done, (folder / "called").read_text().splitlines()


def test_slurm_starts_resumes_and_queues_again(tmp_path):
    done, called = launch("slurm.sh", tmp_path, "--method", "fccl", SLURM_JOB_ID="7")
    assert done.returncode == 0
    assert called == ["srun --kill-on-bad-exit=0 python experiments/run.py --distributed --method fccl"]
    text = (LAUNCH / "slurm.sh").read_text()
    line = next(line for line in text.splitlines() if "JAX_LOCAL_DEVICE_IDS" in line)
    told = {"SLURM_GPUS_ON_NODE": "4"}
    shown = subprocess.run(
        ["bash", "-c", f"{line}; echo $JAX_LOCAL_DEVICE_IDS"], capture_output=True, text=True, env=told
    )
    assert shown.stdout.strip() == "0,1,2,3", "a process has all GPUs of its host"
    done, called = launch("slurm.sh", tmp_path, "--method", "fccl", code=75, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1")
    assert done.returncode == 0
    assert called[0].endswith("--method fccl --resume") and called[1] == "scontrol requeue 7"
    done, called = launch("slurm.sh", tmp_path, code=2, SLURM_JOB_ID="7")
    assert done.returncode == 2 and len(called) == 1


def test_spot_goes_on_where_there_is_a_run(tmp_path):
    done, called = launch("spot.sh", tmp_path, "--method", "fccl", "--name", "long")
    assert called == ["python experiments/run.py --method fccl --name long"] and done.returncode == 0
    for runs, words in (("runs", ()), ("kept", ("--runs", "kept"))):
        (tmp_path / runs / "long").mkdir(parents=True)
        (tmp_path / runs / "long" / "metrics.jsonl").touch()
        done, called = launch("spot.sh", tmp_path, "--method", "fccl", "--name", "long", *words, code=75)
        assert called[0].endswith("--resume") and done.returncode == 75
    done, called = launch("spot.sh", tmp_path, "--method", "fccl", "--name=long", "--runs=kept")
    assert called[0].endswith("--name=long --runs=kept --resume")
    done, called = launch("spot.sh", tmp_path, "--method", "fccl")
    assert done.returncode == 2 and "--name" in done.stderr and not called


@pytest.mark.parametrize("script", ["slurm.sh", "spot.sh"])
def test_scripts_are_sound_bash(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    assert os.access(LAUNCH / script, os.X_OK)
