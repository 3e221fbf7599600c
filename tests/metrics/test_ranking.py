"""Scores of a split: by hand, against scikit-learn, and the behaviour of the bootstrap."""

import time
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from ophjax.errors import InputError
from ophjax.metrics import gamma, ranking


def make_split(count=400, classes=2, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + (labels[:, None] == np.arange(classes))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if classes == 2:
        # Two digits leave many ties, which a wrong treatment would betray.
        return (probs[:, 1].round(2) if ties else probs[:, 1]), labels
    return probs, labels


def test_auc_by_hand():
    # Positives .8 .5, negatives .5 .2: of four pairs three are in order and one is a tie, 3.5 / 4.
    assert ranking.auc(np.array([0.8, 0.5, 0.5, 0.2]), np.array([1, 1, 0, 0])) == 0.875
    assert ranking.auc(np.full(5, 0.3), np.array([1, 0, 0, 1, 0])) == 0.5
    assert ranking.auc(np.array([0.1, 0.2, 0.3]), np.array([1, 1, 0])) == 0.0


def test_auc_is_scikit_learns():
    for seed in range(5):
        probs, labels = make_split(seed=seed)
        # Both are ratios of exactly counted pairs; one rounding each.
        assert ranking.auc(probs, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, probs), abs=1e-12)


def test_weights_are_repetitions():
    probs, labels = make_split(60)
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=20).astype(float)
    together = ranking.binary_scores(probs, labels, weights=weights)
    for row in range(20):
        index = np.repeat(np.arange(60), weights[row].astype(int))
        alone = ranking.binary_scores(probs[index], labels[index])
        for name, values in together.items():
            assert values[row] == pytest.approx(alone[name][0], abs=1e-12), name


def test_roc_by_hand_and_its_area():
    x, y = ranking.roc(np.array([0.8, 0.5, 0.5, 0.2]), np.array([1, 1, 0, 0]))
    np.testing.assert_array_equal(x, [0, 0, 0.5, 1])
    np.testing.assert_array_equal(y, [0, 0.5, 1, 1])
    probs, labels = make_split()
    x, y = ranking.roc(probs, labels)
    assert np.trapezoid(y, x) == pytest.approx(ranking.auc(probs, labels), abs=1e-12)


def test_binary_scores_by_hand():
    probs = np.array([0.9, 0.6, 0.5, 0.4, 0.3, 0.7])
    labels = np.array([1, 1, 1, 1, 0, 0])
    # At 0.5, itself positive: TP 3, FN 1, TN 1, FP 1.
    scores = {name: value[0] for name, value in ranking.binary_scores(probs, labels).items()}
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["sensitivity"] == pytest.approx(3 / 4)
    assert scores["specificity"] == pytest.approx(1 / 2)
    assert scores["f1"] == pytest.approx(6 / 8)
    # Of eight pairs the negative .3 loses all four, and .7 loses to .9 only: 5 / 8.
    assert scores["auc"] == pytest.approx(5 / 8)


def test_multiclass_scores_are_scikit_learns():
    probs, labels = make_split(classes=4)
    scores = {name: value[0] for name, value in ranking.multiclass_scores(probs, labels).items()}
    predicted = probs.argmax(1)
    expected = {
        "auc": sklearn_metrics.roc_auc_score(labels, probs, multi_class="ovr", average="macro"),
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
    }
    assert scores == pytest.approx(expected, abs=1e-12)


def test_confusion_and_kappa():
    labels, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(ranking.confusion(predicted, labels, 3), [[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    probs, labels = make_split(classes=4)
    expected = sklearn_metrics.cohen_kappa_score(labels, probs.argmax(1), weights="quadratic")
    assert ranking.quadratic_kappa(probs.argmax(1), labels, 4) == pytest.approx(expected, abs=1e-12)


def test_confusion_of_many_classes():
    """Counts of resamples as by hand, in the memory of the result and not of examples x cells; no class, no count."""
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 200, 2000), rng.integers(0, 200, 2000)
    labels[:3] = -1
    weights = rng.integers(0, 3, (2, 2000)).astype(float)
    tracemalloc.start()
    counts = ranking.confusion(predicted, labels, 200, weights=weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = np.zeros((2, 200, 200))
    for row, weight in zip(expected, weights, strict=True):
        np.add.at(row, (labels[3:], predicted[3:]), weight[3:])
    np.testing.assert_array_equal(counts, expected)
    assert peak < 8 * counts.nbytes  # two tables of 0.3 MB each; examples x cells are 640 MB


def test_kappa_where_chance_is_perfect():
    """NaN here, so that resamples leave it out; 1 in the official score of GAMMA."""
    ones = np.ones(4, int)
    assert np.isnan(ranking.quadratic_kappa(ones, ones, 3)) and gamma.kappa(ones, ones) == 1.0
    labels, predicted = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 2])
    assert gamma.kappa(predicted, labels) == ranking.quadratic_kappa(predicted, labels, 3)
    twice = ranking.quadratic_kappa(predicted, labels, 3, weights=np.full((2, 5), 2.0))
    np.testing.assert_allclose(twice, gamma.kappa(predicted, labels), rtol=1e-12)


def test_bootstrap_of_a_mean_is_the_textbook_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = ranking.bootstrap(lambda v, weights: weights @ v / weights.sum(1), values, samples=4000)
    error = values.std() / 20
    # Mean -+ 1.96 standard errors. The quantiles of 4000 draws are good to about 0.04 standard errors; 5 times that.
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_bootstrap_covers_the_truth():
    # Positives N(1, 1), negatives N(0, 1): the true AUC is Phi(1 / sqrt 2) = 0.7602.
    rng, inside = np.random.default_rng(0), 0
    for trial in range(200):
        labels = np.repeat([0, 1], 50)
        probs = 1 / (1 + np.exp(-rng.normal(size=100) - labels))
        scores = ranking.classification_scores(probs, labels, seed=trial, samples=300)
        inside += scores["auc_low"] <= 0.7602 <= scores["auc_high"]
    # 95 % of 200 is 190, give or take 3 (binomial); percentile intervals of 100 examples fall a little short.
    assert 178 <= inside <= 199


def test_clusters_are_drawn_whole():
    """Every example three times over says nothing new: with clusters the interval is that of the examples alone."""
    values = {"dice": np.random.default_rng(0).normal(size=40)}
    alone = ranking.mean_scores(values)
    thrice = {"dice": np.tile(values["dice"], 3)}
    patients = np.tile(np.arange(40), 3)
    assert ranking.mean_scores(thrice, clusters=patients) == pytest.approx(alone, rel=1e-12)
    wide, narrow = (one["dice_high"] - one["dice_low"] for one in (alone, ranking.mean_scores(thrice)))
    assert narrow == pytest.approx(wide / 3**0.5, rel=0.15)
    # Clusters of one each, whatever their numbers, are examples.
    assert ranking.mean_scores(values, clusters=np.arange(40)[::-1] * 7) == alone
    probs, labels = make_split()
    both = ranking.classification_scores(
        np.tile(probs, 2), np.tile(labels, 2), clusters=np.tile(np.arange(len(labels)), 2)
    )
    assert both == pytest.approx(ranking.classification_scores(probs, labels), rel=1e-12)
    bands = [
        ranking.roc_band(
            np.tile(probs, n), np.tile(labels, n), np.linspace(0, 1, 11), clusters=np.tile(np.arange(len(labels)), n)
        )
        for n in (1, 2)
    ]
    np.testing.assert_allclose(*bands)


def test_a_cluster_of_two_classes_counts_once():
    """Two eyes of a patient may differ: no draw is without the rare class, and the eyes stay together."""
    labels, patients = np.array([0, 0, 0, 1, 0, 1]), np.array([1, 1, 2, 2, 3, 3])
    seen = []
    ranking.bootstrap(lambda y, weights: seen.append(weights) or weights @ y, labels, strata=labels, clusters=patients)
    weights = np.concatenate(seen)
    assert (weights[:, ::2] == weights[:, 1::2]).all() and (weights[:, 0] == 1).all()
    assert (weights[:, 2] + weights[:, 4] == 2).all() and weights[:, 2].max() == 2
    assert ranking.patients({"label": labels}) is None
    np.testing.assert_array_equal(ranking.patients({"patient": patients}, labels == 1), [2, 3])


def test_strata_keep_the_counts_of_each_class():
    labels = np.array([0] * 30 + [1] * 3)
    positives, _ = ranking.bootstrap(lambda y, weights: weights @ y, labels, strata=labels)
    assert positives == 3  # the lower end: not one resample lost an example of the rare class


def test_resamples_of_one_class_are_left_out_without_strata():
    # With three positives of 33 a resample has none with probability (10/11)^33 = 4 %.
    labels = np.array([0] * 30 + [1] * 3)
    probs = np.linspace(0, 1, 33)
    low, high = ranking.bootstrap(ranking.auc, probs, labels)
    assert (low, high) == (1.0, 1.0)


def test_equal_seeds_give_equal_intervals():
    probs, labels = make_split()
    first, second, other = (ranking.classification_scores(probs, labels, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert first != other
    assert all(first[name] == other[name] for name in first if not name.endswith(("_low", "_high")))


def test_classification_scores_in_both_forms_of_two_classes():
    probs, labels = make_split(ties=False)
    scores = ranking.classification_scores(probs, labels)
    assert scores == ranking.classification_scores(np.stack([1 - probs, probs], -1), labels)
    names = ("auc", "accuracy", "sensitivity", "specificity", "f1")
    assert set(scores) == {name + end for name in names for end in ("", "_low", "_high")}
    for name in names:
        assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]
    assert all(type(value) is float for value in scores.values())


def test_a_split_of_one_class_has_no_auc():
    scores = ranking.classification_scores(np.array([0.2, 0.7, 0.1]), np.zeros(3, np.int32))
    assert {name for name in scores if "_" not in name} == {"accuracy", "specificity"}
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert np.isfinite(list(scores.values())).all()
    with pytest.raises(InputError, match="both classes"):
        ranking.auc(np.array([0.2, 0.7]), np.zeros(2, np.int32))


def test_a_class_without_examples_is_left_out_of_the_mean():
    probs, labels = make_split(classes=4)
    kept = labels < 3
    scores = ranking.classification_scores(probs[kept], labels[kept])
    areas = [ranking.auc(probs[kept][:, k], labels[kept] == k) for k in range(3)]
    assert scores["auc"] == pytest.approx(np.mean(areas))


@pytest.mark.parametrize(
    ("probs", "labels", "words"),
    [
        (np.zeros(0), np.zeros(0, int), "empty"),
        (np.array([0.1, np.nan]), np.array([0, 1]), "Example 1 .*diverged"),
        (np.array([0.1, 1.7]), np.array([0, 1]), "Logits must pass"),
        (np.array([0.1, 0.7]), np.array([0, 2]), r"hold \[2\]"),
        (np.array([0.1, 0.7]), np.array([0]), "expected"),
    ],
)
def test_bad_input(probs, labels, words):
    with pytest.raises(InputError, match=words):
        ranking.classification_scores(probs, labels)


def test_mean_scores_leave_out_what_was_not_counted():
    values = {"dice_disc": np.array([0.5, np.nan, 1.0]), "dice_cup": np.full(3, np.nan)}
    scores = ranking.mean_scores(values)
    assert set(scores) == {"dice_disc", "dice_disc_low", "dice_disc_high"}
    assert scores["dice_disc"] == 0.75
    # Resamples of two numbers reach from one of them to the other.
    assert (scores["dice_disc_low"], scores["dice_disc_high"]) == (0.5, 1.0)
    assert ranking.mean_scores({}) == {}


def test_a_thousand_resamples_take_less_than_a_second():
    probs, labels = make_split(400)
    # Process time, so that neighbours on the machine do not count. It takes 0.03 s; the promise is 1 s.
    start = time.process_time()
    ranking.classification_scores(probs, labels, samples=1000)
    assert time.process_time() - start < 1.0


def test_blocks_bound_the_memory():
    sizes = []

    def watch(values, *, weights):
        sizes.append(weights.size)
        return weights @ values

    ranking.bootstrap(watch, np.ones(50_000), samples=100)
    assert max(sizes) <= ranking.BLOCK
    assert sum(sizes) == 100 * 50_000
