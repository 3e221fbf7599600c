"""What the scores are called and what they mean."""

from __future__ import annotations

MEANINGS = {
    "cdr_auc": (
        "AUC of the cup-to-disc area",
        "AUC of the ratio of areas, last region over first, in the drawn masks alone",
    ),
    "vertical_cdr_auc": ("AUC of the vertical cup-to-disc ratio", "the same of heights"),
    "image_and_mask_auc": ("AUC of image and mask", "a diagnosis net that sees the image beside the drawn mask"),
    "auc": ("AUC", "area under the ROC curve: the chance that a positive example ranks above a negative one"),
    "accuracy": ("Accuracy", "share of all examples that are classified correctly"),
    "ensemble_accuracy": ("Accuracy of the pool", "of the mean of its classifiers' probabilities"),
    "retrieval": ("Retrieval", "share of images whose other view is the most similar one of the batch"),
    "restored": ("Restoration", "minus the squared error of images restored from noise, the image being -2 to 2"),
    "sensitivity": ("Sensitivity", "share of the positive examples that are found"),
    "balanced_accuracy": ("Balanced accuracy", "mean over the classes of the share of each that is recognised"),
    "specificity": ("Specificity", "share of the negative examples that are recognised as such"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "kappa": ("Quadratic kappa", "agreement on ordered classes beyond chance"),
    "soft_dice_raters": ("Soft Dice with the raters", "soft Dice with the mean of the raters instead of the truth"),
    "soft_iou_raters": ("Soft IoU with the raters", "soft IoU with the mean of the raters instead of the truth"),
    "soft_dice_fused": ("Soft Dice of the fused label", "of the raters' masks, weighed as learned, with the truth"),
    "soft_dice_mean": ("Soft Dice of the mean label", "of the raters' masks, weighed alike, with the truth"),
    "disagreement_before": (
        "Disagreement before",
        "half the chance that two raters differ on a pixel, over the region",
    ),
    "disagreement_after": ("Disagreement after", "the same chance for raters drawn by the learned weights"),
    "weight_skill": ("Weight and skill", "rank correlation of the raters' weights with their Dice with the truth"),
    "soft_dice": ("Soft Dice", "Dice averaged over the thresholds 0.1, 0.3, 0.5, 0.7, 0.9"),
    "soft_iou": ("Soft IoU", "IoU averaged over the thresholds 0.1, 0.3, 0.5, 0.7, 0.9"),
    "dice": ("Dice", "overlap of predicted and true region, 2|A∩B| / (|A|+|B|), threshold 0.5"),
    "med": (
        "Edge distance",
        "mean distance of the predicted edge to the nearest true edge, in pixels of the net's image",
    ),
    "ordered": ("Order", "share of columns in which the layers lie in their order"),
    "psnr": ("PSNR", "peak signal-to-noise ratio in dB, on luma without a border"),
    "ssim": ("SSIM", "structural similarity, on luma without a border"),
    "consistency": ("LR consistency", "PSNR in dB of the result, shrunk again, against the input"),
    "iou": ("IoU", "overlap of predicted and true region, |A∩B| / |A∪B|, threshold 0.5"),
}
"""Names and meanings of the scores; ``dice_disc`` is found under ``dice``."""


def describe(name: str) -> tuple[str, str]:
    """Finds the usual name of a score, with its region, and what it means."""
    for start, (short, meaning) in MEANINGS.items():
        if name == start:
            return short, meaning
        if name.startswith(f"{start}_"):
            return f"{short}, {name.removeprefix(f'{start}_')}", meaning
    return name, ""
