"""Whatever bytes a file holds, a loader gives arrays or one InputError: no other exception, no hang, no huge memory."""

import gzip
import io
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from spoiled import FEW, JSON, holding, loads, spoiled

from ophjax.data import dicom, files, images, phantoms, shards, sheets, volumes
from ophjax.data.builders import medmnist, qubiq, xrays

RAMP = np.arange(24 * 20, dtype=np.uint8).reshape(24, 20)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP], -1)


def encoded(kind, array, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


PICTURES = [
    encoded("PNG", COLOUR), encoded("PNG", RAMP), encoded("PNG", RAMP.astype(np.uint16) * 256), encoded("JPEG", COLOUR),
    encoded("GIF", RAMP), encoded("BMP", RAMP), encoded("WEBP", COLOUR),
    encoded("TIFF", COLOUR, compression="tiff_lzw"), encoded("TIFF", RAMP.astype(np.float32)),
]  # fmt: skip


@FEW
@given(spoiled(*PICTURES))
def test_pictures_and_masks(content):
    code = images.parse_code("disc=1,2;cup=2")
    with holding("07.png", content) as path:
        for read in (
            images.image_size,
            lambda path: images.read_image(path, 16),
            images.read_whole,
            images.read_colours,
            lambda path: images.read_mask(path, 16, code),
        ):
            loads(read, path)


@pytest.mark.parametrize("content", PICTURES[:-1])
def test_whole_pictures(content):
    """What the draws above start from can be read, but for the last, whose pixels are no bytes."""
    with holding("07.png", content) as path:
        assert loads(images.image_size, path) and loads(lambda path: images.read_image(path, 16), path)


TABLE = b"image,label,split\r\n01.png,0,train\r\n02.png,1,test\r\n"
QUOTED = b'\xef\xbb\xbf"image";"label"\n"a\n b";1\n'


@FEW
@given(spoiled(TABLE, TABLE.replace(b",", b";"), QUOTED) | st.text().map(str.encode))
def test_tables(content):
    with holding("labels.csv", content) as path:
        loads(lambda path: files.read_rows(path, needed=("image", "label")), path)
        loads(lambda path: files.read_labels(path, key="image", column="label", values=("0", "1")), path)
        loads(lambda path: sheets.read_table(path, ["image", "label"]), path)


def zipped(parts, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATED = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
SHEET = {
    "xl/workbook.xml": f'<workbook xmlns="{MAIN}"><sheets><sheet xmlns:r="{RELATED}" r:id="r1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": '<Relationships><Relationship Id="r1" Target="sheet1.xml"/></Relationships>',
    "xl/sheet1.xml": f'<worksheet xmlns="{MAIN}"><row><c r="A1" t="str"><v>image</v></c>'
    '<c r="B1"><v>label</v></c></row><row><c r="A2"><v>1</v></c><c r="B2"><v>0</v></c></row></worksheet>',
}


@st.composite
def sheet(draw):
    """A sheet whose archive, or one of whose parts, is spoiled."""
    if draw(st.booleans()):
        return draw(spoiled(zipped(SHEET), zipped(SHEET, zipfile.ZIP_STORED)))
    name = draw(st.sampled_from(sorted(SHEET)))
    return zipped(SHEET | {name: draw(spoiled(SHEET[name].encode()))})


@FEW
@given(sheet())
def test_sheets(content):
    with holding("answers.xlsx", content) as path:
        loads(lambda path: sheets.read_table(path, ["image", "label"]), path)


def npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=True, **arrays)  # dated 1980, always
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


SET = {f"{part}_images": np.stack([RAMP] * 4) for part in files.PARTS}
SET |= {f"{part}_labels": np.array([[0], [1], [0], [1]], np.uint8) for part in files.PARTS}
ARRAY = npy(SET["train_images"])
ODD = [npz(**SET | {"val_labels": np.array([[None]] * 4)}), npy(RAMP), zipped({"train_images.npy": ARRAY, "x": b"x"})]


@st.composite
def archive(draw):
    """An npz of which the archive, or the array in it, is spoiled."""
    if draw(st.booleans()):
        return draw(spoiled(npz(**SET), *ODD))
    parts = {f"{name}.npy": npy(value) for name, value in SET.items()}
    return zipped(parts | {"train_images.npy": draw(spoiled(ARRAY))})


@FEW
@given(archive())
def test_archives(content):
    with holding("pneumoniamnist.npz", content) as path:
        loads(lambda path: medmnist.make(medmnist.Config(root=str(path.parent), size=16)), path)
        loads(lambda path: xrays._pneumonia(xrays.Config(pneumonia=str(path), size=16)), path)


ABOUT = {
    "format": 1, "shards": [], "name": "phantoms", "options": shards.options_of(phantoms.Config()), "note": "",
    "regions": [], "classes": [], "domains": [], "raters": [], "scale": 1,
    "splits": {"train": {"names": [], "records": [], "groups": [], "example_bytes": 0}},
}  # fmt: skip


@FEW
@given(
    spoiled(json.dumps(ABOUT).encode())
    | st.builds(lambda key, value: json.dumps(ABOUT | {key: value}).encode(), st.sampled_from(sorted(ABOUT)), JSON)
    | JSON.map(lambda value: json.dumps(ABOUT | {"splits": {"train": value}}).encode())
)
@example(b"[" * 100_000)
def test_prepared_data(content):
    with holding("dataset.json", content) as path:
        loads(lambda path: shards.read(path.parent, "phantoms", phantoms.Config()), path)


def nifti():
    nibabel = pytest.importorskip("nibabel", reason="needs nibabel: pip install 'ophjax[medical]'")
    return nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([-1.0, 1, 2, 1])).to_bytes()


def dicom_bytes():
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'ophjax[medical]'")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.MRImageStorage, "1.2.3"
    data = pydicom.dataset.Dataset()
    data.file_meta, data.SOPClassUID, data.SOPInstanceUID = meta, pydicom.uid.MRImageStorage, "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 24, 20, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.WindowCenter, data.WindowWidth, data.NumberOfFrames = 100, 50, 1
    data.PixelData = RAMP.tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


@FEW
@given(st.data())
def test_volumes(data):
    whole = nifti()
    packed = data.draw(st.booleans())
    content = data.draw(spoiled(whole))
    if packed:
        content = data.draw(st.sampled_from([gzip.compress(content), gzip.compress(whole)[: len(content)]]))
    with holding("liver.nii.gz" if packed else "liver.nii", content) as path:
        loads(volumes.read_nifti, path)
        loads(volumes.read_labels, path)


@FEW
@given(st.data())
def test_dicom(data):
    whole = dicom_bytes()
    header = st.integers(128, len(whole) - RAMP.size)
    content = bytearray(data.draw(spoiled(whole)))
    for at, value in data.draw(st.lists(st.tuples(header, st.integers(0, 255)), max_size=3)):
        if at < len(content):
            content[at] = value
    with holding("07.dcm", bytes(content)) as path:
        loads(dicom.size, path)
        loads(lambda path: images.read_image(path, 16), path)
        loads(lambda path: volumes.read_dicom(path.parent), path)


def test_other_whole_files():
    for name, content, read in (
        ("labels.csv", TABLE, lambda path: files.read_rows(path, needed=("image", "label"))),
        ("answers.xlsx", zipped(SHEET), lambda path: sheets.read_table(path, ["image", "label"])),
        ("pneumoniamnist.npz", npz(**SET), lambda path: medmnist.make(medmnist.Config(root=str(path.parent), size=16))),
        ("pneumoniamnist.npz", npz(**SET), lambda path: xrays._pneumonia(xrays.Config(pneumonia=str(path), size=16))),
        ("liver.nii", nifti(), volumes.read_labels),
        ("liver.nii.gz", gzip.compress(nifti()), volumes.read_labels),
        ("07.dcm", dicom_bytes(), lambda path: images.read_image(path, 16)),
        ("07.dcm", dicom_bytes(), lambda path: volumes.read_dicom(path.parent)),
    ):
        with holding(name, content) as path:
            assert loads(read, path), name


def claims():
    """Small files that claim gigabytes: an array in an npz, a packed volume, slices, the last cells of many rows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "|u1", "fortran_order": False, "shape": (40_000, 50_000)})
    parts = {f"{name}.npy": npy(value) for name, value in SET.items()}
    yield "pneumoniamnist.npz", zipped(parts | {"train_images.npy": header.getvalue()})
    volume = bytearray(nifti())
    volume[40:48] = np.array([3, 3000, 3000, 100], "<i2").tobytes()
    yield "liver.nii.gz", gzip.compress(bytes(volume))
    volume[40:48] = np.array([3, 18000, 18000, 1], "<i2").tobytes()
    yield "image.nii", bytes(volume)
    rows = SHEET["xl/sheet1.xml"].replace("</worksheet>", '<row><c r="ALM1"/></row>' * 20_000 + "</worksheet>")
    yield "answers.xlsx", zipped(SHEET | {"xl/sheet1.xml": rows})
    slice_ = dicom_bytes()
    for tag, size in ((0x10, 24), (0x11, 20)):  # rows, columns
        head = struct.pack("<HH", 0x28, tag) + b"US\2\0"
        assert head + struct.pack("<H", size) in slice_
        slice_ = slice_.replace(head + struct.pack("<H", size), head + b"\xff\xff")
    yield "07.dcm", slice_


def test_claims_cost_no_memory():
    readers = {
        ".npz": lambda path: medmnist.make(medmnist.Config(root=str(path.parent), size=16)),
        ".gz": volumes.read_nifti,
        ".nii": qubiq.read_slice,
        ".dcm": lambda path: images.read_image(path, 16),
        ".xlsx": lambda path: sheets.read_table(path, ["image"]),
    }
    for name, content in claims():
        with holding(name, content) as path:
            tracemalloc.start()
            assert not loads(readers[path.suffix], path), name
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert most < 50e6, name
