"""Measures any encoder on a folder of images, a class a folder: k-NN, and logistic regression by scikit-learn.

    python examples/evaluate_encoder.py --encoder runs/a --data photos

k-NN is that of `semmae knn --precision float32` where there are no splits: all images but itself vote for each. The
regression learns from four fifths of each class and is measured on the rest.
"""

import argparse

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from semmae import (
    Encoder,
    ImageSet,
    WholeDataset,
    extract,
    held_out,
    knn_accuracy,
    load_encoder,
    make_loader,
    open_images,
)


def evaluate(
    encoder: Encoder, images: ImageSet, pooling: str = "mean", batch_size: int = 128, workers: int = 2, seed: int = 0
) -> dict[str, float]:
    """Accuracies in percent, of features of whole images with the sides cut off."""
    assert images.labels is not None, "put the images into one folder a class"
    classes = sorted(set(images.labels))
    targets = torch.tensor([classes.index(label) for label in images.labels])
    spec = encoder.spec
    features = extract(
        encoder,
        make_loader(WholeDataset(images, spec.image_size, fit="centre"), batch_size, workers=workers),
        mean=spec.mean,
        std=spec.std,
        pooling=pooling,  # "cls": the class token; "mean": the mean of the patch tokens
        device=next(encoder.parameters()).device,
        total=len(images),
    )
    knn = knn_accuracy(features, targets, features, targets, num_classes=len(classes), leave_one_out=True)
    train, test = held_out(images.labels, 0.2, seed)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    regression.fit(features[train].numpy(), targets[train].numpy())
    right = regression.score(features[test].numpy(), targets[test].numpy())
    return {"knn_top1": knn["top1"], "knn_top5": knn["top5"], "regression_top1": 100 * float(right)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="timm:NAME, a run of semmae, or a checkpoint file")
    parser.add_argument("--data", required=True, help="folder of images, a class a folder")
    parser.add_argument("--pooling", choices=("cls", "mean"), default="mean")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")
    given = parser.parse_args()
    measured = load_encoder(given.encoder).to("cuda" if torch.cuda.is_available() else "cpu")
    for name, percent in evaluate(measured, open_images(given.data), given.pooling, workers=given.workers).items():
        print(f"{name:16}{percent:6.1f} %")
