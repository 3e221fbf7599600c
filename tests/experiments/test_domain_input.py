"""Mistakes in data of several domains, as the command line tells them, and what it says of labels it does not use."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ophjax.errors import InputError
from ophjax.train import loop

M2DAN = ("--method", "m2dan", "--preset", "smoke")
DOMAINS = ("clinic-a", "clinic-b", "clinic-c")
SHAPES = {"clinic-a": (32, 32), "clinic-b": (24, 40, 3), "clinic-c": (50, 30)}


@pytest.fixture
def root(tmp_path):
    """Three domains of twelve labelled images, of different sizes and channels."""
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        (tmp_path / domain / "images").mkdir(parents=True)
        for i in range(12):
            picture = rng.integers(0, 256, SHAPES[domain], np.uint8)
            Image.fromarray(picture).save(tmp_path / domain / "images" / f"{i:02}.png")
        label(tmp_path, domain, lambda i: i % 2)
    return tmp_path


def label(root, domain, rule):
    rows = ["image,label", *(f"{i:02}.png,{rule(i)}" for i in range(12))]
    (root / domain / "labels.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def start(command, monkeypatch, root):
    """Starts M2DAN on the folder, up to the point where training would begin."""

    def stop(*_, **__):
        raise InputError("Training begins.")

    monkeypatch.setattr(loop, "fit", stop)

    def call(*domains, more=()):
        where = ("--data", "domains", "--data.root", root, "--data.domains", *domains)
        return command(*M2DAN, *where, "--runs", root / "runs", *more)

    return call


def refused(result, *words):
    assert result.code == 2 and result.err.startswith("error: ") and result.err.strip().count("\n") == 0, result
    for word in words:
        assert word in result.err, result.err


def test_the_log_says_that_target_labels_are_not_used(start):
    """Sizes and channels may differ: the log says that images are stretched."""
    result = start(*DOMAINS)
    refused(result, "Training begins.")
    assert "The training images of clinic-b, clinic-c carry labels, which are not used in training." in result.out
    assert "Images of any size are stretched to 32 x 32 pixels." in result.out


def test_an_empty_domain(start, root):
    for path in (root / "clinic-b" / "images").iterdir():
        path.unlink()
    refused(start(*DOMAINS), "clinic-b", "no image files")


def test_a_class_that_the_source_lacks(start, root):
    label(root, "clinic-c", lambda i: i % 3)
    refused(start(*DOMAINS), "clinic-c", "label(s) 2", "the source 'clinic-a' has not")


def test_a_single_domain(start, command, root):
    refused(start("clinic-a"), "names 1 domain(s)", "at least two")
    alone = command(*M2DAN, "--data.domains", "device-a", "--runs", root / "runs")
    refused(alone, "1 domain(s)", "--data angles", "--data domains")
    refused(command(*M2DAN, "--data", "phantoms", "--runs", root / "runs"), "no domain(s)", "--data domains")
    assert not (root / "runs").exists(), "a refused command leaves nothing"
