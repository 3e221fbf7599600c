import sys

import numpy as np
import pytest
from made import build, examples, fails, names_once, save

from ophjax.data import volumes
from ophjax.data.pipeline import train_batches
from ophjax.errors import InputError


def test_missing_packages_are_named(tmp_path, monkeypatch):
    for package in ("nibabel", "pydicom"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"needs the package nibabel.*pip install 'ophjax\[medical\]'"):
        volumes.read_nifti(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="needs the package pydicom"):
        volumes.read_dicom(tmp_path)


def test_windows():
    volume = np.array([-1000, -275, -37.5, 200, 3000], np.float32).reshape(1, 1, 5)
    assert volumes.window(volume, -275, 200).ravel().tolist() == [0, 0, 128, 255, 255]  # 127.5 rounds to even
    ramp = np.arange(1001, dtype=np.float32).reshape(1, 7, 143)
    clipped = volumes.clip_top(ramp).ravel()
    assert (clipped == 255).sum() == 7 and clipped[0] == 0  # 995 of 1000 and above, and 994 rounds up too
    assert (volumes.clip_top(np.full((1, 2, 2), 3.0, np.float32)) == 0).all()  # a constant volume is no error


def ellipsoid(label):
    """A volume [x, y, z] to the right, front and top of the patient: label in the slices 2 to 4, at the right front."""
    labels = np.zeros((24, 20, 6), np.int16)
    labels[12:, 10:, 2:5] = label
    return labels


def write_nifti(path, values, flips=(1, 1, 1)):
    nibabel = pytest.importorskip("nibabel", reason="needs nibabel: pip install 'ophjax[medical]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    turned = np.ascontiguousarray(values[tuple(slice(None, None, flip) for flip in flips)])
    nibabel.save(nibabel.Nifti1Image(turned, np.diag([*flips, 1.0])), path)


@pytest.fixture
def prostate(tmp_path):
    """Two sites of five cases; the second is stored with other axes and names, as in the release."""
    for i in range(5):
        for site, flips, mark in (("RUNMC", (1, 1, 1), "_segmentation"), ("BMC", (-1, -1, 1), "_Segmentation")):
            labels = ellipsoid(1 + i % 2)
            write_nifti(tmp_path / site / f"Case{i:02d}.nii.gz", (labels * 100 + 50).astype(np.float32), flips)
            write_nifti(tmp_path / site / f"Case{i:02d}{mark}.nii.gz", labels, flips)
    return dict(root=tmp_path, domains=("RUNMC", "BMC"))


def test_prostate(prostate):
    data = build("prostate", 20, **prostate)
    assert (data.domains, data.regions, data.classes) == (("RUNMC", "BMC"), ("prostate",), ())
    assert len(names_once(data)) == 30  # three slices of ten cases
    cases = [{name[:-4] for name in data.splits[part].names} for part in ("train", "val", "test")]
    assert sum(map(len, cases)) == len(set.union(*cases)) == 10
    for example in examples(data.splits["test"]):
        # The patient's right is on the left of the picture, the front at its top, however the file is stored.
        assert example["mask"].shape == (20, 20, 1) and example["mask"][:10, :10].all()
        assert example["mask"].mean() == pytest.approx(0.25, abs=0.02)
        assert example["image"][..., 0][example["mask"][..., 0] > 0].min() > 200 and example["image"].dtype == np.uint8
        assert example["image"][12:].max() == 0 and example["label"] == -1 and example["mask_weight"] == 1
    assert len(names_once(build("prostate", **prostate, slices="all"))) == 60
    batch = next(train_batches(data.splits["masks"], batch_size=4, seed=0, threads=1))
    assert batch["image"].shape == (4, 20, 20, 3) and batch["mask"].shape == (4, 20, 20, 1)


def test_prostate_mistakes(prostate):
    root = prostate["root"]
    fails("prostate", "Unknown domain 'BMCC'", root=root, domains=("RUNMC", "BMCC"))
    fails("prostate", r"There is no folder .*HK", root=root, domains=("RUNMC", "HK"))
    path = root / "BMC" / "Case03_Segmentation.nii.gz"
    write_nifti(path, ellipsoid(1)[:, :, :5])
    fails(
        "prostate",
        r"'Case03' of domain 'BMC' has the shape \[6, 20, 24\], but its labels have \[5, 20, 24\]",
        **prostate,
    )
    write_nifti(path, ellipsoid(1) * 0.5)
    fails("prostate", r"Case03_Segmentation\.nii\.gz has values that are no labels", **prostate)
    path.write_bytes(path.read_bytes()[:200])
    fails("prostate", r"Case03_Segmentation\.nii\.gz cannot be read as NIfTI", **prostate)
    path.unlink()
    fails("prostate", r"Case03\.nii\.gz has no labels Case03_segmentation\.nii\.gz", **prostate)
    for path in (root / "BMC").iterdir():
        path.unlink()
    fails("prostate", "Domain 'BMC' has no volumes", **prostate)
    write_nifti(root / "BMC" / "Case00.nii.gz", ellipsoid(1))
    write_nifti(root / "BMC" / "Case00_segmentation.nii.gz", ellipsoid(0))
    fails("prostate", r"No slice of the 1 volume\(s\) of domain 'BMC' has a region", **prostate)


def write_dicom(path, values):
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install 'ophjax[medical]'")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        pydicom.uid.MRImageStorage,
        pydicom.uid.generate_uid(),
    )
    data = pydicom.dataset.Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = values.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.RescaleSlope, data.RescaleIntercept = 2, -10
    data.PixelData = values.astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


@pytest.fixture
def abdomen(tmp_path):
    """BTCV: organs 6, 2, 3 and 1 side by side from front to back; CHAOS: the same as 63, 126, 189 and 252."""
    for i in range(5):
        labels = np.zeros((24, 20, 4), np.int16)
        for k, label in enumerate((6, 2, 3, 1)):
            labels[:, 15 - 5 * k : 20 - 5 * k, 1:3] = label
        labels[:6] = 9  # an organ that is not asked for
        write_nifti(tmp_path / "btcv" / "img" / f"img{i:04d}.nii.gz", np.where(labels == 2, 1000, -37).astype(np.int16))
        write_nifti(tmp_path / "btcv" / "label" / f"label{i:04d}.nii.gz", labels)
        for z in range(3):
            folder, name = tmp_path / "MR" / f"{i + 1}" / "T2SPIR", f"IMG-{i:04d}-{z:05d}"
            grey = np.repeat(np.uint8([63, 126, 189, 252]), 6)[:, None] * np.ones((24, 18), np.uint8)
            grey[:, :6] = 32  # named by no range: background
            write_dicom(folder / "DICOM_anon" / f"{name}.dcm", grey)
            save(folder / "Ground" / f"{name}.png", grey if z else np.zeros_like(grey))
    return dict(btcv=tmp_path / "btcv", chaos=tmp_path / "MR")


def test_abdomen(abdomen):
    data = build("abdomen", 24, **abdomen)
    assert (data.domains, data.regions) == (("ct", "mr"), ("liver", "right_kidney", "left_kidney", "spleen"))
    assert len(names_once(data)) == 5 * 2 + 5 * 2  # slices with an organ
    for example in examples(data.splits["test"]):
        for k in range(4):
            # Bands from the top of the picture down; the part left out is at the patient's left (right of CT, as stored
            # at the left of MR).
            band = example["mask"][6 * k + 1 : 6 * k + 5]
            inside = band[:, 1:17] if example["domain"] == 0 else band[:, 9:]
            outside = band[:, 19:] if example["domain"] == 0 else band[:, :7]
            assert inside[..., k].all() and inside.sum(-1).max() == 1 and not outside.any()
        if example["domain"] == 0:
            assert (example["image"][7:11, 1:17] == 255).all()  # 1000 HU
            assert (example["image"][1:5] == 128).all()  # -37 HU: half-way from -275 to 200
        else:
            assert (
                example["image"][20:, 10:].min() == 255 and example["image"][:, :6].max() == 0
            )  # the least value is 0


def test_abdomen_mistakes(abdomen):
    fails("abdomen", "Give the path of the data with --data.btcv", chaos=abdomen["chaos"])
    fails("abdomen", "with --data.chaos", btcv=abdomen["btcv"], chaos=abdomen["chaos"] / "none")
    fails("abdomen", r"There are no volumes .*Give RawData/Training", btcv=abdomen["chaos"], chaos=abdomen["chaos"])
    fails("abdomen", "has no PATIENT/T2SPIR/", btcv=abdomen["btcv"], chaos=abdomen["btcv"])
    folder = abdomen["chaos"] / "2" / "T2SPIR"
    save(folder / "Ground" / "IMG-0001-00001.png", np.zeros((10, 10), np.uint8))
    fails("abdomen", r"Ground are of \[\(10, 10\), \(24, 18\)\], the slices of \(24, 18\)", **abdomen)
    (folder / "Ground" / "IMG-0001-00001.png").unlink()
    fails("abdomen", r"Ground has no mask of the slice\(s\) IMG-0001-00001", **abdomen)
    write_dicom(folder / "DICOM_anon" / "IMG-0001-00001.dcm", np.zeros((8, 8)))
    fails("abdomen", r"slices in .*DICOM_anon have several sizes", **abdomen)
    (folder / "DICOM_anon" / "IMG-0001-00001.dcm").write_bytes(b"nothing")
    fails("abdomen", r"IMG-0001-00001\.dcm cannot be read as DICOM", **abdomen)
    (abdomen["btcv"] / "label" / "label0003.nii.gz").unlink()
    fails("abdomen", r"There is no file .*label0003\.nii\.gz", **abdomen)
