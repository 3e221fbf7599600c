"""What dual regression gains at the demo's scale, by the command that prints the table of BUILD_NOTES.md."""

import statistics

import pytest

import compare
from ophjax.train import host
from ophjax.train.logs import read_events

SEEDS = range(3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs a variant for all seeds: its test scores, and the validation PSNR at the end of each stage."""
    folder = tmp_path_factory.mktemp("compare")
    words = ["--method", "dualsr", "--data", "textures", "--runs", str(folder)]
    options, rest = compare.arguments(words)

    def train(variant):
        scores = [compare.one_run(options, variant, seed, rest) for seed in SEEDS]
        ends = []
        for seed in SEEDS:
            events = read_events(folder / f"dualsr-textures-demo-{variant}-{seed}" / "metrics.jsonl")
            ends.append({e["stage"]: e["psnr"] for e in events if e["event"] == "eval"})
        return scores, ends

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "cache_programs", lambda: None)
        yield train


@pytest.mark.trend
def test_the_closed_loop_keeps_to_its_input(trained):
    """Results shrink to their input more closely, for every seed; PSNR is not worse by 0.1 dB on average."""
    (closed, _), (plain, _) = trained("dualsr"), trained("primal-only")
    assert all(a["consistency"] > b["consistency"] for a, b in zip(closed, plain, strict=True))
    assert statistics.mean(a["psnr"] - b["psnr"] for a, b in zip(closed, plain, strict=True)) > -0.1


@pytest.mark.trend
def test_guided_channels_are_the_better_ones_before_tuning(trained):
    """At equal widths: by more than 0.5 dB straight after the selection, within 0.5 dB of magnitude after tuning."""
    trained("dualsr")
    (guided, early), (plain, plain_early) = trained("guided"), trained("magnitude")
    gain = statistics.mean(a["selection"] - b["selection"] for a, b in zip(early, plain_early, strict=True))
    assert gain > 0.5
    assert abs(statistics.mean(a["psnr"] - b["psnr"] for a, b in zip(guided, plain, strict=True))) < 0.5
