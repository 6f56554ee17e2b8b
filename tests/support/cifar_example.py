"""For tests of labelled data and of ResNet: CIFAR-10's layout on the hub, with images of noise."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def write_cifar10(folder: Path, count: int) -> np.ndarray:
    """Labels are k % 10; returns the pixels, uint8 [count, 32, 32, 3]."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    rows = {"img": [], "label": [k % 10 for k in range(count)]}
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        rows["img"].append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    (folder / "plain_text").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
        folder / "plain_text" / "train-00000-of-00001.parquet"
    )
    return pixels
