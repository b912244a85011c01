"""DICOM: image series to volumes; segmentations and RT structure sets to label maps, and back.

Reading a scan: `headers` parses each file once, `series` groups the files, `frames` (with `mosaic`) gives each slice
its geometry, `geometry` (with `kinds`, `volumes`) orders them and solves the grid, `pixels` decodes them, `read` puts
all together; `private_words` keeps names of people out of messages.

Labels: `reference` decides whether an object was made from a scan; `seg` (with `seg_geometry`) and `rtstruct` (with
`contours`) read label maps; `seg_write` and `rtstruct_write` write them, on what `source` says about the scan's images;
`tilt` shifts slices and labels of a tilted gantry.
"""
