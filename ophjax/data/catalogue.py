"""The published data sets that there are loaders for: what they are for, who hands them out, on which terms.

Terms are what we know of them and no advice: those on the source's own page decide. The expected layout is what the
loader's options say (``--help`` of ``run.py --data NAME``).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from ophjax import data as datasets
from ophjax.errors import InputError, unknown

RESEARCH = "research use; see the source's page"
SEE = "see the source's page"
REQUEST = "on request, research use only"


class Entry(NamedTuple):
    """A published data set.

    Attributes:
      loader: ``--data``.
      title: its name.
      task: what it has truth for.
      source: who hands it out.
      terms: a note on its licence.
      options: to be given beside the folder.
    """

    loader: str
    title: str
    task: str
    source: str
    terms: str
    options: str = ""


def _list() -> Iterator[tuple[str, Entry]]:
    refuge, bu = "refuge.grand-challenge.org", "Boston University"
    yield "refuge", Entry("refuge", "REFUGE", "glaucoma, two cameras", refuge, RESEARCH)
    yield "refuge7", Entry("refuge7", "REFUGE, seven raters", "disc and cup, glaucoma", refuge, RESEARCH)
    yield "foveas", Entry("foveas", "REFUGE-Validation400", "fovea", refuge, RESEARCH)
    yield "drishti", Entry("drishti", "Drishti-GS1", "disc and cup, glaucoma", "CVIT, IIIT Hyderabad", RESEARCH)
    where = "Deep Blue Data, University of Michigan"
    yield "riga", Entry("riga", "RIGA", "disc and cup, six raters", where, RESEARCH)
    yield "papila", Entry("papila", "PAPILA", "disc and cup, two raters, glaucoma", "figshare", SEE)
    task = "grade from fundus and OCT, fovea, disc and cup"
    yield "gamma", Entry("gamma", "GAMMA", task, "gamma.grand-challenge.org", REQUEST)
    yield "goals", Entry("goals", "GOALS", "layers of OCT, glaucoma", "AI Studio (Baidu), iChallenge", REQUEST)
    title, where = "NR206, OCTseg-Zeiss, Spectralis", "the papers' repositories"
    yield "octlayers", Entry("octlayers", title, "layers of OCT", where, RESEARCH)
    where = "age.grand-challenge.org"
    yield "asoct", Entry("asoct", "AS-OCT (AGE, own devices)", "angle closure by device", where, RESEARCH)
    where = "drive.grand-challenge.org; Kingston University"
    yield "vessels", Entry("vessels", "DRIVE and CHASE_DB1", "vessels, two cameras", where, RESEARCH)
    yield "ph2", Entry("ph2", "PH2", "skin lesion, melanoma", "ADDI project, University of Porto", RESEARCH)
    where, terms = "challenge.isic-archive.com", f"non-commercial (CC BY-NC or CC0); {SEE}"
    task = "skin lesion, benign or malignant, seven classes"
    yield "isic", Entry("isic", "ISIC 2016 and 2018", task, where, terms, "--data.edition")
    options = "--data.table --data.image --data.label --data.domain --data.domains"
    where, task = "Harvard Dataverse", "skin lesion classes by domain"
    yield "ham10000", Entry("table", "HAM10000 and other tables", task, where, f"CC BY-NC 4.0; {SEE}", options)
    options = "--data.image --data.label --data.domain --data.domains"
    yield "camelyon17", Entry("table", "Camelyon17-WILDS", "tumour by hospital", "wilds.stanford.edu", SEE, options)
    yield (
        "ddti",
        Entry("ddti", "DDTI, nodule crops", "thyroid nodule, benign or suspicious", "CIM@LAB, Bogota", RESEARCH),
    )
    where = "the authors' repository (TRFE-Net)"
    yield "tn3k", Entry("tn3k", "TN3K", "thyroid nodule", where, RESEARCH)
    options = "--data.set"
    yield "medmnist", Entry("medmnist", "MedMNIST, 2-D sets", "classes", "medmnist.com", "CC BY 4.0, few NC", options)
    where = "National Library of Medicine (USA)"
    yield "shenzhen", Entry("shenzhen", "Shenzhen chest X-rays", "lungs, tuberculosis", where, SEE)
    terms, options = f"CC BY 4.0 (MedMNIST); {SEE}", "--data.pneumonia FILE --data.shenzhen DIR"
    title = "PneumoniaMNIST and Shenzhen"
    yield "xrays", Entry("xrays", title, "normal or not, two hospitals", "medmnist.com; NLM", terms, options)
    where, terms = "synapse.org; chaos.grand-challenge.org", "registration; CHAOS: CC BY-NC-SA 4.0"
    options = "--data.btcv DIR --data.chaos DIR"
    yield "abdomen", Entry("abdomen", "BTCV and CHAOS", "liver, kidneys, spleen in CT and MR", where, terms, options)
    where = "authors of SAML (Liu et al.)"
    yield "prostate", Entry("prostate", "multi-site prostate MR", "prostate at six sites", where, RESEARCH)
    yield "cells", Entry("cells", "BU-BIL", "cells, three kinds as domains", bu, RESEARCH)
    yield "bubil", Entry("bubil", "BU-BIL, all annotations", "cells, ten annotations", bu, RESEARCH)
    task, where = "brain growth, kidney, prostate; several raters", "qubiq.grand-challenge.org"
    yield "qubiq", Entry("qubiq", "QUBIQ", task, where, RESEARCH, "--data.part")
    title = "DIV2K, Flickr2K, Set5 and others"
    yield "div2k", Entry("superres", title, "super-resolution", "ETH Zurich, CVL", "academic use", "--data.scale")
    task = "regions and classes"
    yield "folder", Entry("folder", "a folder of your own", task, "you", "yours", "--data.mask-code")
    yield "domains", Entry("domains", "folders of your own, one a domain", task, "you", "yours", "--data.domains")


ENTRIES: dict[str, Entry] = dict(_list())


def find(name: str) -> Entry:
    """Looks a data set up.

    Raises:
      InputError: there is none of that name; the message lists those there are.
    """
    if name not in ENTRIES:
        raise unknown("data set", name, tuple(ENTRIES))
    return ENTRIES[name]


def layout(entry: Entry) -> str:
    """What the loader expects, in its own words."""
    return " ".join(inspect.getdoc(datasets.load(entry.loader).Config).split())  # type: ignore[union-attr]


def describe() -> str:
    """Writes the table, one paragraph for each data set."""
    lines = []
    for name, entry in ENTRIES.items():
        source = " --source DIR" if _takes_source(entry) else ""
        how = f"python experiments/prepare.py {name}{source} {entry.options}".rstrip()
        lines += [
            f"{name}: {entry.title}",
            f"  task     {entry.task}",
            f"  source   {entry.source}",
            f"  terms    {entry.terms}",
            f"  layout   {layout(entry)}",
            f"  check    {how}",
            "",
        ]
    return "\n".join(lines)


def with_source(entry: Entry, config: Any, source: str) -> Any:
    """Puts the folder given by --source into the option that takes it.

    Raises:
      InputError: the set has several folders, and an option for each.
    """
    if source and not _takes_source(entry):
        raise InputError(
            f"--source {source} does not say which folder of {entry.title} it is. Give {entry.options} instead."
        )
    return dataclasses.replace(config, root=source) if source else config


def _takes_source(entry: Entry) -> bool:
    return "root" in (field.name for field in dataclasses.fields(datasets.load(entry.loader).Config))
