"""New images: which files are taken, how masks are written, DICOM and NIfTI."""

import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ophjax import data as datasets
from ophjax.data import images, incoming
from ophjax.data.builders import abdomen, gamma, prostate, qubiq
from ophjax.errors import InputError


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def dicom_file(path, pixels, **tags):
    """A small DICOM file by pydicom, uncompressed."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra medical)")
    from pydicom.uid import ExplicitVRLittleEndian

    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_files_are_found_by_unique_names(tmp_path):
    grey = np.zeros((4, 4), np.uint8)
    for name in ("a.png", "a.bmp", "sub/b.PNG", ".hidden/c.png", "out/d.png"):
        save(tmp_path / "in" / name, grey)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    save(tmp_path / "secret.png", grey)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    found = incoming.list_inputs(tmp_path / "in", outside=tmp_path / "in" / "out")
    assert list(found) == ["a.bmp", "a.png", "sub/b"]
    assert list(incoming.list_inputs(tmp_path / "in" / "a.png")) == ["a"]
    (tmp_path / "empty").mkdir()
    for path, match in ((tmp_path / "empty", "holds no images"), (tmp_path / "none", "no file or folder")):
        with pytest.raises(InputError, match=match):
            incoming.list_inputs(path)


def test_no_file_is_lost_to_anothers_name(tmp_path):
    """A file whose name without suffix is another's whole name."""
    for name in ("a.png", "a.jpg", "a.png.jpg", "b.png.jpg", "c.png"):
        save(tmp_path / name, np.zeros((4, 4), np.uint8))
    found = incoming.list_inputs(tmp_path)
    assert list(found) == ["a.jpg", "a.png", "a.png.jpg", "b.png", "c"]
    assert len(set(found.values())) == 5


@pytest.mark.parametrize("name", ["gamma", "eyes", "phantoms"])
def test_earlier_results_are_no_inputs(tmp_path, name):
    save(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    save(tmp_path / "out" / "masks" / "a.png", np.zeros((20, 30), np.uint8))
    loader = datasets.load(name)
    found = incoming.readers(loader, loader.Config(), tmp_path, needed={"image"}, outside=tmp_path / "out")
    assert list(found) == ["a"]


def test_results_among_gammas_pairs_are_no_eye(tmp_path):
    for folder in ("0001", "out"):
        (tmp_path / gamma.PAIRED / folder).mkdir(parents=True)
    home = tmp_path / gamma.PAIRED
    assert list(gamma.new_examples(gamma.Config(), home, outside=home / "out")) == ["0001"]


def module(code=None):
    return types.SimpleNamespace(**({"CODE": images.parse_code(code)} if code else {}))


@pytest.mark.parametrize(
    ("code", "regions", "levels"),
    [
        ("refuge", ("disc", "cup"), (255, (128, 0))),
        ("drishti", ("disc", "cup"), (0, (1, 2))),
        ("cell=0;background=1,255", ("cell",), (255, (0,))),
        ("disc=128,255;cup=128,255", ("disc", "cup"), (0, (1, 2))),  # no value is the disc's alone
        ("background=0,1,2;nodule=253,254,255", ("nodule",), (0, (255,))),  # cut in the middle
        (None, ("lung",), (0, (255,))),
        (None, ("liver", "spleen", "kidney"), (0, (1, 2, 3))),
    ],
)
def test_grey_levels_follow_the_code(code, regions, levels):
    assert incoming.grey_levels(module(code), types.SimpleNamespace(), regions) == levels
    if code is not None:
        with_option = types.SimpleNamespace(mask_code=code)
        assert incoming.grey_levels(module(), with_option, regions) == levels


def test_written_masks_read_back_as_they_were(tmp_path):
    """A mask in the data set's code, read by its own loader, gives the regions that were written."""
    rng = np.random.default_rng(0)
    disc = rng.random((16, 16)) > 0.4
    cup = disc & (rng.random((16, 16)) > 0.5)
    levels = incoming.grey_levels(gamma, gamma.Config(), gamma.REGIONS)
    probs = np.stack([disc, cup], -1).astype(np.float32)
    save(tmp_path / "m.png", incoming.to_mask(probs, (16, 16), (0, 0, 16, 16), levels, exclusive=False))
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png", 16, gamma.CODE), probs.astype(np.uint8))


def test_pictures_are_read_as_by_the_loader(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    save(tmp_path / "a.png", pixels)
    phantoms = datasets.load("phantoms")
    ((_, read),) = incoming.readers(phantoms, phantoms.Config(size=32), tmp_path).values()
    (case,) = read()
    np.testing.assert_array_equal(case.example["image"], images.read_image(tmp_path / "a.png", 32))
    assert (case.size, case.frame, case.picture.shape) == ((60, 40), (0, 0, 60, 40), (40, 60, 3))
    foveas = datasets.load("foveas")
    ((_, read),) = incoming.readers(foveas, foveas.Config(size=32, frame="centre"), tmp_path).values()
    assert read()[0].frame == (10, 0, 40, 40)
    goals = datasets.load("goals")
    ((_, read),) = incoming.readers(goals, goals.Config(size=32, width=48), tmp_path).values()
    assert read()[0].example["image"].shape == (32, 48, 3)


def test_gamma_needs_pairs_where_the_network_reads_volumes(tmp_path):
    save(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(InputError, match="multi-modality_images/0001"):
        incoming.readers(gamma, gamma.Config(), tmp_path, needed={"image", "volume"})
    found = incoming.readers(gamma, gamma.Config(size=16), tmp_path, needed={"image", "frame"})
    assert found["a"][1]()[0].frame == (5, 0, 20, 20)


def test_dicom_pictures(tmp_path):
    values = np.arange(-8, 8, dtype=np.int16).reshape(4, 4)
    dicom_file(tmp_path / "grey.dcm", values)
    assert images.image_size(tmp_path / "grey.dcm") == (4, 4)
    whole = images.read_whole(tmp_path / "grey.dcm")
    assert whole[0, 0].tolist() == [0, 0, 0] and whole[-1, -1].tolist() == [255, 255, 255]
    dicom_file(
        tmp_path / "window.dcm", values, WindowCenter=[0, 3], WindowWidth=[4, 9], RescaleSlope=2, RescaleIntercept=1
    )
    np.testing.assert_array_equal(
        images.read_whole(tmp_path / "window.dcm")[..., 0], np.rint(np.clip((2.0 * values + 1 + 2) * 255 / 4, 0, 255))
    )
    dicom_file(tmp_path / "turned.dcm", values, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(images.read_whole(tmp_path / "turned.dcm"), 255 - whole)
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    dicom_file(tmp_path / "colour.dcm", colour)
    np.testing.assert_array_equal(images.read_whole(tmp_path / "colour.dcm"), colour)
    dicom_file(tmp_path / "film.dcm", values.repeat(2, 0), Rows=4, NumberOfFrames=2)
    with pytest.raises(InputError, match="holds 2 frames"):
        images.read_whole(tmp_path / "film.dcm")
    dicom_file(tmp_path / "short.dcm", values, Rows=400)
    (tmp_path / "text.dcm").write_text("no DICOM")
    for name in ("short", "text"):
        with pytest.raises(InputError, match="cannot be read as DICOM"):
            images.read_whole(tmp_path / f"{name}.dcm")


def test_volumes_become_slices(tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed (extra medical)")
    values = np.full((8, 6, 3), -1000, np.float32)
    values[2:5, 2:5] = 100
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "ct.nii.gz")
    ((_, read),) = incoming.readers(abdomen, abdomen.Config(size=16), tmp_path).values()
    cases = read()
    assert [case.name for case in cases] == ["ct-000", "ct-001", "ct-002"] and cases[0].size == (8, 6)
    assert set(np.unique(cases[0].picture)) == {0, round(375 * 255 / 475)}
    slices = tmp_path / "mr"
    for i in range(2):
        dicom_file(slices / f"{i}.dcm", np.arange(16, dtype=np.int16).reshape(4, 4))
    (slices / "1.dcm").rename(slices / "1.DCM")
    (slices / "._1.dcm").write_text("written by a Mac")
    found = incoming.readers(abdomen, abdomen.Config(size=16), tmp_path)
    assert list(found) == ["ct", "mr"] and len(found["mr"][1]()) == 2


def test_grey_levels_are_those_of_the_volume(tmp_path):
    """A slice has no window of its own in training, whatever its DICOM header says."""
    values = np.arange(16, dtype=np.int16).reshape(4, 4)
    for i in range(2):
        dicom_file(tmp_path / f"{i}.dcm", values * (1 + i), WindowCenter=4, WindowWidth=4)
    for module in (abdomen, prostate):
        ((_, read),) = incoming.readers(module, module.Config(size=16), tmp_path).values()
        greys = [case.picture[..., 0] for case in read()]
        top = np.percentile(np.stack([values, 2 * values]), 99.5)
        np.testing.assert_array_equal(greys[0], np.rint(values * 255 / top))
        assert greys[1].max() == 255
    for module in (abdomen, prostate, qubiq):
        with pytest.raises(InputError, match=r"0\.dcm is one DICOM file, .* Give the folder of its series"):
            incoming.readers(module, module.Config(size=16), tmp_path / "0.dcm")


def test_a_series_given_itself_has_its_folders_name(tmp_path, monkeypatch):
    """Not ".", which made hidden files of its masks."""
    for name in ("mr/0.dcm", "mr/1.dcm", "mr/mr/0.dcm"):
        dicom_file(tmp_path / name, np.arange(16, dtype=np.int16).reshape(4, 4))
    assert list(incoming.list_inputs(tmp_path / "mr", series=True)) == ["mr", "mr/mr"]
    monkeypatch.chdir(tmp_path / "mr" / "mr")
    ((name, (_, read)),) = incoming.readers(abdomen, abdomen.Config(size=16), Path()).items()
    assert name == "mr" and [case.name for case in read()] == ["mr"]
