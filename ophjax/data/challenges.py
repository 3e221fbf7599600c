"""Submissions of GAMMA and GOALS as folders in the official formats: read safely, scored against the truth, written.

Formats: GAMMA spec and GOALS spec, sections (g); scores: their sections (h). A submission comes from a stranger: it is
a plain folder (archives are refused), the names in its tables are numbers and never paths, and links are not followed.
Nothing here needs an accelerator library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ophjax.data import files, images
from ophjax.data.sheets import find_table, image_id, number, one_hot, read_table
from ophjax.errors import InputError, unknown
from ophjax.metrics import gamma, goals
from ophjax.metrics.greys import GAMMA, GOALS, GreyCode, decode, encode

GRADING, FOVEA, DISC_CUP = "Classification_Results", "Localization_Results", "Disc_Cup_Segmentations"
LAYERS, GLAUCOMA = "Layer_Segmentations", "Classification_Results"
ARCHIVES = (".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".tar")

GAMMA_TASKS = ("grading", "fovea", "segmentation")


class Scored(NamedTuple):
    """What a submission is worth: every component by name, and remarks on what was put right to get there."""

    scores: dict[str, float]
    remarks: list[str]


def score_gamma(
    truth: Path,
    submission: Path,
    *,
    tasks: Sequence[str] = (),
    missing: Literal["raise", "worst"] = "raise",
    disc: Literal["union", "rim"] = "union",
    size: tuple[int, int] | None = None,
    weights: gamma.Weights = gamma.RECALLED,
) -> Scored:
    """Scores a GAMMA submission.

    Args:
      truth: folder with the official truth of one set, as CSV or xlsx: ``glaucoma_grading*_GT``,
        ``fovea_localization*_GT``, ``Disc_Cup_Mask(s)/``; at its top or up to two folders below.
      submission: folder with ``Classification_Results.csv``, ``Localization_Results.csv``, ``Disc_Cup_Segmentations/``.
      tasks: those to score; by default all of which there is a truth.
      missing: what a missing answer does: an error, or the worst grade, the fovea (0, 0), an empty mask.
      disc: see ``gamma.compare_masks``.
      size: width and height of all images, where neither images nor true masks are there to tell them to the fovea.
      weights: of the scores.

    Raises:
      InputError: for anything missing, doubled, strange or unsafe, naming the file.
    """
    top, given = _folder(truth, "truth"), _safe(submission)
    homes = [top, *(path for depth in ("*/", "*/*/") for path in sorted(top.glob(depth)))]
    drawn = [home / name for home in homes for name in ("Disc_Cup_Mask", "Disc_Cup_Masks")]
    found: dict[str, Any] = {
        "grading": find_table(homes, "*grading*GT"),
        "fovea": find_table(homes, "*fovea*GT"),
        "segmentation": next((folder for folder in drawn if folder.is_dir()), None),
    }
    chosen = _present(tasks, found, top)
    scores: dict[str, float] = {}
    remarks: list[str] = []
    masks = files.list_images(found["segmentation"]) if found["segmentation"] else {}
    masks = {image_id(stem, path): path for stem, path in masks.items()}
    if "grading" in chosen:
        labels, table = read_grades(found["grading"]), _required(given, GRADING)
        farthest = {name: 2 if label < 2 else 0 for name, label in labels.items()}
        grades = _match(read_grades(table), farthest, table, missing, remarks)
        both = np.array(grades), np.array(list(labels.values()))
        scores["kappa"] = gamma.kappa(*both)
        scores["accuracy"] = float((both[0] == both[1]).mean())
        scores["score_grading"] = gamma.grading_score(scores["kappa"], weights)
    if "fovea" in chosen:
        places, table = read_points(found["fovea"], by_position=True), _required(given, FOVEA)
        unseen = dict.fromkeys(places, (0.0, 0.0))
        points = _match(read_points(table), unseen, table, missing, remarks)
        sizes = _sizes(places, homes, masks, size)
        apart = gamma.fovea_distances(np.array(points), np.array(list(places.values())), sizes)
        scores["fovea_distance"] = float(apart.mean())
        scores["score_fovea"] = gamma.fovea_score(scores["fovea_distance"], weights)
    if "segmentation" in chosen:

        def compare(name: str, answer: Path | None, said: list[str]) -> gamma.DiscCup:
            classes = read_grey(masks[name], GAMMA)
            if answer is None:
                return gamma.compare_masks(np.zeros_like(classes), classes, disc=disc)
            return _named(answer, lambda: gamma.compare_masks(read_grey(answer, GAMMA, said), classes, disc=disc))

        pairs = _pair(given, DISC_CUP, masks, missing, remarks)
        cup, whole, error = np.array(_each(compare, pairs, remarks)).mean(0).tolist()
        scores |= {"dice_cup": cup, "dice_disc": whole, "cdr_error": error}
        scores["score_segmentation"] = gamma.segmentation_score(cup, whole, error, weights)
    if set(chosen) == set(GAMMA_TASKS):
        one, two, three = (scores[f"score_{task}"] for task in GAMMA_TASKS)
        scores["total"] = gamma.total_score(one, two, three, weights)
    return Scored(scores, remarks)


def score_goals(truth: Path, submission: Path, *, tasks: Sequence[str] = ()) -> Scored:
    """Scores a GOALS submission; there is no total, since the platform's formula is not known.

    Args:
      truth: folder with ``Layer_Masks/`` and ``*_GC_GT`` (CSV or xlsx), at its top or up to two folders below.
      submission: folder with ``Layer_Segmentations/`` and ``Classification_Results.csv``.
      tasks: those to score; by default all of which there is a truth.

    Raises:
      InputError: for anything missing, doubled, strange or unsafe, naming the file.
    """
    top, given = _folder(truth, "truth"), _safe(submission)
    homes = [top, *(path for depth in ("*/", "*/*/") for path in sorted(top.glob(depth)))]
    found: dict[str, Any] = {
        "segmentation": next((home / "Layer_Masks" for home in homes if (home / "Layer_Masks").is_dir()), None),
        "classification": find_table(homes, "*GC_GT"),
    }
    chosen = _present(tasks, found, top)
    scores: dict[str, float] = {}
    remarks: list[str] = []
    if "segmentation" in chosen:
        masks = {image_id(stem, path): path for stem, path in files.list_images(found["segmentation"]).items()}

        def compare(name: str, answer: Path | None, said: list[str]) -> tuple[goals.Layer, ...]:
            assert answer is not None
            classes = read_grey(masks[name], GOALS)
            return _named(answer, lambda: goals.compare_layers(read_grey(answer, GOALS, said), classes))

        pairs = _pair(given, LAYERS, masks, "raise", remarks)
        scores |= goals.segmentation_scores(_each(compare, pairs, remarks))
    if "classification" in chosen:
        labels = read_labels(found["classification"])
        table = _required(given, GLAUCOMA)
        answers = {
            name: number(cells[0], table, name) for name, cells in read_table(table, ("ImgName", "GC_Pred")).items()
        }
        outside = [name for name, value in answers.items() if not 0 <= value <= 1]
        if outside:
            raise InputError(f"{table} has probabilities outside 0 to 1: {files.some(outside)}. Correct them.")
        probs = np.array(_match(answers, dict.fromkeys(labels, 0.5), table, "raise", remarks))
        if np.isin(probs, (0, 1)).all():
            remarks.append(f"{table} holds decisions (0 or 1), not probabilities: its AUC has one cut only.")
        truths = np.array(list(labels.values()))
        scores["auc"] = _named(found["classification"], lambda: goals.classification_auc(probs, truths))
    return Scored(scores, remarks)


def read_grades(path: Path) -> dict[str, int]:
    """Reads the grades of GAMMA, 0 to 2, by image, from their one-hot columns."""
    rows = read_table(path, ("data", *gamma.GRADES))
    return {name: one_hot(cells, path, name) for name, cells in rows.items()}


def read_points(path: Path, *, by_position: bool = False) -> dict[str, tuple[float, ...]]:
    """Reads foveas (x, y) in pixels, by image."""
    rows = read_table(path, ("data", "Fovea_X", "Fovea_Y"), by_position=by_position)
    return {name: tuple(number(cell, path, name) for cell in cells) for name, cells in rows.items()}


def read_labels(path: Path) -> dict[str, int]:
    """Reads the glaucoma labels of GOALS, 0 or 1, by image; InputError for any other."""
    labels = {name: number(cells[0], path, name) for name, cells in read_table(path, ("ImgName", "GC_Label")).items()}
    strange = [name for name, label in labels.items() if label not in (0.0, 1.0)]
    if strange:
        raise InputError(f"{path} has labels other than 0 and 1: {files.some(strange)}. Correct them.")
    return {name: int(label) for name, label in labels.items()}


def read_grey(path: Path, code: GreyCode, remarks: list[str] | None = None) -> np.ndarray:
    """Decodes a mask file to class numbers uint8 [h, w].

    A grey level that is no code is an error; where ``remarks`` are given, as for a prediction, it goes to the nearest
    code and the remarks say of how many pixels (bilinear resizing makes them).
    """
    grey = images.read_codes(path)
    classes, strange = decode(grey, code)
    if strange and remarks is None:
        regions: dict[str, tuple[int, ...]] = {
            name: (level,) for name, level in zip(code.classes[1:], code.greys[1:], strict=True)
        }
        images.check_codes(path, grey, images.MaskCode(regions, code.greys[:1]))
    if strange and remarks is not None:
        remarks.append(f"{path}: {strange} pixels had a grey level that is no code and went to the nearest one.")
    return classes


def write_mask(path: Path, classes: np.ndarray, code: GreyCode, size: tuple[int, int] | None = None) -> None:
    """Writes a mask of classes in grey levels, stretched to (width, height) by the nearest pixel."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(encode(classes, code))
    (picture if size in (None, picture.size) else picture.resize(size, Image.Resampling.NEAREST)).save(path)


def put_back(classes: np.ndarray, frame: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Stretches a mask of classes to the frame that it shows (left, top, width, height), class 0 around it.

    Args:
      classes: uint8 [h, w].
      frame: in pixels of the original.
      size: width and height of the original.
    """
    from PIL import Image

    left, top, width, height = frame
    whole = np.zeros((size[1], size[0]), np.uint8)
    picture = Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST)
    whole[top : top + height, left : left + width] = np.asarray(picture)
    return whole


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV with its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [columns, *rows]
    path.write_text("".join(",".join(str(cell) for cell in line) + "\n" for line in lines), encoding="utf-8")


def _present(asked: Sequence[str], found: Mapping[str, Any], top: Path) -> list[str]:
    """The tasks to score: those asked for, or else all of which there is a truth."""
    for task in asked:
        if task not in found:
            raise unknown("task", task, tuple(found))
    present = [task for task in asked or found if found[task] is not None]
    lacking = [task for task in asked or found if found[task] is None]
    if not present or (asked and lacking):
        raise InputError(
            f"{top} has no truth of the task {lacking[0]}. Give the folder that holds it in its official layout (see "
            "--help)."
        )
    return present


def _folder(path: Path, what: str) -> Path:
    path = Path(path).expanduser()
    if path.suffix.lower() in ARCHIVES:
        raise InputError(f"The {what} {path} is an archive; archives are not opened. Unpack it and give the folder.")
    if not path.is_dir():
        raise InputError(f"There is no folder {path} with the {what}. Check the path.")
    return path


def _safe(submission: Path) -> Path:
    """Checks that a submission is a folder of plain files: no archives, and no links, which may lead anywhere."""
    top = _folder(submission, "submission")
    for path in top.rglob("*"):
        if path.is_symlink():
            raise InputError(
                f"The submission holds the link {path}. Links are not followed: put the file itself there."
            )
        if path.suffix.lower() in ARCHIVES:
            raise InputError(f"The submission holds the archive {path}; archives are not opened. Unpack or remove it.")
    return top


def _required(folder: Path, stem: str) -> Path:
    table = find_table([folder], stem)
    if table is None:
        raise InputError(f"The submission has no table {folder / stem}.csv. Add it, or choose other --tasks.")
    return table


def _match(
    answers: Mapping[str, Any], worst: Mapping[str, Any], source: Path, missing: str, remarks: list[str]
) -> list[Any]:
    """The answers in the order of the truth."""
    strangers = [name for name in answers if name not in worst]
    if strangers:
        raise InputError(
            f"{source} has {len(strangers)} image(s) that the truth lacks: {files.some(strangers)}. Remove them, or "
            "give the truth of the same set."
        )
    absent = [name for name in worst if name not in answers]
    if absent and missing != "worst":
        raise InputError(f"{source} lacks {len(absent)} image(s): {files.some(absent)}. Every image needs an answer.")
    if absent:
        remarks.append(f"{source} lacks {len(absent)} image(s), which got the worst answer: {files.some(absent)}.")
    return [answers.get(name, worst[name]) for name in worst]


def _pair(
    top: Path, folder: str, masks: Mapping[str, Path], missing: str, remarks: list[str]
) -> dict[str, Path | None]:
    """The predicted mask file of each true one."""
    given = {image_id(stem, path): path for stem, path in files.list_images(top / folder).items()}
    return dict(zip(masks, _match(given, dict.fromkeys(masks), top / folder, missing, remarks), strict=True))


def _each(compare: Callable[..., Any], pairs: Mapping[str, Path | None], remarks: list[str]) -> list[Any]:
    """Compares all pairs, on all cores: decoding and distances release the interpreter lock."""
    said: list[list[str]] = [[] for _ in pairs]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        found = list(pool.map(compare, pairs, pairs.values(), said))
    remarks += [remark for one in said for remark in one]
    return found


def _named(path: Path, call: Callable[[], Any]) -> Any:
    """Puts a file's name before whatever is wrong with it."""
    try:
        return call()
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error


def _sizes(
    names: Iterable[str], homes: Sequence[Path], masks: Mapping[str, Path], size: tuple[int, int] | None
) -> np.ndarray:
    """Width and height of the original images: as given, of the images, or of the true masks."""
    if size is not None:
        return np.array([size for _ in names], np.float64)
    found = []
    for name in names:
        parts = (f"multi-modality_images/{name}", "fundus color images")
        places = [home / part / f"{name}.jpg" for home in homes for part in parts]
        path = next((place for place in places if place.is_file()), masks.get(name))
        if path is None:
            raise InputError(
                f"The size of image {name} is not known: there is neither {places[0]} nor a mask of it. Give the truth "
                "with its images, or --size WIDTHxHEIGHT where all have the same."
            )
        found.append(images.image_size(path))
    return np.array(found, np.float64)
