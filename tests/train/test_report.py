"""The report: self-contained, escaped, light, and drawn from whatever part of a run exists."""

import html.parser
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from fake_run import make_run, write_config

from ophjax.errors import InputError
from ophjax.train.report import figures, gallery, reading
from ophjax.train.report.page import write_report

VOID = {"meta", "br", "image", "use", "path", "circle", "rect", "line"}


class Page(html.parser.HTMLParser):
    """Collects tags and their attributes, and checks that they nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.words, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == [], "tags left open"

    def handle_starttag(self, tag, attrs):
        self._see(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._see(tag, attrs)

    def _see(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "srcset", "data")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag, "tags that do not nest"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = write_report(make_run(tmp_path_factory.mktemp("runs") / "first"))
    return path.read_text(encoding="utf-8")


def test_it_needs_nothing_but_itself(page):
    parsed = Page(page)
    assert all(link.startswith(("data:image/", "#")) for link in parsed.links)
    assert not {"script", "iframe", "link", "object"} & set(parsed.tags)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    # References within the page lead to exactly one place.
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))


def test_it_says_what_a_reader_needs(page):
    text = Page(page).text
    for words in (
        "python experiments/run.py --method seatrans --name first --method.loss 'a<b'",
        "--resume",
        "finished",
        "AUC",
        "95 % bootstrap interval",
        "slices of one volume and tiles of one image are drawn together",
        "Training loss",
        "ROC of glaucoma",
        "Confusion matrix",
        "Misclassified",
        "Dice: disc",
        "layer 2",
        "images/s",
        "method.tokens",
        "0.10.2",
        "no split shares an example",
    ):
        assert words in text, words


def test_names_from_outside_are_escaped(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "eye &amp; 0000" in page


def test_it_is_light_and_fits_a_phone(tmp_path):
    # 256 px pictures are the paper's scale; the limit is what opens at once on a slow connection.
    path = write_report(make_run(tmp_path / "large", size=256, classes=("normal", "early $x$", "<late>", "青")))
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_500_000
    assert 'content="width=device-width' in text
    parsed = Page(text)
    assert "<late>, AUC" in parsed.text
    assert "early $x$, AUC" in parsed.text


@pytest.mark.parametrize("absent", ["config.json", "metrics.jsonl", "predictions.csv", "samples.npz"])
def test_a_missing_part_leaves_the_rest(tmp_path, absent):
    folder = make_run(tmp_path / "run", size=32)
    (folder / absent).unlink()
    titles = {
        "config.json": "Reproduce and go on",
        "metrics.jsonl": "Throughput",
        "predictions.csv": "Confusion matrix",
        "samples.npz": "Sample images",
    }
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    lost = {titles[absent]} | ({"Confusion matrix"} if absent == "config.json" else set())  # it holds the classes
    assert {title for title in titles.values() if title not in text} == lost


def test_scores_by_domain_stand_in_one_table(tmp_path):
    """A row for each score, a column for the mean, the worst and each domain; none of them in the list above it."""
    make_run(tmp_path)
    write_config(tmp_path, domains=["clinic", "mist"])
    scores = {"auc": 0.61, "auc_worst": 0.59, "auc_clinic": 0.91, "auc_clinic_low": 0.88, "auc_clinic_high": 0.93,
              "auc_mist": 0.62, "proxy_distance": 0.5}  # fmt: skip
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"event": "test", "split": "test", "step": 500, "time": 1.8e9, "scores": scores}) + "\n")
    text = write_report(tmp_path).read_text()
    table = text.split("By domain</h3>")[1].split("</table>")[0]
    assert [column for column in ("mean of targets", "worst", "clinic", "mist") if f">{column}</th>" in table] == [
        "mean of targets", "worst", "clinic", "mist"]  # fmt: skip
    assert all(number in table for number in ("0.610", "0.590", "0.910", "0.88 to 0.93", "0.620"))
    assert "0.500" not in table and "AUC, clinic" not in text.split("By domain</h3>")[0]


def test_an_empty_folder_gives_a_page(tmp_path):
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "Nothing has been scored yet" in text
    assert "No step has been logged yet" in text


def test_an_unreadable_part_is_named(tmp_path):
    folder = make_run(tmp_path / "run", size=32)
    (folder / "samples.npz").write_bytes((folder / "samples.npz").read_bytes()[:500])
    (folder / "config.json").write_text("{", encoding="utf-8")
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "samples.npz could not be read" in text
    assert "config.json could not be read" in text
    assert "Training loss" in text


def test_a_run_in_progress(tmp_path):
    write_config(tmp_path)
    events = [
        {"event": "start", "time": 0.0},
        {"event": "stage", "stage": "segmenter", "step": 0, "time": 1.0},
        {"event": "train", "stage": "segmenter", "step": 1, "loss": 0.5, "images_per_s": 9.0, "time": 2.0},
        {"event": "eval", "split": "val", "stage": "segmenter", "step": 1, "auc": 0.75, "f1": None, "time": 3.0},
    ]
    lines = "\n".join(json.dumps(event) for event in events)
    (tmp_path / "metrics.jsonl").write_text(lines + '\n{"event": "tra', encoding="utf-8")
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "0.750" in text
    assert "val split after step 1" in text
    assert "3 s" in text


def test_it_replaces_the_old_page_whole(tmp_path):
    write_report(tmp_path)
    write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_equal_runs_give_equal_pages(tmp_path):
    first, second = (write_report(make_run(tmp_path / name / "run", size=32)).read_text() for name in "ab")
    assert first.replace(str(tmp_path / "a"), "") == second.replace(str(tmp_path / "b"), "")


def test_after_a_resume_the_later_line_stays():
    def line(step, loss):
        return {"event": "train", "stage": "a", "step": step, "loss": loss}

    events = [line(1, 1.0), line(2, 2.0), line(3, 3.0), {"event": "resume", "step": 1}, line(2, 20.0)]
    curve = reading.series(reading.latest(events), "train", "loss")["a"]
    np.testing.assert_array_equal(curve.x, [1, 2])
    np.testing.assert_array_equal(curve.y, [1, 20])


def test_time_between_a_stop_and_a_resume_does_not_count():
    events = [("start", 0), ("train", 10), ("stop", 12), ("resume", 1000), ("train", 1005)]
    assert reading.elapsed({"event": kind, "time": float(at)} for kind, at in events) == 17


def test_long_curves_are_thinned_to_means():
    curve = figures.thin(figures.Curve(np.arange(10_000.0), np.arange(10_000.0) % 2))
    assert len(curve.x) == figures.POINTS
    np.testing.assert_allclose(curve.y, 0.5)


def test_outline_of_a_square_by_hand():
    mask = np.zeros((10, 10))
    mask[2:5, 3:9] = 1
    points = np.array(re.findall(r"(\d+\.\d),(\d+\.\d)", gallery.outline(mask)), float)
    # The edges of rows 2 to 4 and columns 3 to 8 lie at 20 and 50, and at 30 and 90 hundredths.
    np.testing.assert_array_equal(points.min(0), [30, 20])
    np.testing.assert_array_equal(points.max(0), [90, 50])
    assert gallery.outline(np.zeros((10, 10))) == ""
    # A region that fills the image is closed along the border.
    full = np.array(re.findall(r"(\d+\.\d),(\d+\.\d)", gallery.outline(np.ones((10, 10)))), float)
    np.testing.assert_array_equal([full.min(), full.max()], [0, 100])


def test_labels_that_are_not_known():
    """They are neither right nor wrong, and the curves are of the others."""
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    samples = {"image": np.zeros((3, 2, 2, 3)), "label": np.array([0, -1, 0]), "probs": probs}
    wrong, right = gallery.choose(samples)
    assert wrong == [2] and sorted(right) == [0, 1]
    rows = [{"prob": str(p), "predicted": str(int(p > 0.5)), "label": label} for p, label in ((0.1, "0"), (0.8, "-1"))]
    run = SimpleNamespace(predictions=rows, config={"classes": ["no", "yes"]}, samples=samples)
    found = reading.decisions(run)
    assert found[1].tolist() == [0] and found[2].tolist() == [0]
    run.predictions = rows[1:]
    assert reading.decisions(run) is None
    assert "label not known" in gallery.caption(run, 1) and "✗ wrong" in gallery.caption(run, 2)[1]


def test_grades_of_an_ordinal_head_are_captioned_as_they_were_decided():
    """And the confident mistakes come first by the probability of what was decided."""
    probs = np.array([[0.4, 0.25, 0.35], [0.1, 0.7, 0.2], [0.45, 0.2, 0.35]])
    samples = {"image": np.zeros((3, 2, 2, 3)), "label": np.array([1, 0, 0]), "probs": probs}
    samples["predicted"] = np.array([1, 1, 1])
    assert gallery.choose(samples) == ([1, 2], [0])
    run = SimpleNamespace(predictions=[], config={"classes": ["no", "early", "late"]}, samples=samples)
    assert "✓ right" in gallery.caption(run, 0)[1] and gallery.caption(run, 0)[2] == "P(early) = 0.25"


def test_samples_chosen_are_wrong_and_right_ones():
    label = np.array([0, 0, 1, 1, 1] * 8)
    probs = np.where(np.arange(40) < 10, 0.9, 0.2)  # right for label 1 among the first ten and label 0 after
    wrong, right = gallery.choose({"image": np.zeros((40, 2, 2, 3)), "label": label, "probs": probs})
    predicted = probs >= 0.5
    assert len(wrong) + len(right) == gallery.PICTURES
    assert len(wrong) == len(right)
    assert all(predicted[i] != label[i] for i in wrong)
    assert all(predicted[i] == label[i] for i in right)
    assert set(label[right]) == {0, 1}
    assert wrong[0] < 10  # the most confident mistakes come first


# Raters


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A run with three raters, whose names are no HTML, tested over three rounds."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "rated", size=32)
    names = ["expert <1>", "expert 2", "novice"]
    write_config(folder, raters=names)
    scores = {"soft_dice": 0.8, "disagreement_before": 0.2, "disagreement_after": 0.05, "weight_skill": 0.5}
    scores |= {f"weight_{name}": value for name, value in zip(names, (0.5, 0.4, 0.1), strict=True)}
    scores |= {f"skill_{name}": value for name, value in zip(names, (0.95, 0.91, 0.62), strict=True)}
    scores |= {f"soft_dice_round{t}": 0.7 + 0.01 * t for t in (1, 2, 8)} | {
        "round_change2": 0.02,
        "round_change3": 0.01,
    }
    event = {"event": "test", "split": "test", "step": 500, "scores": scores, "time": 1_700_001_000.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    samples = dict(np.load(folder / "samples.npz"))
    masks = np.repeat(samples["mask"][:4, None], 3, 1)
    weights = np.broadcast_to(np.array([0.5, 0.4, 0.1]).reshape(1, 3, 1, 1, 1), masks.shape)
    there = np.ones((4, 3))
    there[1, 2] = 0
    np.savez(folder / "samples.npz", **samples, raters=masks, rater_maps=weights, rater_weight=there)
    return folder


def test_raters_are_shown_with_skill_weight_rounds_and_maps(rated):
    parsed = Page(write_report(rated).read_text(encoding="utf-8"))
    for words in (
        "Weight over skill",
        "expert <1>",
        "0.950 0.500".replace(" ", ""),
        "Disagreement: 0.200 under equal weights, 0.050 under the learned ones",
        "Soft Dice by round",
        "Change from the round before",
        "novice (did not draw this image)",
        "novice 0.10",
        "equal weights, 1/3",
    ):
        assert words in parsed.text, words
    # One list for each: the table of scores leaves them out.
    assert "weight_novice" not in parsed.text and "round_change2" not in parsed.text
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)


def test_without_raters_there_is_no_such_section(page):
    assert "Weight over skill" not in page and "Expertness maps" not in page


def test_restored_images_stand_beside_bicubic_and_the_truth(tmp_path):
    """Three pictures in a row with the scores of whole images; a perfect one is called infinite, not an error."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    samples = {"image": target[:, ::2, ::2], "target": target[:6], "restored": target[:6].copy()}
    samples["restored"][1] ^= 1
    write_config(tmp_path)
    np.savez(tmp_path / "samples.npz", **samples)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.text.count("bicubic ·") == 6 and page.text.count("truth") >= 6
    assert "restored · 100.00 dB, SSIM 1.000" in page.text and "restored · 5" in page.text
    assert "Sample images" not in page.text
