"""Train a bundle on a data set.

gather/       data in other formats and layouts -> a data set that training reads
label_table   count the label values, and report what is odd about them
fingerprint   measure the data set
plan          derive the training's settings from the fingerprint, by stated rules
choices       what the user sets instead
write         write the planned bundle to disk
prepare       all of the above: from a data set to a bundle that is ready to train
run           train the bundle with MONAI's own command, and copy the best weights into it
process       run that command in a process of its own
trust         check that an existing bundle contains only the shipped code
folds         cross-validation, and the ensemble of the folds
"""
