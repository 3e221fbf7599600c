"""Few-shot transfer: who is compared with whom, at which rate, on which images."""

import jax
import numpy as np
import pytest
from made_hyper import write_run

from ophjax import trees
from ophjax.data import shapes
from ophjax.data.augment import centred, unit
from ophjax.errors import InputError
from ophjax.nets.hyperinit import hyper_init, recalibrate
from ophjax.nets.unet import UNet
from ophjax.train import hyper, transfer
from ophjax.train.transfer import Bench, Trial, best_rates, chosen, draw_shots, he_start, read, table


def trial(start, rate, val, test, *, seed=0, losses=(1.0, 0.5), net="resnet", shots=5):
    return Trial(net, shots, seed, start, rate, list(losses), val, test)


def test_each_start_gets_its_own_best_rate_by_validation():
    trials = [
        trial("he", 0.01, 0.5, 0.9), trial("he", 0.1, 0.6, 0.2),
        trial("hyper", 0.01, 0.7, 0.3), trial("hyper", 0.1, 0.7, 0.4, losses=(2.0, 2.0)),
    ]  # fmt: skip
    assert best_rates(trials) == {("resnet", 5, "he"): 0.1, ("resnet", 5, "hyper"): 0.01}
    assert [t.test for t in chosen(trials)["resnet", 5, "he"]] == [0.2]
    seeds = [trial("he", rate, val, 0.5, seed=s) for s, rate, val in
             ((0, 0.01, 0.9), (1, 0.01, 0.1), (0, 0.1, 0.6), (1, 0.1, 0.6))]  # fmt: skip
    assert best_rates(seeds) == {("resnet", 5, "he"): 0.1}, "the mean over seeds decides"


def test_the_table_pairs_seeds():
    found = (("he", 0, 0.5, 1.0), ("he", 1, 0.6, 2.0), ("hyper", 1, 0.8, 1.5), ("hyper", 0, 0.6, 0.9))
    trials = [trial(start, 0.1, 0.5, test, seed=seed, losses=[loss]) for start, seed, test, loss in found]
    lines = table(trials).splitlines()
    assert lines[2] == (
        "| resnet | 5 | he | 0.1 | 1.500 ± 0.707 | 0.550 ± 0.071 | -0.300 ± 0.283 | 0.150 ± 0.071 | 2 |"
    )
    assert lines[3].endswith("| 1.200 ± 0.424 | 0.700 ± 0.141 |  |  | 2 |")


def test_shots_are_balanced_fixed_by_seed_and_enough():
    data = shapes.make(shapes.Config(size=16, train=40, val=4, test=4))
    labels = np.arange(40) % 4
    rows = draw_shots(data.splits["train"], labels, 5, 0)
    assert np.bincount(labels[rows]).tolist() == [5] * 4 and len(set(rows.tolist())) == 20
    assert rows.tolist() == draw_shots(data.splits["train"], labels, 5, 0).tolist()
    assert rows.tolist() != draw_shots(data.splits["train"], labels, 5, 1).tolist()
    with pytest.raises(InputError, match="--shots 11"):
        draw_shots(data.splits["train"], labels, 11, 0)


@pytest.fixture(scope="module")
def bench():
    data = shapes.make(shapes.Config(size=16, task="target", train=16, val=8, test=8))
    with pytest.MonkeyPatch.context() as patch:  # the U-Net of the experiment takes half a minute to compile
        patch.setitem(transfer.UNSEEN, "unet", lambda _, regions: UNet(regions, width=8, depth=1))
        return Bench("unet", data, steps=3, batch_size=8), data


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A hypernetwork and its parameters."""
    folder = tmp_path_factory.mktemp("hyper") / "run"
    write_run(folder)
    return hyper.load_hyper(folder)


def test_starts_share_their_head_and_differ_elsewhere(bench, loaded, monkeypatch):
    net, _ = bench
    ghn, params = loaded
    # Compiled; op by op it takes many times as long.
    untrained = jax.jit(transfer.untrained, static_argnums=(0, 2))
    monkeypatch.setattr(transfer, "untrained", untrained)
    made = {}
    for kind in transfer.STARTS:
        made[kind] = trees.named_leaves(net.start(kind, jax.random.key(0), ghn, params, seed=3))
    for kind, leaves in made.items():
        assert leaves.keys() == made["he"].keys()
        np.testing.assert_array_equal(leaves["params/head/kernel"], made["he"]["params/head/kernel"], err_msg=kind)
        others = [made[other] for other in made if other != kind]
        assert not any(
            np.array_equal(leaves["params/down1/conv1/kernel"], o["params/down1/conv1/kernel"]) for o in others
        )
    kernel = made["he"]["params/down1/conv1/kernel"]
    assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (9 * kernel.shape[2])), rel=0.1)


def test_predicted_networks_are_scored_untuned(bench, loaded):
    """The score is that of the predicted tree with the statistics of the given images."""
    net, data = bench
    ghn, params = loaded
    few, test = read(data.splits["train"]), read(data.splits["test"])
    found = net.untuned(ghn, params, few, test)
    make = hyper_init(params, net.module, net.image, ghn=ghn, head="predict", noise=0)
    images = centred(unit(few.image))
    variables = recalibrate(net.module, jax.jit(make)(jax.random.key(1)), [images])
    assert found == pytest.approx(net.score(variables, test), abs=1e-6)


def test_a_trial_tunes_and_scores(bench):
    """Loss and Dice of a U-Net over three steps; zero steps' worth of rate changes nothing."""
    net, data = bench
    few, val = read(data.splits["train"], range(8)), read(data.splits["val"])
    variables = jax.jit(lambda key: he_start(key, net.module, net.image, net.graph))(jax.random.key(0))
    done = net.trial("he", 2, 0, 0.1, variables, few, val, val)
    assert len(done.losses) == 3 and done.losses[-1] < done.losses[0]
    assert done.val == done.test and 0 <= done.val <= 1 and done.loss == pytest.approx(np.mean(done.losses))
    logits = net.answer(variables, val.image)
    probs, truth = np.asarray(jax.nn.sigmoid(logits)) > 0.5, val.mask > 0
    dice = 2 * (probs & truth).sum((1, 2, 3)) / (probs.sum((1, 2, 3)) + truth.sum((1, 2, 3)))
    assert net.score(variables, val) == pytest.approx(dice.mean(), abs=1e-5)


def test_the_figure_is_drawn(tmp_path):
    trials = [
        trial(start, 0.1, 0.5, 0.5, seed=seed, losses=[1.0, 0.5, 0.2]) for start in transfer.STARTS for seed in (0, 1)
    ]
    transfer.draw(trials, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_networks_that_the_data_cannot_serve_are_refused():
    blind = shapes.make(shapes.Config(size=16, train=4, val=4, test=4))._replace(regions=(), classes=())
    for name in ("unet", "resnet"):
        with pytest.raises(InputError, match="--nets"):
            Bench(name, blind, steps=1, batch_size=4)
