"""What metrics and pictures are called in full, and what they say, for those who read a report."""

import re
from typing import NamedTuple


class Entry(NamedTuple):
    """A metric or a picture: its name in full, and a sentence or two on what it says."""

    title: str
    text: str = ""


# Where two kinds of evaluator mean different things by one name, it is KIND/NAME.
_METRICS = {
    "accuracy": Entry("Accuracy", "Share of the images whose most probable class is the true one."),
    "top5_accuracy": Entry(
        "Top-5 accuracy",
        "Share of the images whose true class is among the five most probable.",
    ),
    "nll": Entry(
        "Negative log-likelihood",
        "Mean of -log of the probability of the true class, in nats; lower is better.",
    ),
    "ece": Entry(
        "Expected calibration error",
        "Mean distance of confidence and accuracy over 15 bins of confidence; lower is better.",
    ),
    "mean_per_class_accuracy": Entry(
        "Mean accuracy of the classes",
        "Accuracy of each class that occurs, averaged: a rare class counts as much as any.",
    ),
    "AP": Entry(
        "Average precision, boxes",
        "COCO's: the mean over classes and over IoU 0.50, 0.55, ..., 0.95.",
    ),
    "AP50": Entry("AP at IoU 0.50", "A loosely placed box is right too."),
    "AP75": Entry("AP at IoU 0.75", "Only a well placed box is right."),
    "AP_small": Entry("AP of small objects", "Areas up to 32 x 32 pixels."),
    "AP_medium": Entry("AP of medium objects", "Areas from 32 x 32 to 96 x 96 pixels."),
    "AP_large": Entry("AP of large objects", "Areas from 96 x 96 pixels."),
    "AR1": Entry("Average recall, 1", "With one detection of a class in an image."),
    "AR10": Entry("Average recall, 10", "With ten detections of a class in an image."),
    "AR100": Entry("Average recall, 100", "With a hundred detections of a class in an image."),
    "VOC_AP": Entry("Mean AP, Pascal VOC", "At IoU 0.50, the area under precision against recall."),
    "VOC07_AP": Entry(
        "Mean AP, Pascal VOC 2007", "At IoU 0.50, precision at eleven points of recall."
    ),
    "segmentation/AP": Entry(
        "Average precision, masks",
        "COCO's: the mean over classes and over IoU 0.50, 0.55, ..., 0.95.",
    ),
    "segmentation/AP50": Entry("AP of masks at IoU 0.50", "A roughly right mask is right too."),
    "segmentation/AP75": Entry("AP of masks at IoU 0.75", "Only a close mask is right."),
    "mIoU": Entry(
        "Mean intersection over union",
        "Of the pixels of each class; one that is found but nowhere true counts as 0.",
    ),
    "mIoU_present": Entry("Mean IoU of the classes present", "Only classes that are in the truth."),
    "pixel_accuracy": Entry("Accuracy of pixels", "Share of the pixels that have their class."),
    "mean_accuracy": Entry(
        "Mean accuracy of the classes", "Recall of the pixels of each true class, averaged."
    ),
    "boundary_F": Entry(
        "F of the boundaries",
        "Precision and recall of the outlines of each class, a small tolerance allowed.",
    ),
    "PQ": Entry(
        "Panoptic quality",
        "Segments told apart and well outlined: SQ times RQ of each class, averaged.",
    ),
    "SQ": Entry("Segmentation quality", "Mean IoU of the segments that were found."),
    "RQ": Entry("Recognition quality", "F1 of the segments: found, missed and invented."),
    "PQ_things": Entry("Panoptic quality of things", "Of classes of objects that can be counted."),
    "PQ_stuff": Entry("Panoptic quality of stuff", "Of classes such as sky, which cannot."),
    "loss": Entry("Loss", "Lower is better."),
    "reconstruction/loss": Entry(
        "Loss of reconstruction",
        "Mean squared error of the hidden patches, as in training; lower is better.",
    ),
    "contrast/loss": Entry(
        "Contrastive loss", "Of telling the two views of an image from others; lower is better."
    ),
    "contrast_accuracy": Entry(
        "Accuracy of the contrast", "Share of the views nearest to the other view of their image."
    ),
    "feature_std": Entry(
        "Spread of the features",
        "1 where their directions are spread evenly; near 0 all images look alike to the backbone.",
    ),
    "effective_rank": Entry(
        "Effective rank of the features", "In how many directions images differ."
    ),
    "knn_accuracy": Entry(
        "Accuracy, k nearest neighbours", "Of frozen features, by the labels of those near them."
    ),
    "linear_accuracy": Entry("Accuracy, linear probe", "A linear classifier by SGD, on features."),
    "linear_learning_rate": Entry("Learning rate of the linear probe", "The one that was chosen."),
    "logistic_accuracy": Entry(
        "Accuracy, logistic regression", "A linear classifier by L-BFGS, on features."
    ),
    "logistic_c": Entry("C of the logistic regression", "The one that was chosen."),
}
_SHOTS = re.compile(r"(\d+)_shot_accuracy")

# In the order in which a person wants to see them.
_PICTURES = {
    "detections": Entry(
        "Detections beside the truth",
        "Each image twice: its objects, and what was found. Blue go together at IoU 0.50, "
        "vermilion were missed or are wrong, grey do not count.",
    ),
    "segmentations": Entry(
        "Segments beside the truth",
        "Image, truth, prediction and errors: vermilion where a pixel's class is wrong. What is "
        "hatched does not count.",
    ),
    "reconstructions": Entry(
        "Reconstructions", "Images, what the encoder sees of them, and what the decoder draws."
    ),
    "views": Entry("Views", "The two random views of each image that are compared."),
    "neighbours": Entry(
        "Nearest neighbours", "Images, and beside each the training images nearest to it."
    ),
    "confusion": Entry(
        "Confusion matrix", "What examples of each true class, a row, were taken for, in per cent."
    ),
    "detection/confusion": Entry(
        "Confusion matrix",
        "What objects of each true class, a row, were taken for, in per cent; background is what "
        "was missed, and where nothing is.",
    ),
    "segmentation/confusion": Entry(
        "Confusion matrix", "What pixels of each true class, a row, were taken for, in per cent."
    ),
    "reliability": Entry(
        "Reliability diagram",
        "Accuracy in bins of confidence, on the dashed line if confidence is what it says; below, "
        "how many images each bin holds.",
    ),
    "mistakes": Entry(
        "Worst mistakes",
        "Those that cost most likelihood, worst first: what the image is, and what the model says "
        "with which confidence.",
    ),
    "precision_recall": Entry(
        "Precision against recall", "At IoU 0.50, the mean over the classes and single ones."
    ),
    "classes": Entry("Classes", "The metric of each class, the highest first."),
    "detection/classes": Entry("AP of each class", "COCO's, of boxes, the highest first."),
    "segmentation/classes": Entry("IoU of each class", "Of its pixels, the highest first."),
    "boundaries": Entry("F of each class's boundaries", "The highest first."),
    "panoptic": Entry("PQ of each class", "The highest first."),
}
_FILES = {
    "classes.json": "the numbers of each class",
    "detections.json": "all detections, as COCO's tools read them",
    "instances.json": "all instances with their masks, as COCO's tools read them",
}


def metric(kind: str, name: str) -> Entry:
    """What a metric of an evaluator of this kind is; one that is not known has its name alone."""
    if shots := _SHOTS.fullmatch(name):
        images = f"{shots[1]} labelled image{'s' * (shots[1] != '1')}"
        return Entry(f"Accuracy, {shots[1]}-shot", f"Of frozen features, with {images} a class.")
    return _METRICS.get(f"{kind}/{name}") or _METRICS.get(name) or Entry(name)


def picture(kind: str, stem: str) -> Entry:
    """What a picture of an evaluator of this kind shows, by the name of its file."""
    known = _PICTURES.get(f"{kind}/{stem}") or _PICTURES.get(stem)
    return known or Entry(stem.replace("_", " "))


def place(stem: str) -> tuple[int, str]:
    """A key to sort pictures by: what a person wants to see first comes first."""
    order = [name for name in _PICTURES if "/" not in name]
    return (order.index(stem) if stem in order else len(order)), stem


def file(name: str) -> str:
    """What a file beside the pictures holds; "" of one that is not known."""
    return _FILES.get(name, "")
