"""Pictures of the report: sample images with true and predicted outlines, attention maps over images."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ophjax.metrics.restoration import luma_scores
from ophjax.train.report.reading import Run
from ophjax.transforms.resizing import resize_bytes

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

    Array = np.ndarray

PICTURES = 12
"""Sample images shown; more would make the page heavy."""
ATTENTION = 4
"""Sample images whose attention maps are shown."""
RESTORED = 6
"""Restored images shown beside their truth."""
CROP = 72
"""Side of the part of them that is shown, in pixels."""
MAPS = 12
"""Attention maps shown for each of them."""


def gallery(run: Run) -> str:
    """Builds the sample images with their outlines and captions; empty where the run has left none."""
    samples = run.samples
    if "image" not in samples or not len(samples["image"]) or "restored" in samples:
        return ""
    wrong, right = choose(samples)
    parts = ""
    for title, chosen in (("Misclassified, most confident first", wrong), ("Correctly classified", right)):
        if chosen:
            cards = "".join(card(run, i) for i in chosen)
            heading = f"<h3>{title}</h3>" if "probs" in samples else ""
            parts += f'{heading}<div class="cards">{cards}</div>'
    legend = ""
    if "mask" in samples:
        regions = ", ".join(str(name) for name in run.config.get("regions", []))
        legend = (
            f'<p class="note">Outlines{f" of {html.escape(regions)}" if regions else ""}: '
            '<span class="key"></span> true, <span class="key dashed"></span> predicted (probability 0.5).</p>'
        )
    return legend + parts


def restored(run: Run) -> str:
    """Builds rows of magnified pictures: bicubic, restored, true; empty where there are none."""
    samples = run.samples
    if not {"image", "restored", "target"} <= samples.keys():
        return ""
    rows = ""
    for i in range(min(RESTORED, len(samples["restored"]))):
        truth = samples["target"][i]
        scale = len(truth) // len(samples["image"][i])
        shown = {"bicubic": resize_bytes(samples["image"][i], scale, up=True), "restored": samples["restored"][i]}
        cells = ""
        for name, image in (shown | {"truth": truth}).items():
            score = ""
            if name in shown:
                psnr, ssim = luma_scores(image.astype(np.float64), truth.astype(np.float64), scale)
                score = f" · {psnr:.2f} dB, SSIM {ssim:.3f}"
            drawn = picture(data_uri(middle(image)), f"{name}{i}", ratio=1.0, label=f"{name}, middle part, magnified")
            cells += f"<figure>{drawn}<figcaption>{name}{score}</figcaption></figure>"
        rows += f'<p class="caption"><span class="name">{html.escape(name_of(run, i))}</span></p>'
        rows += f'<div class="cards">{cells}</div>'
    return note_of_crops(samples["target"]) + rows


def middle(image: UInt8[Array, "h w c"]) -> UInt8[Array, "i j c"]:
    """Cuts out the middle square of at most ``CROP`` pixels and magnifies it by whole pixels."""
    side = min(CROP, *image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    part = image[top : top + side, left : left + side]
    return part.repeat(3, 0).repeat(3, 1)


def note_of_crops(target: Array) -> str:
    """Says what the pictures side by side show."""
    side = min(CROP, *target.shape[1:3])
    return (
        f'<p class="note">The middle {side} x {side} pixels, pixels as squares; PSNR and SSIM are of the whole image,'
        " on luma without its border.</p>"
    )


def attention(run: Run) -> str:
    """Builds the attention maps over some of the sample images; empty where the run has left none."""
    samples = run.samples
    if "attention" not in samples or "image" not in samples:
        return ""
    names = [str(name) for name in json.loads(str(samples.get("attention_names", "[]")))]
    wrong, right = choose(samples)
    chosen = [*wrong[: ATTENTION // 2], *right][:ATTENTION]
    rows = ""
    for i in chosen:
        image = samples["image"][i]
        ratio = image.shape[1] / image.shape[0]
        # Heat is read off its colour, so the image under it is grey.
        grey = np.round(image[..., :3] @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
        plain = picture(data_uri(grey), f"grey{i}", ratio=ratio, label="image")
        cells = _cell(plain, "image")
        for number, heat in enumerate(samples["attention"][i][:MAPS]):
            name = names[number] if number < len(names) else f"map {number + 1}"
            drawn = overlay(f"grey{i}", heat, ratio=ratio, label=f"attention, {name}")
            cells += _cell(drawn, html.escape(name))
        words = " · ".join(caption(run, i))
        rows += f'<p class="caption">{words}</p><div class="maps">{cells}</div>'
    return (
        '<p class="note">Where the network looks: grey is no attention, yellow the most within the map (each map'
        f" has a scale of its own).</p>{rows}"
    )


def exported(run: Run) -> str:
    """Builds the maps that the method exports of training images (``Method.export``); empty where there are none."""
    samples = run.samples
    names = [name.removeprefix("map_") for name in samples if name.startswith("map_")]
    if not names or "train_image" not in samples:
        return ""
    raters = [str(name) for name in run.config.get("raters", [])]
    rows = ""
    for i, image in enumerate(samples["train_image"][:ATTENTION]):
        ratio = image.shape[1] / image.shape[0]
        cells = _cell(picture(data_uri(image), f"train{i}", ratio=ratio, label="image"), "image")
        for name in names:
            found = np.asarray(samples[f"map_{name}"][i], np.float64)
            if found.ndim == 2:
                grey = np.round(255 * np.clip(found, 0, 1)).astype(np.uint8)
                cells += _cell(picture(data_uri(grey), f"train{i}{name}", ratio=ratio, label=name), name)
                continue
            # One scale for all maps of an image: it is their difference that counts.
            low, high = found.min(), found.max()
            for r in range(min(found.shape[2], MAPS)):
                label = raters[r] if r < len(raters) else f"{name} {r + 1}"
                heat = (found[..., r] - low) / max(high - low, 1e-12)
                drawn = overlay(f"train{i}", heat, ratio=ratio, label=f"{name}, {label}", top=1.0, full=True)
                cells += _cell(drawn, f"{html.escape(label)}<br>{found[..., r].mean():.3f}")
        words = html.escape(str(samples["train_name"][i])) if "train_name" in samples else ""
        classes = [str(name) for name in run.config.get("classes", [])]
        if "train_label" in samples and 0 <= int(samples["train_label"][i]) < len(classes):
            words += f" · label <b>{html.escape(classes[int(samples['train_label'][i])])}</b>"
        rows += f'<p class="caption">{words}</p><div class="maps">{cells}</div>'
    return (
        '<p class="note">Training images, whose labels went into these maps. Weights from the least (dark) to the'
        f" greatest (yellow) of an image, with their mean; all are in the run's folder maps/.</p>{rows}"
    )


def _cell(drawn: str, caption: str) -> str:
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def probabilities(samples: Mapping[str, Array]) -> Array | None:
    """Returns the class probabilities of the samples as [n, k], also where only that of class 1 was kept."""
    if "probs" not in samples or "label" not in samples:
        return None
    probs = np.asarray(samples["probs"], np.float64).reshape(len(samples["label"]), -1)
    return np.concatenate([1 - probs, probs], 1) if probs.shape[1] == 1 else probs


def decided(samples: Mapping[str, Array], probs: Array) -> Array:
    """Returns the class of each sample, [n]: as the method decided, else the most probable one."""
    return np.asarray(samples["predicted"]) if "predicted" in samples else probs.argmax(1)


def choose(samples: Mapping[str, Array]) -> tuple[list[int], list[int]]:
    """Picks samples to show: up to half wrong ones, the most confident first; right ones of each class in turn."""
    probs = probabilities(samples)
    if probs is None:
        return [], list(range(min(PICTURES, len(samples["image"]))))
    label, predicted = np.asarray(samples["label"]), decided(samples, probs)
    wrong = [
        int(i)
        for i in np.argsort(-probs[np.arange(len(probs)), predicted], kind="stable")
        if 0 <= label[i] != predicted[i]
    ]
    # Images whose label is not known take their turn with the right ones.
    queues = [[int(i) for i in np.flatnonzero((label == k) & ((predicted == k) | (k < 0)))] for k in np.unique(label)]
    right = []
    while any(queues):
        right += [queue.pop(0) for queue in queues if queue]
    wrong = wrong[: max(PICTURES // 2, PICTURES - len(right))]
    return wrong, right[: PICTURES - len(wrong)]


def card(run: Run, i: int) -> str:
    """Builds one sample image with its outlines and its caption."""
    samples = run.samples
    image = samples["image"][i]
    truth, found = (
        [outline(region) for region in np.moveaxis(samples[name][i], -1, 0)] if name in samples else []
        for name in ("mask", "mask_probs")
    )
    ratio = image.shape[1] / image.shape[0]
    drawn = picture(data_uri(image), f"sample{i}", truth=truth, found=found, ratio=ratio, label="sample image")
    lines = [line for line in (*caption(run, i), overlaps(run, i)) if line]
    return f"<figure>{drawn}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def caption(run: Run, i: int) -> list[str]:
    """Builds the parts of a sample's caption: its name, right or wrong, its label and the probability."""
    samples, classes = run.samples, [str(name) for name in run.config.get("classes", [])]
    name = f'<span class="name">{html.escape(name_of(run, i))}</span>'
    probs = probabilities(samples)
    if probs is None:
        return [name]
    if len(classes) != probs.shape[1]:
        classes = [f"class {k}" for k in range(probs.shape[1])]
    label, predicted = int(samples["label"][i]), int(decided(samples, probs)[i])
    shown = 1 if len(classes) == 2 else predicted
    mark = '<b class="right">✓ right</b>' if label == predicted else '<b class="wrong">✗ wrong</b>'
    probability = f"P({html.escape(classes[shown])}) = {probs[i, shown]:.2f}"
    if label < 0:
        return [name, "label not known", probability]
    return [name, f"{mark} · label <b>{html.escape(classes[label])}</b>", probability]


def name_of(run: Run, i: int) -> str:
    """Finds the name of a sample in predictions.csv, whose rows are in the order of the split."""
    if "index" not in run.samples:
        return ""
    index = int(run.samples["index"][i])
    return str(run.predictions[index].get("name") or "") if 0 <= index < len(run.predictions) else ""


def overlaps(run: Run, i: int) -> str:
    """Lists the Dice of each region of a sample."""
    samples = run.samples
    if "mask" not in samples or "mask_probs" not in samples:
        return ""
    if "mask_weight" in samples and not samples["mask_weight"][i]:
        return "no true mask"
    truth, found = samples["mask"][i] > 0, samples["mask_probs"][i] > 0.5
    regions = [str(name) for name in run.config.get("regions", [])]
    words = []
    for c in range(truth.shape[-1]):
        size = truth[..., c].sum() + found[..., c].sum()
        dice = 2 * (truth[..., c] & found[..., c]).sum() / size if size else 1.0
        words.append(f"{html.escape(regions[c]) if c < len(regions) else f'region {c + 1}'} {dice:.2f}")
    return f"Dice: {', '.join(words)}"


def data_uri(image: UInt8[Array, "h w *c"], *, limit: int = 224) -> str:
    """Encodes a picture for use inside the page, its longer side at most ``limit`` pixels.

    Small pictures and pictures with transparency become PNG, the others JPEG.
    """
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((limit, limit))
    exact = picture.mode == "RGBA" or max(picture.size) <= 64
    file = io.BytesIO()
    if exact:
        picture.save(file, format="PNG", optimize=True)
    else:
        picture.save(file, format="JPEG", quality=85)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def outline(mask: Float[Array, "h w"], *, limit: int = 128) -> str:
    """Traces where a mask passes 0.5: the ``d`` of an SVG path in a box of 100 by 100, empty if nowhere."""
    from contourpy import contour_generator
    from PIL import Image

    height, width = mask.shape
    scale = min(1.0, limit / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    field = np.asarray(Image.fromarray(np.asarray(mask, np.float32)).resize(size, Image.Resampling.BOX))
    # A frame of zeros closes the outlines of regions that touch the border.
    lines = contour_generator(z=np.pad(field, 1)).lines(0.5)
    scales = 100.0 / np.array(size)
    path = ""
    for line in lines:
        points = np.clip((np.asarray(line) - 0.5) * scales, 0.0, 100.0)
        path += "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + "Z"
    return path


def picture(
    image: str,
    name: str,
    *,
    truth: Sequence[str] = (),
    found: Sequence[str] = (),
    ratio: float = 1.0,
    label: str = "",
) -> str:
    """Draws an encoded image with outlines over it.

    Args:
      image: data URI.
      name: id under which ``overlay`` finds the image; unique in the page.
      truth: outlines of the true regions, drawn solid.
      found: outlines of the predicted regions, drawn dashed.
      ratio: width / height of the image.
      label: read out by screen readers.

    Returns:
      An ``<svg>`` element with a box of 100 by 100, stretched to the ratio.
    """
    # Only the true outline has a dark edge: where both coincide, its white shows between the dashes.
    solid = '<path class="halo" d="{0}"/><path class="truth" d="{0}"/>'
    lines = "".join(solid.format(path) for path in truth if path)
    lines += "".join(f'<path class="found" d="{path}"/>' for path in found if path)
    return (
        f'{_box(ratio, label)}<image id="{name}" href="{image}" width="100" height="100"'
        f' preserveAspectRatio="none"/>{lines}</svg>'
    )


def overlay(
    name: str,
    heat: Float[Array, "h w"],
    *,
    ratio: float = 1.0,
    label: str = "",
    top: float | None = None,
    full: bool = False,
) -> str:
    """Lays a heat map over the image that ``picture`` drew under this name, the more opaque the hotter.

    ``top`` is the value of the hottest colour, by default the map's own greatest. With ``full`` the map hides the image
    evenly.
    """
    import matplotlib

    heat = np.nan_to_num(np.asarray(heat, np.float64))
    heat = heat / max(heat.max() if top is None else top, 1e-12)
    # The dark end of the colours would hide the image just where nothing is to be seen.
    opacity = np.full_like(heat, 0.85) if full else np.minimum(1.2 * heat, 0.75)
    colours = matplotlib.colormaps["inferno"](0.25 + 0.75 * heat, alpha=opacity, bytes=True)
    return (
        f'{_box(ratio, label)}<use href="#{name}"/><image href="{data_uri(colours, limit=48)}" width="100"'
        ' height="100" preserveAspectRatio="none"/></svg>'
    )


def _box(ratio: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{html.escape(label)}"'
        f' style="aspect-ratio:{ratio:.4f}">'
    )
