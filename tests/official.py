"""Small trees of files in the official layouts of GAMMA and GOALS, made by the tests."""

import zipfile

import numpy as np
from PIL import Image

from ophjax.data.challenges import write_mask, write_table
from ophjax.metrics.greys import GAMMA, GOALS


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def write_xlsx(path, rows):
    """The least that is an xlsx file: numbers as numbers, text in the table of strings, as Excel writes it."""
    strings: list[str] = []

    def cell(value, row, column):
        place = f"{chr(ord('A') + column)}{row}"
        if isinstance(value, str):
            strings.append(value)
            return f'<c r="{place}" t="s"><v>{len(strings) - 1}</v></c>'
        return f'<c r="{place}"><v>{value}</v></c>'

    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    linked = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    lines = [
        f'<row r="{i}">{"".join(cell(value, i, j) for j, value in enumerate(row) if value is not None)}</row>'
        for i, row in enumerate(rows, 1)
    ]
    parts = {
        "xl/workbook.xml": f'<workbook xmlns="{space}" xmlns:r="{linked}"><sheets>'
        '<sheet name="A" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": '<Relationships><Relationship Id="rId1" Target="worksheets/sheet1.xml"/>'
        "</Relationships>",
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{space}"><sheetData>{"".join(lines)}</sheetData></worksheet>',
        "xl/sharedStrings.xml": f'<sst xmlns="{space}">{"".join(f"<si><t>{s}</t></si>" for s in strings)}</sst>',
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)


def disc_cup(size=(60, 90), cup=8):
    """Classes of a mask with a disc of 24 rows and a cup of ``cup``."""
    classes = np.zeros(size, np.uint8)
    classes[20:44, 30:54] = 1
    middle = 32 - cup // 2
    classes[middle : middle + cup, 36:48] = 2
    return classes


def layers(size=(80, 110), thick=8):
    """Classes of a mask with three layers, the first of ``thick`` rows."""
    classes = np.zeros(size, np.uint8)
    for number, (first, rows) in enumerate(((20, thick), (20 + thick, 9), (52, 14)), 1):
        classes[first : first + rows] = number
    return classes


def gamma_truth(root, count=4, slices=0, xlsx=True):
    """Layout V1: ``training_data`` with fundus images, OCT slices, both sheets and masks. Grades take turns."""
    names = [f"{i:04}" for i in range(1, count + 1)]
    for i, name in enumerate(names):
        folder = root / "multi-modality_images" / name
        save(folder / f"{name}.jpg", np.full((60, 90, 3), 60 + i, np.uint8))
        for j in range(slices):
            save(folder / name / f"{j}_image.jpg", np.full((40, 32), min(10 * j, 250), np.uint8), quality=95)
        write_mask(root / "Disc_Cup_Mask" / f"{name}.png", disc_cup(cup=8 + 2 * i), GAMMA)
    (root / ".DS_Store").write_text("")
    grades = [[i + 1, *(int(i % 3 == k) for k in range(3))] for i in range(count)]
    foveas = [[i + 1, 50.5 + i, 30.25] for i in range(count)]
    tables = {
        "glaucoma_grading_training_GT": [["data", "non", "early", "mid_advanced"], *grades],
        "fovea_localization_training_GT": [["data", "Fovea_X", "Fovea_Y"], *foveas],
    }
    for name, rows in tables.items():
        if xlsx:
            write_xlsx(root / f"{name}.xlsx", rows)
        else:
            write_table(root / f"{name}.csv", rows[0], rows[1:])
    return names


def gamma_submission(root, count=4):
    """A perfect answer to ``gamma_truth``."""
    names = [f"{i:04}" for i in range(1, count + 1)]
    rows = [(name, *(int(i % 3 == k) for k in range(3))) for i, name in enumerate(names)]
    write_table(root / "Classification_Results.csv", ("data", "non", "early", "mid_advanced"), rows)
    rows = [(name, 50.5 + i, 30.25) for i, name in enumerate(names)]
    write_table(root / "Localization_Results.csv", ("data", "Fovea_X", "Fovea_Y"), rows)
    for i, name in enumerate(names):
        write_mask(root / "Disc_Cup_Segmentations" / f"{name}.bmp", disc_cup(cup=8 + 2 * i), GAMMA)


def goals_truth(root, count=6, size=(80, 110)):
    """``Train`` with images, masks and the sheet of labels; odd images have glaucoma and a thin first layer."""
    rng = np.random.default_rng(0)
    for i in range(1, count + 1):
        save(root / "Image" / f"{i:04}.png", rng.integers(0, 255, size, np.uint8))
        write_mask(root / "Layer_Masks" / f"{i:04}.png", layers(size, 8 - 3 * (i % 2)), GOALS)
    write_xlsx(root / "Train_GC_GT.xlsx", [["ImgName", "GC_Label"], *([i, i % 2] for i in range(1, count + 1))])


def goals_submission(root, count=6, size=(80, 110), header="GC_Pred"):
    """A perfect answer to ``goals_truth``."""
    for i in range(1, count + 1):
        write_mask(root / "Layer_Segmentations" / f"{i:04}.png", layers(size, 8 - 3 * (i % 2)), GOALS)
    rows = [(f"{i:04}.png", 0.25 + 0.5 * (i % 2)) for i in range(1, count + 1)]
    write_table(root / "Classification_Results.csv", ("ImgName", header), rows)
