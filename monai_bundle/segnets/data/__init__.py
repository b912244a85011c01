"""From a folder of scans to what a network is trained on.

    layouts   a folder -> Dataset: the field's usual layouts
    labels    values in the files -> classes; pictures -> grey or RGB
    split     training, validation and test part, or folds
    faults    the check of every file before training
    cache     preprocessed cases on disk
    epochs    what each step of a training sees

Volumes are read by MONAI's `LoadImaged` as it stands. Pictures (PNG, JPEG, TIFF, ...) too, through a converter each
for images, (C, W, H) of 1 or 3 channels, and label maps, (1, W, H), both without alpha:

    - _target_: monai.transforms.LoadImaged
      keys: image
      reader: PILReader
      converter: {_target_: segnets.data.picture, _mode_: callable, channels: 1}
      image_only: true
      ensure_channel_first: true
    - _target_: monai.transforms.LoadImaged
      keys: label
      reader: PILReader
      converter: {_target_: segnets.data.label_picture, _mode_: callable}
      image_only: true
      ensure_channel_first: true
"""

from segnets.data.cache import CachedCases
from segnets.data.epochs import EpochSampler, TrainingSet
from segnets.data.faults import check
from segnets.data.labels import MapLabelsd, label_picture, label_values, picture
from segnets.data.layouts import Dataset, find_dataset, images
from segnets.data.split import datalist

__all__ = [
    "CachedCases",
    "Dataset",
    "EpochSampler",
    "MapLabelsd",
    "TrainingSet",
    "check",
    "datalist",
    "find_dataset",
    "images",
    "label_picture",
    "label_values",
    "picture",
]
