"""Every small input that once failed is right; the modules of each format make the same kinds themselves."""

from __future__ import annotations

# DICOM series


# segmentations and contours


# NIfTI, MetaImage, NRRD and images


# training and evaluation
