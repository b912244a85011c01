"""Read data sets and prepare their cases for training.

    pairing      image and label files of a folder, paired by name
    patients     the patient of each case: stated, or by its name and folders
    lists        tables of paths, and paths in data lists
    columns      the columns of a table that state patients, parts and folds
    bids, voc    the cases and names of these layouts
    layouts      a folder -> Dataset, in the field's usual layouts
    labels       label values -> classes; 2D images -> grey or RGB
    split        training, validation and test part, or folds
    file_facts   every file read to its end
    faults       the check of every file before training
    cache        preprocessed cases on disk
    epochs       the cases and random transforms of each training step

MONAI's `LoadImaged` reads volumes. It also reads 2D images (PNG, JPEG, TIFF, ...) with one converter for images, giving
(C, W, H) with 1 or 3 channels, and one for label maps, giving (1, W, H), both without alpha:

    - _target_: monai.transforms.LoadImaged
      keys: image
      reader: PILReader
      converter: {_target_: segnets.data.convert_image, _mode_: callable, channels: 1}
      image_only: true
      ensure_channel_first: true
    - _target_: monai.transforms.LoadImaged
      keys: label
      reader: PILReader
      converter: {_target_: segnets.data.convert_label_map, _mode_: callable}
      image_only: true
      ensure_channel_first: true
"""

from segnets.data.cache import CachedCases
from segnets.data.epochs import EpochSampler, TrainingSet, part_of_process
from segnets.data.faults import check
from segnets.data.labels import ClassValues, MapLabelsd, convert_image, convert_label_map, label_values
from segnets.data.layouts import Dataset, find_dataset, images
from segnets.data.split import Split, spread

__all__ = [
    "CachedCases",
    "ClassValues",
    "Dataset",
    "EpochSampler",
    "MapLabelsd",
    "Split",
    "TrainingSet",
    "check",
    "convert_image",
    "convert_label_map",
    "find_dataset",
    "images",
    "label_values",
    "part_of_process",
    "spread",
]
