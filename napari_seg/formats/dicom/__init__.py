"""DICOM: image series to volumes; segmentations and RT structure sets from and to label maps.

From the file to the volume: `headers` reads one header, `series` groups files, `frames` (with `mosaic`) places each
slice, `geometry` (with `volumes`, `tilt`) solves the stack, `read` reads its pixels. Labels: `reference` says which
scan an object belongs to; `seg` (with `seg_geometry`) and `rtstruct` (with `contours`) read and write them.
"""
