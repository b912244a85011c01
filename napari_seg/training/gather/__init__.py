"""Turn data as people have it into a data set that a training reads.

`segnets.data.find_dataset` finds the usual layouts of NIfTI files and 2D images. For everything else that the
program's own readers read, `gather` finds pairs of scans and label maps, and writes them in the Decathlon's layout.

gather    the data set of a folder: as it is, or converted
pair      a scan and its label maps, found and not yet read
named     pairs by the names of files and folders
dicom     pairs of DICOM series and the segmentations or contours that refer to them
polygons  pairs of 2D images and annotations of COCO or labelme
colours   label maps in colours, by the table of colours beside them
frames    pairs of which every frame or page becomes a case
labels    the label maps of a pair as one array on the grid of the scan; one value for each name in all cases
fractions the volumes of the structures of a pair, if labels are fractions
combine   several data sets as one
classes   one table of values for the classes of several data sets
patients  which patients several data sets have in common
write     the cases on disk, with a record from which the next start continues
"""
