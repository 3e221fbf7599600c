"""Several seeds in one program: each is the run that it would be alone; together they are an ensemble."""

import csv
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run
from ophjax.errors import InputError
from ophjax.train import loop
from ophjax.train.checkpoint import Checkpoints
from ophjax.train.logs import read_events
from ophjax.train.report import page
from ophjax.train.report.reading import read_run
from ophjax.train.restore import read_single, restore
from ophjax.train.seeds import Abreast, mean, side_by_side
from ophjax.types import Method, TrainState

# One method is enough here: that every method's step works under vmap is a test of the contract.
COMMAND = ["--method", "fccl", "--preset", "smoke", "--method.steps", "4", "--train.eval-every", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Seeds 3 and 4 in one program, and each alone."""
    folder = tmp_path_factory.mktemp("seeds")
    command = [*COMMAND, "--runs", str(folder), "--name"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_report", lambda folder: folder)  # drawing takes longer than the steps
        with jax.debug_key_reuse(False):  # the checker cannot follow keys under vmap
            assert run.run([*command, "both", "--seeds", "2", "--train.seed", "3"]) == 0
        for seed in ("3", "4"):
            assert run.run([*command, seed, "--train.seed", seed]) == 0
        yield folder


def scores_of(folder):
    return next(event for event in read_events(folder / "metrics.jsonl") if event["event"] == "test")


def final(folder):
    with closing(Checkpoints(folder / "checkpoints", read_only=True)) as saved:
        return saved.read(saved.steps()[-1])


def probabilities(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return np.array([[float(v) for k, v in row.items() if k.startswith("prob")] for row in csv.DictReader(file)])


def test_each_seed_is_the_run_it_would_be_alone(runs):
    both = final(runs / "both")
    for number, seed in enumerate(("3", "4")):
        alone = final(runs / seed)
        for part in ("params", "extra"):
            ours, theirs = jax.tree.leaves(both[part]), jax.tree.leaves(alone[part])
            ours = np.concatenate([np.ravel(leaf[number]) for leaf in ours])
            theirs = np.concatenate([np.ravel(leaf) for leaf in theirs])
            # Adam may turn rounding of a tiny gradient into a step of the rate: nearly all agree closely.
            assert (np.abs(ours - theirs) > 1e-4).mean() < 0.01
        there, here = scores_of(runs / "both")["seeds"][seed], scores_of(runs / seed)["scores"]
        assert there.keys() == here.keys()
        np.testing.assert_allclose([there[k] for k in here], [here[k] for k in here], atol=0.02)
    first, second = (np.concatenate([np.ravel(x[i]) for x in jax.tree.leaves(both["params"])]) for i in range(2))
    assert np.abs(first - second).max() > 0.1  # they are different nets


def test_together_they_are_an_ensemble(runs):
    averaged = (probabilities(runs / "3") + probabilities(runs / "4")) / 2
    np.testing.assert_allclose(probabilities(runs / "both"), averaged, atol=2e-3)
    restored = restore(runs / "both")
    batch = {name: jnp.zeros((2, *spec.shape), spec.dtype) for name, spec in restored.example.items()}
    assert restored.method.predict(jax.random.key(0), restored.state, batch)["probs"].shape[0] == 2
    pages = [page.render(read_run(runs / name)) for name in ("both", "3")]
    assert "By seed" in pages[0] and "<td>0." in pages[0].partition("By seed")[2] and "By seed" not in pages[1]


def test_a_run_of_several_seeds_stops_and_goes_on(runs, monkeypatch):
    saved = loop.Checkpoints.save

    def save(self, step, *args, **rest):
        saved(self, step, *args, **rest)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Checkpoints, "save", save)
    command = [*COMMAND, "--runs", str(runs), "--name", "again", "--seeds", "2", "--train.seed", "3"]
    with jax.debug_key_reuse(False):
        with pytest.raises(KeyboardInterrupt):
            run.run(command)
        assert run.run([*command, "--resume"]) == 0
    ours, theirs = (jax.tree.leaves(final(runs / name)["params"]) for name in ("again", "both"))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_net_is_asked_for_where_one_is_needed(runs):
    with pytest.raises(InputError, match="2 seeds side by side"):
        read_single(runs / "both")
    assert read_single(runs / "3")["method"] == "fccl"
    with pytest.raises(InputError, match=r"--train\.seeds is 0"):
        run.run([*COMMAND, "--seeds", "0"])
    with pytest.raises(InputError, match="--init"):
        run.run([*COMMAND, "--seeds", "2", "--init", f"hyper:{runs}"])


def test_means_keep_the_type():
    assert mean(jnp.array([[1.0], [2.0]])).tolist() == [1.5]
    found = mean(jnp.array([[10], [255]], jnp.uint8))
    assert found.dtype == jnp.uint8 and found.tolist() == [132]
    with pytest.raises(TypeError, match="int32"):  # class 1 is not the mean of the classes 0 and 2
        mean(jnp.array([[0], [2]]))


def test_what_is_a_nets_own_is_laid_side_by_side():
    def predict(key, state, batch):
        del key
        return {"probs": batch["x"] * state.params["net"], "features": batch["x"] + state.params["net"]}

    method = side_by_side(Method(None, (), predict, None, None, "auc", own=("features",)), (3, 4))
    state = TrainState(step=jnp.zeros(()), params={"net": jnp.array([1.0, 3.0])}, opt={}, extra={})
    found = method.predict(jax.random.key(0), state, {"x": jnp.array([[1.0, 2.0]])})
    assert found["probs"].tolist() == [[2, 4]] and found["features"].tolist() == [[2, 3, 4, 5]]


def test_streams_lie_abreast_and_go_on_where_they_were():
    class Counting:
        def __init__(self, at):
            self.at = at

        def __next__(self):
            self.at += 1
            return {"x": np.full((3, 2), self.at)}

        def get_state(self):
            return {"at": self.at}

        def set_state(self, state):
            self.at = state["at"]

    stream = Abreast([Counting(0), Counting(10)])
    batch = next(stream)
    assert batch["x"].shape == (3, 2, 2) and batch["x"][0, :, 0].tolist() == [1, 11]
    state = stream.get_state()
    other = Abreast([Counting(5), Counting(5)])
    other.set_state(state)
    assert next(other)["x"][0, :, 0].tolist() == [2, 12]
