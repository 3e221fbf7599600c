"""Submissions as folders: scored, and every mistake in one refused with the name of the file."""

import numpy as np
import official
import pytest
from PIL import Image

from ophjax.data import challenges, sheets
from ophjax.errors import InputError


@pytest.fixture
def gamma(tmp_path):
    official.gamma_truth(tmp_path / "truth" / "training_data")
    official.gamma_submission(tmp_path / "answer")
    return tmp_path / "truth", tmp_path / "answer"


@pytest.fixture
def goals(tmp_path):
    official.goals_truth(tmp_path / "Train")
    official.goals_submission(tmp_path / "layers")
    return tmp_path / "Train", tmp_path / "layers"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_perfect_answers(gamma, goals):
    found = challenges.score_gamma(*gamma)
    names = ("score_grading", "score_fovea", "score_segmentation", "total")
    np.testing.assert_allclose([found.scores[name] for name in names], 10, atol=1e-9)
    assert not found.remarks
    found = challenges.score_goals(*goals)
    assert found.scores["dice"] == pytest.approx(1) and found.scores["med"] == 0 and found.scores["auc"] == 1
    assert "total" not in found.scores and not found.remarks


def test_parts_of_a_score(gamma):
    """One grade off by one, one fovea off by a tenth of the width, one cup twice as high."""
    truth, answer = gamma
    edit(answer / "Classification_Results.csv", "0001,1,0,0", "0001,0,1,0")
    edit(answer / "Localization_Results.csv", "0002,51.5", "0002,60.5")
    challenges.write_mask(answer / "Disc_Cup_Segmentations" / "0001.bmp", official.disc_cup(cup=16), challenges.GAMMA)
    scores = challenges.score_gamma(truth, answer).scores
    assert scores["accuracy"] == 0.75 and 0 < scores["kappa"] < 1
    assert scores["fovea_distance"] == pytest.approx(0.1 / 4) and scores["score_fovea"] == pytest.approx(8)
    assert scores["dice_cup"] == pytest.approx((3 + 2 / 3) / 4) and scores["dice_disc"] == 1
    assert scores["cdr_error"] == pytest.approx(8 / 24 / 4)
    only = challenges.score_gamma(truth, answer, tasks=["fovea"]).scores
    assert set(only) == {"fovea_distance", "score_fovea"}


def test_missing_answers(gamma):
    truth, answer = gamma
    for table in ("Classification_Results.csv", "Localization_Results.csv"):
        lines = (answer / table).read_text().splitlines()
        (answer / table).write_text("\n".join(lines[:-1]) + "\n")
    (answer / "Disc_Cup_Segmentations" / "0004.bmp").unlink()
    for task, name in (("grading", "Classification"), ("fovea", "Localization"), ("segmentation", "Disc_Cup_Seg")):
        with pytest.raises(InputError, match=rf"{name}.* lacks 1 image\(s\): 0004"):
            challenges.score_gamma(truth, answer, tasks=[task])
    found = challenges.score_gamma(truth, answer, missing="worst")
    assert found.scores["accuracy"] == 0.75 and len(found.remarks) == 3
    assert found.scores["dice_disc"] == 0.75 and found.scores["cdr_error"] == pytest.approx(14 / 24 / 4)
    assert found.scores["fovea_distance"] == pytest.approx(np.hypot(53.5 / 90, 30.25 / 60) / 4)


def test_bilinear_masks_are_put_right_and_counted(goals):
    truth, answer = goals
    path = answer / "Layer_Segmentations" / "0002.png"
    small = Image.open(path).resize((55, 40), Image.Resampling.NEAREST)
    small.resize((110, 80), Image.Resampling.BILINEAR).save(path)
    found = challenges.score_goals(truth, answer, tasks=["segmentation"])
    assert len(found.remarks) == 1 and str(path) in found.remarks[0] and "pixels" in found.remarks[0]
    assert 0.8 < found.scores["dice"] < 1


def test_other_headers_and_decisions(goals):
    truth, answer = goals
    edit(answer / "Classification_Results.csv", "GC_Pred", "GC Pred")
    assert challenges.score_goals(truth, answer).scores["auc"] == 1
    edit(answer / "Classification_Results.csv", "0.25", "0")
    edit(answer / "Classification_Results.csv", "0.75", "1")
    assert "decisions" in challenges.score_goals(truth, answer).remarks[0]


def test_images_size_the_fovea_or_the_user_does(gamma, tmp_path):
    truth, answer = gamma
    alone = tmp_path / "alone"
    alone.mkdir()
    home = truth / "training_data"
    (home / "fovea_localization_training_GT.xlsx").rename(alone / "fovea_localization_training_GT.xlsx")
    with pytest.raises(InputError, match=r"size of image 0001 .* --size"):
        challenges.score_gamma(alone, answer)
    assert challenges.score_gamma(alone, answer, size=(90, 60)).scores["score_fovea"] == pytest.approx(10)


def grey_truth(truth, answer):
    path = next(truth.rglob("0003.png"))
    grey = np.asarray(Image.open(path)).copy()
    grey[0, 0] = 77
    Image.fromarray(grey).save(path)


def smaller(truth, answer):
    path = next(answer.rglob("0002.*"))
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)


def link(truth, answer):
    path = next(answer.rglob("0002.*"))
    path.rename(answer.parent / path.name)
    path.symlink_to(answer.parent / path.name)


def linked_folder(truth, answer):
    folder = next(path for path in answer.iterdir() if path.is_dir())
    folder.rename(answer.parent / "elsewhere")
    folder.symlink_to(answer.parent / "elsewhere")


def table(change):
    def spoil(truth, answer):
        path = answer / "Classification_Results.csv"
        path.write_text(change(path.read_text()))

    return spoil


def first_answer(text, value):
    header, row, *rest = text.splitlines()
    name, _, *others = row.split(",")
    return "\n".join([header, ",".join([name, value, *others]), *rest]) + "\n"


def stranger(truth, answer):
    path = next(answer.rglob("0002.*"))
    path.rename(path.with_stem("0009"))


MISTAKES = {
    "grey level in the truth": (grey_truth, "0003.png"),
    "other size": (smaller, "0002"),
    "a link": (link, "link .*0002"),
    "a linked folder": (linked_folder, "link"),
    "an archive inside": (lambda truth, answer: (answer / "more.zip").write_text(""), "more.zip"),
    "no table": (lambda truth, answer: (answer / "Classification_Results.csv").unlink(), "Classification_Results.csv"),
    "two tables": (lambda truth, answer: (answer / "Classification_Results.xlsx").write_text(""), "several tables"),
    "other columns": (table(lambda text: text.replace(text.split(",")[0], "case", 1)), "Results.csv.*case"),
    "no rows": (table(lambda text: text.splitlines()[0]), "Classification_Results.csv has no rows"),
    "a row twice": (table(lambda text: text + text.splitlines()[1] + "\n"), "Classification_Results.csv has two rows"),
    "a strange row": (table(lambda text: text.replace("0001", "0099")), "Classification_Results.csv .*0099"),
    "a path": (table(lambda text: text.replace("0001", "../0001")), r"Classification_Results.csv .*'\.\./0001"),
    "not a number": (table(lambda text: first_answer(text, "x")), "Classification_Results.csv has 'x'"),
    "NaN": (table(lambda text: first_answer(text, "nan")), "Classification_Results.csv has 'nan'"),
    "a mask of another image": (stranger, "0009"),
    "a mask twice": (lambda truth, answer: next(answer.rglob("0002.*")).with_suffix(".gif").write_text(""), "0002"),
    "damaged mask": (lambda truth, answer: next(answer.rglob("0002.*")).write_bytes(b"BM"), "0002"),
    "no folder of masks": (lambda truth, answer: [p.unlink() for p in answer.rglob("000*")], "_Segmentations"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("challenge", ["gamma", "goals"])
def test_mistakes_are_refused_by_name(request, challenge, name):
    truth, answer = request.getfixturevalue(challenge)
    spoil, match = MISTAKES[name]
    spoil(truth, answer)
    with pytest.raises(InputError, match=match) as caught:
        getattr(challenges, f"score_{challenge}")(truth, answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", ["0001,1,1,0", "0001,0,0,0", "0001,0.5,0.5,0", "0001,2,0,0", "0001,1,0"])
def test_grades_are_one_hot(gamma, row):
    edit(gamma[1] / "Classification_Results.csv", "0001,1,0,0", row)
    with pytest.raises(InputError, match=r"Classification_Results.csv .*0001"):
        challenges.score_gamma(*gamma)


def test_archives_tasks_and_folders(gamma, tmp_path):
    truth, answer = gamma
    for given, match in ((answer.with_suffix(".zip"), "archive"), (answer / "none", "no folder")):
        with pytest.raises(InputError, match=match):
            challenges.score_gamma(truth, given)
    with pytest.raises(InputError, match="grading, fovea, segmentation"):
        challenges.score_gamma(truth, answer, tasks=["fovae"])
    with pytest.raises(InputError, match="no truth of the task"):
        challenges.score_goals(truth, answer)


@pytest.mark.parametrize("given", ["7", "0007", "7.0", "7.png", "0007.png", "0007.bmp"])
def test_numbers_of_images(given, tmp_path):
    assert sheets.image_id(given, tmp_path) == "0007"


@pytest.mark.parametrize("given", ["", "seven", "../7", "/7", "7/7", "7.5", "-7", "7\\7", "\u0667", "1" * 9])
def test_names_that_are_no_numbers(given, tmp_path):
    with pytest.raises(InputError, match="number"):
        sheets.image_id(given, tmp_path)


def test_sheets(tmp_path):
    """Sheets and CSV read alike: numbers or text, empty cells, blank rows, other cases of the names."""
    rows = [["data", "Fovea_X", "Fovea_Y"], [1, 2.5, "3"], [None, None, None], ["0002", None, 4]]
    official.write_xlsx(tmp_path / "a.xlsx", rows)
    assert sheets.read_table(tmp_path / "a.xlsx", ("data", "fovea_x", "fovea y")) == {
        "0001": ["2.5", "3"], "0002": ["", "4"],
    }  # fmt: skip
    rows[0] = ["data", "x", "y"]
    official.write_xlsx(tmp_path / "b.xlsx", rows)
    assert len(sheets.read_table(tmp_path / "b.xlsx", ("data", "Fovea_X", "Fovea_Y"), by_position=True)) == 2
    with pytest.raises(InputError, match=r"b.xlsx has the columns data, x, y"):
        sheets.read_table(tmp_path / "b.xlsx", ("data", "Fovea_X", "Fovea_Y"))


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", "utf-8", "utf-16", "empty"],
    ids=["empty", "torn", "entities", "hidden entities", "no parts"],
)
def test_damaged_sheets(tmp_path, content):
    path = tmp_path / "a.xlsx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            if content != "empty":
                workbook = '<!DOCTYPE a [<!ENTITY b "c">]><workbook>&b;</workbook>'
                archive.writestr("xl/workbook.xml", workbook.encode(content))
    why = {"utf-8": "declares entities", "utf-16": "is not UTF-8"}.get(str(content), "")
    with pytest.raises(InputError, match=rf"a.xlsx cannot be read.*{why}"):
        sheets.read_table(path, ("data",))


def test_a_sheet_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "LARGEST", 100)
    official.write_xlsx(tmp_path / "a.xlsx", [["data"], *([i] for i in range(100))])
    with pytest.raises(InputError, match="unpacks"):
        sheets.read_table(tmp_path / "a.xlsx", ("data",))
