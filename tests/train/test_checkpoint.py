"""Checkpoints of a small state: what is kept, what is offered, what is refused."""

import shutil
import warnings
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ophjax.errors import InputError
from ophjax.train import mesh
from ophjax.train.checkpoint import Checkpoints, check_networks, take_networks
from ophjax.types import TrainState


def make_state(value, *, model=1, width=4, networks=("segmenter", "diagnosis")):
    """A state filled with one value, the large kernel split over ``model``."""
    state = TrainState(
        step=jnp.full((), value, jnp.int32),
        params={name: {"kernel": jnp.full((width, 6), value, jnp.float32)} for name in networks},
        opt={"all": jnp.full(3, value, jnp.float32)},
        extra={"batch_stats": {name: {"mean": jnp.full(width, value, jnp.float32)} for name in networks}},
    )
    return jax.device_put(state, mesh.state_shardings(state, mesh.make_mesh(model=model), small=8))


def target(state):
    return mesh.with_shardings(state, jax.tree.map(lambda leaf: leaf.sharding, state))


def assert_filled(tree, value):
    assert all((np.asarray(leaf) == value).all() for leaf in jax.tree.leaves(tree))


@pytest.fixture
def saved(tmp_path):
    """Five checkpoints with scores of which that of step 2 is the best; two are kept beside it."""
    with closing(Checkpoints(tmp_path / "checkpoints", keep=2)) as checkpoints:
        for step, score in enumerate([0.5, 0.9, 0.6, 0.7, None], start=1):
            checkpoints.save(step, make_state(step), {"done": step}, watch=score)
        checkpoints.wait()
        yield checkpoints


def test_the_last_and_the_best_are_kept(saved):
    assert saved.steps() == [2, 4, 5]
    assert saved.meta(4) == {"done": 4}
    restored = saved.restore(2, target(make_state(0)))
    assert isinstance(restored, TrainState)
    assert_filled(restored, 2)


def test_read_gives_plain_arrays(saved):
    found = saved.read(5)
    assert {type(leaf) for leaf in jax.tree.leaves(found)} == {np.ndarray}
    assert_filled(found, 5)


@pytest.mark.parametrize("model", [2, 8])
def test_another_mesh(saved, model):
    """Saved replicated, restored split: the same numbers, placed as the target says."""
    like = target(make_state(0, model=model))
    restored = saved.restore(5, like)
    assert_filled(restored, 5)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(lambda leaf: leaf.sharding, like)


def test_another_shape_is_refused(saved):
    wider, fewer = make_state(0, width=8), make_state(0, networks=("segmenter",))
    for other, word in ((wider, r"has the shape \(4(, 6)?,?\), not \(8"), (fewer, "structures do not match")):
        with pytest.raises(InputError, match=f"does not fit.*{word}") as caught:
            saved.restore(5, target(other))
        assert str(saved.folder / "5") in str(caught.value) and "\n" not in str(caught.value)


def test_what_was_not_finished_is_not_offered(saved, tmp_path):
    """A process that dies while it saves leaves a folder with another name, or one without the mark of the end."""
    with closing(Checkpoints(tmp_path / "dead")) as dead:
        dead.save(1, make_state(1), {})
        dead.wait()
    folder = tmp_path / "dead"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    shutil.copytree(folder / "1", folder / "3")
    (folder / "3" / "_CHECKPOINT_METADATA").unlink()
    for path in (folder / "3").rglob("commit_success.txt"):
        path.unlink()
    with closing(Checkpoints(folder, read_only=True)) as looked:
        assert 2 not in looked.steps()
    assert (folder / "2.orbax-checkpoint-tmp").exists(), "reading another run's checkpoints changes nothing"
    with closing(Checkpoints(folder)) as again:
        assert 2 not in again.steps()
        again.save(2, make_state(2), {})
        again.wait()
        assert_filled(again.restore(2, target(make_state(0))), 2)


@pytest.mark.parametrize(("error", "mend"), [(OSError("no space"), "make room"), (TimeoutError(), "the disk answers")])
def test_what_is_to_be_done_where_one_is_not_written(saved, monkeypatch, error, mend):
    """A full disk and one that does not answer are told apart."""

    def fail():
        raise error

    monkeypatch.setattr(saved._manager, "wait_until_finished", fail)
    with pytest.raises(InputError, match=rf"could not be written.*are whole: .*{mend}"):
        saved.wait()


def test_damaged_notes(saved):
    path = saved.folder / "5" / "meta" / "metadata"
    path.write_text('{"done": ')
    with pytest.raises(InputError, match="Delete that folder") as caught:
        saved.meta(5)
    assert str(saved.folder / "5") in str(caught.value)
    assert saved.meta(4) == {"done": 4}


def test_leaves_that_were_never_begun_are_not_warned_of(tmp_path):
    """After an error Orbax drops coroutines of these names; Python's warning would stand behind the one paragraph."""

    async def async_serialize_from_host():
        pass

    async def somebody_elses():
        pass

    with warnings.catch_warnings(record=True) as said, closing(Checkpoints(tmp_path)):
        warnings.filterwarnings("always", ".*somebody_elses.*")
        for dropped in (async_serialize_from_host, somebody_elses):
            dropped()
    assert len(said) == 1 and "somebody_elses" in str(said[0].message)


def test_networks_of_another_run(saved):
    """The named network and its statistics are taken over from the newest checkpoint, and nothing else."""
    fresh = make_state(0, model=2)
    taken = take_networks(fresh, [f"segmenter={saved.folder.parent}"])
    assert_filled((taken.params["segmenter"], taken.extra["batch_stats"]["segmenter"]), 5)
    assert_filled((taken.params["diagnosis"], taken.extra["batch_stats"]["diagnosis"], taken.opt, taken.step), 0)
    assert jax.tree.map(lambda leaf: leaf.sharding, taken) == jax.tree.map(lambda leaf: leaf.sharding, fresh)
    both = take_networks(fresh, [f"{name}={saved.folder.parent}" for name in ("segmenter", "diagnosis")])
    assert_filled((both.params, both.extra), 5)


def test_networks_for_several_seeds(saved, tmp_path):
    """A single net is given to every seed; a run of as many seeds gives each its own; any other number is refused."""

    def abreast(state, seeds):
        parts = {name: jax.tree.map(lambda leaf: jnp.stack([leaf] * seeds), getattr(state, name)) for name in
                 ("params", "opt", "extra")}  # fmt: skip
        return state.replace(**parts)

    fresh, source = abreast(make_state(0), 3), f"segmenter={saved.folder.parent}"
    taken = take_networks(fresh, [source], seeds=3)
    assert jax.tree.map(jnp.shape, taken) == jax.tree.map(jnp.shape, fresh)
    assert_filled((taken.params["segmenter"], taken.extra["batch_stats"]["segmenter"]), 5)
    assert_filled(taken.params["diagnosis"], 0)
    with closing(Checkpoints(tmp_path / "three" / "checkpoints")) as three:
        three.save(1, abreast(make_state(7), 3), {})
        three.wait()
    source = f"segmenter={tmp_path / 'three'}"
    assert_filled(take_networks(fresh, [source], seeds=3).params["segmenter"], 7)
    for state, seeds in ((abreast(make_state(0), 2), 2), (make_state(0), 1)):
        with pytest.raises(InputError, match="one seed or as many as this run's"):
            check_networks(state, [source], seeds=seeds)


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("segmenter", {}, "expected NETWORK=RUN_FOLDER"),
        ("segmenter={run}/nowhere", {}, "expected NETWORK=RUN_FOLDER"),
        ("critic={run}", {}, "has the networks diagnosis, segmenter"),
        ("segmenter={run}", {"width": 8}, "must have the shapes of this run's"),
        ("segmenter={run}", {"networks": ("diagnosis",)}, "must have the shapes of this run's"),
    ],
)
def test_wrong_networks(saved, source, options, words):
    """They are refused for an abstract state as well, and there a right one passes."""
    source, state = source.format(run=saved.folder.parent), make_state(0, **options)
    abstract = jax.eval_shape(lambda: state)
    for refuse in (lambda: take_networks(state, [source]), lambda: check_networks(abstract, [source])):
        with pytest.raises(InputError, match=words) as caught:
            refuse()
        assert source in str(caught.value)
    if "diagnosis" in state.params and not options.get("width"):
        check_networks(abstract, [f"diagnosis={saved.folder.parent}"])


def test_networks_of_a_run_without_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="has the networks none"):
        take_networks(make_state(0), [f"segmenter={tmp_path}"])
