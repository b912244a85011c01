"""Define every code of an error, a notice and a skip: its kind, its meaning and what to do.

This table is the only place where a code is explained. `scripts/errors_page.py` writes `docs/errors.md` from it, and
`tests/test_error_codes.py` compares it with the codes that the modules use.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """Explain one code.

    Attributes:
        kind: "error" stops a scan or a command, "notice" goes with a result, "skip" marks a file that is no scan,
            or a scan that a run leaves out; "error, notice" is an error in one place and a notice in another.
        meaning: what was found, as one or two sentences.
        mend: what to do, as one or two sentences.
    """

    kind: str
    meaning: str
    mend: str


AREAS = {
    "accept": "Accepting corrected cases into a training set",
    "archive": "Archives (zip, tar)",
    "bundle": "Models and the choices of a training",
    "cohort": "Runs over many scans",
    "channels": "Several images as the channels of one case",
    "data": "The numbers in a scan",
    "dataset": "The data set of a training",
    "download": "Downloads of models",
    "edit": "Editing and prompts",
    "environment": "This machine",
    "evaluation": "The comparison of results with references",
    "file": "A file as such",
    "fitness": "Doubts whether a scan fits a model",
    "geometry": "Positions in the patient",
    "image": "An image of a training data set",
    "improve": "Improving a model with accepted cases",
    "input": "What was given as an input",
    "internal": "Faults of napari-seg",
    "label": "A label map of a training data set",
    "labels": "Label values, segments and contours",
    "layer": "A napari layer that another program made",
    "localise": "The search for the region in a larger scan",
    "name": "Names of cases",
    "network": "The settings of a network",
    "output": "Writing results",
    "partner": "Pairs in a training data set",
    "queue": "Which case to correct next",
    "result": "Doubts about a result",
    "run": "Running, stopping and resuming",
    "series": "DICOM series",
    "session": "Sessions in napari",
    "skip": "Files that are no scan",
    "split": "Training, validation and test parts",
    "store": "The models installed on this machine",
    "training": "A training that ended early",
    "values": "The values of a training image",
    "weights": "Weights",
}
"""The part of a code before the dot, and what it is about."""

CODES = {
    # accept
    "accept.again": Code(
        "error",
        "The scan was accepted before, and its labels would be replaced.",
        "Give `--replace` if the new labels are to take their place; structures that they lack are lost.",
    ),
    "accept.busy": Code("error", "Another program is writing into the training set.", "Try again when it is done."),
    "accept.channels": Code(
        "error",
        "The scan has other channels, or another modality, than the other scans of the training set.",
        "Choose another folder for these scans.",
    ),
    "accept.empty": Code(
        "error",
        "The labels hold no voxel, and nothing says which structures were looked for.",
        "Draw the structure, or name those that were checked and are not there (`--checked`).",
    ),
    "accept.grid": Code(
        "error", "The labels do not lie on the voxels of the scan.", "Choose the scan that they were drawn on."
    ),
    "accept.mirrored": Code(
        "error",
        "The training set has the voxels of this scan in another orientation, as after a wrong affine. Left and right "
        "may be exchanged in one of both.",
        "Correct the orientation of the scan; or remove the case that is wrong (`napari-seg accept --discard`) and "
        "accept the scan again.",
    ),
    "accept.no_scan": Code(
        "error",
        "The scan of a label map was not found, or several have its name.",
        "Name the folder of the scans that were segmented; name a label map without a record, and its folders, as its "
        "scan.",
    ),
    "accept.not_a_set": Code(
        "error",
        "The folder holds other files than accepted cases, or its index is damaged.",
        "Choose a new or empty folder.",
    ),
    "accept.other_scan": Code(
        "error",
        "The labels were made from other files than the scan that they are accepted for.",
        "Choose the scan that was segmented; if its files have only been copied or converted, pass `--same-scan`.",
    ),
    "accept.same_name": Code(
        "error",
        "Two structures of the labels have the same name, apart from upper and lower case.",
        "Rename one of them, or give both one label.",
    ),
    "accept.two_labels": Code(
        "error",
        "Several label maps of one call have the same scan; none of them is accepted.",
        "Name only the one to accept, or remove the others from the folder.",
    ),
    "accept.unknown_case": Code(
        "error", "The training set has no case of this name.", "Use a name from the list of its cases."
    ),
    "accept.unnamed": Code(
        "error",
        "A label that is in use has no name, or one that is reserved or too long.",
        "Name the structures (`--names 1=liver`); background and ignore are no names of structures.",
    ),
    # archive
    "archive.encrypted": Code(
        "error",
        "The archive needs a password, or is compressed in an uncommon way.",
        "Unpack it first and name the folder.",
    ),
    "archive.nested": Code("error", "The archive lies in another archive.", "Unpack the outer one first."),
    "archive.same_name": Code(
        "error",
        "Two files in the archive have the same name, so one would replace the other.",
        "Unpack it and rename one of them.",
    ),
    "archive.too_large": Code(
        "error",
        "The unpacked files need more room than the temporary folder has.",
        "Unpack the archive yourself on a disk with room, or free some space.",
    ),
    "archive.unsafe": Code(
        "error",
        "A file name in the archive leads out of the archive, as in an attack.",
        "Do not trust the archive; ask its source for another one.",
    ),
    # bundle
    "bundle.channels": Code(
        "error",
        "The model expects another number of channels than the scan has.",
        "Choose another model, or run this one with MONAI by the command in the message.",
    ),
    "bundle.config": Code(
        "error",
        "The bundle's inference config is missing, can't be read, or lacks network_def, preprocessing or inferer.",
        "Correct `configs/inference.yaml`, or ask the bundle's author.",
    ),
    "bundle.dimensions": Code(
        "error",
        "The bundle segments 2D images and the scan has several slices, or it segments volumes and the scan has one.",
        "Choose a bundle for volumes or for their slices, or a scan of one slice.",
    ),
    "bundle.dims": Code(
        "error",
        "A 3D network was requested for a data set of 2D images, or a model of nnU-Net, which learns on volumes or "
        "their slices only.",
        "Leave `--dims` out, or give `--dims 2`; or train without `--fine-tune`.",
    ),
    "bundle.empty_labels": Code(
        "notice",
        "The bundle reads reference labels together with the scan; it was given an empty label map in their place.",
        "Check whether the bundle uses them for its result; most only copy them.",
    ),
    "bundle.fitted": Code(
        "notice",
        "The model's config names an argument that this version of MONAI no longer has, or a reference label map that "
        "a scan does not have; it was left out. The network and the image are the same without it.",
        "Nothing, if the result is plausible.",
    ),
    "bundle.fold": Code(
        "error",
        "There is no fold of this number, or the bundle was made without `--folds`.",
        "Give a number from 0 to the number of folds - 1.",
    ),
    "bundle.folds": Code("error", "Fewer than two folds were requested.", "Give `--folds` 2 or more."),
    "bundle.foreign_expression": Code(
        "error",
        "A config of the bundle contains an expression that Python would evaluate.",
        "Read the lines in the message. If you trust the source, give `--trust` (in Python, `trust=True`).",
    ),
    "bundle.foreign_target": Code(
        "error",
        "A config of the bundle calls a function that is not one of MONAI's, such as one that starts other programs.",
        "Read the lines in the message. If you trust the source, give `--trust` (in Python, `trust=True`).",
    ),
    "bundle.intensities": Code(
        "error",
        "A task of TotalSegmentator truncates intensities to whole numbers, and this scan, as from 0 to 1, has none.",
        "Multiply the intensities, for example by 1000, or use the scan before it was normalised.",
    ),
    "bundle.link": Code(
        "error",
        "A file or folder of the bundle is a link out of it, a pipe or a device.",
        "Copy the bundle with the files that its links lead to (`cp -rL`). Links of weights need `--trust` only.",
    ),
    "bundle.members": Code(
        "error",
        "An ensemble can't average its `members`: one makes labels in another way than by argmax, or of regions by one "
        "half, on the scan's grid, changes them afterwards, or has other channels; or the ensemble declares what an "
        "average does not apply.",
        "Choose one member alone, such as `--model OUT/members/3d`; or correct what the message names.",
    ),
    "bundle.metadata": Code(
        "error",
        "`configs/metadata.json` can't be used: it is damaged, incomplete, or holds values outside their range.",
        "Correct it by MONAI's bundle specification; it needs network_data_format.",
    ),
    "bundle.missing": Code(
        "error", "The bundle that is shipped with napari-seg is not installed.", "Install napari-seg again."
    ),
    "bundle.modality": Code(
        "error",
        "The model was trained on another modality than that of the scan, such as MR and CT.",
        "Choose another scan or another model; `napari-seg models list` lists them.",
    ),
    "bundle.name": Code(
        "error",
        "A class, a channel or the bundle has a name that begins with $, @ or %; MONAI would run it as code or look "
        "it up.",
        "Choose another name.",
    ),
    "bundle.network": Code(
        "error",
        "The network can't be built, failed on this scan, or returned NaN or infinity.",
        "Check its weights and its network_def; the message shows the cause.",
    ),
    "bundle.network_name": Code(
        "error", "There is no network of this name.", "Choose one of those that the message lists."
    ),
    "bundle.convert": Code(
        "error",
        "The model can't become a MONAI bundle: it is a cascade of 2D images, averages a configuration with itself, or "
        "is no model of nnU-Net.",
        "Convert one configuration, such as `FOLDER:3d_fullres`, or several, such as `FOLDER:2d+3d_fullres`. "
        "`napari-seg predict --model FOLDER` runs the others.",
    ),
    "bundle.fine_tune": Code(
        "error",
        "`--fine-tune` names a model that can't be trained further here: it is an ensemble, a cascade, or a model of "
        "nnU-Net that finds regions.",
        "Name one configuration, such as `FOLDER:3d_fullres`, one member of the ensemble, such as "
        "`OUT/members/3d`, or, of a cascade of `train --compare`, `OUT/training/3d`; or train without `--fine-tune`.",
    ),
    "bundle.nnunet": Code(
        "error",
        "The plans or the data set's description of an nnU-Net model can't be used, or ask for what nnU-Net itself "
        "does not have.",
        "Take the folder that nnU-Net v2 wrote; the message names the key. A model by other code than nnU-Net's own "
        "can only be run by that code.",
    ),
    "bundle.no_members": Code(
        "error",
        "The model is run as it is: it is no ensemble, and its inferer does not slide windows over volumes, so several "
        "predictions for one scan can't be compared.",
        "Nothing for `napari-seg queue`, which then ranks by the confidence of the run.",
    ),
    "bundle.no_postprocessing": Code(
        "error",
        "The post-processing of nnU-Net is required, and the model has none, or several for other folds.",
        "Leave out `--postprocess`, or copy the folder `crossval_results_folds_*` that nnU-Net wrote into the model's.",
    ),
    "bundle.option": Code("error", "There is no option file of this name.", "Choose one that the message lists."),
    "bundle.postprocessing": Code(
        "error",
        "The bundle makes its labels by steps that napari-seg does not recognise, such as its own code.",
        "Run it with MONAI by the command in the message. If its channels are independent (sigmoid), you can declare "
        "their thresholds in its metadata.",
    ),
    "bundle.preprocessing": Code(
        "error",
        "The bundle's own transforms failed on this scan.",
        "Check that the scan is of the kind that the bundle expects; the message shows the cause.",
    ),
    "bundle.compare": Code(
        "error",
        "`--compare` was given without `--folds`, with a choice that the configurations do not share, or for a data "
        "set that has one configuration only.",
        "Give `--folds 5`, leave out `--dims` and `--fine-tune`, or train without `--compare`.",
    ),
    "bundle.part": Code(
        "error",
        "A model behind the `+` of `totalsegmentator:TASK+MODEL` was made from no model of this task, or finds other "
        "structures or sees other images than that one.",
        "Take a model that `napari-seg improve` made from this task; the message names what differs. `--model MODEL` "
        "runs it alone.",
    ),
    "bundle.plan": Code(
        "error",
        "`--plan nnunet` plans its own U-Net, and another network or size was chosen.",
        "Leave out `--plan`, or `--network` and `--size`.",
    ),
    "bundle.size": Code(
        "error",
        "`--size` was given for a network without sizes.",
        "Leave it out, or train the default network, UNet.",
    ),
    "bundle.setting": Code(
        "error",
        "A value of `--set` is not one that the configs have, or of another type than theirs.",
        "Choose an id that the message lists; label values are given with `--labels`.",
    ),
    "bundle.structures": Code(
        "error",
        "A required structure is none of the model's.",
        "Take a name that `napari-seg models show MODEL` lists; the message names the nearest ones.",
    ),
    "bundle.too_large": Code(
        "error",
        "A config of the bundle is too large, nests too deep or holds too many values (an alias counts with all it "
        "stands for), or its folder has too many or too large files to check what in it can run.",
        "Move everything out of the folder that is not part of the model; do not use a bundle with such a config.",
    ),
    "bundle.torchscript": Code(
        "error",
        "The weights are a program (TorchScript or torch.export), not only numbers.",
        "If you trust the source, give `--trust` (in Python, `trust=True`); otherwise look for the weights alone.",
    ),
    "bundle.trust_changed": Code(
        "error",
        "Code of the bundle, or a file that it can read, changed since you allowed it, or was not checked then.",
        "Find out who changed it. If you trust the change, give `--trust` again.",
    ),
    "bundle.task": Code(
        "error",
        "The bundle does not segment structures: it detects, classifies, registers or generates, separates single "
        "objects, or needs prompts. The message names the entry of its config that shows it.",
        "Choose a bundle for segmentation, or run this one with MONAI.",
    ),
    "bundle.tta": Code(
        "error",
        "The requested test-time averaging does not work with this bundle: its inferer has no windows to average, or "
        "its network knows one side of the body only.",
        "Choose another `--tta`, as the message says.",
    ),
    "bundle.unknown": Code(
        "error",
        "There is no bundle of this name or in this folder, or it is in the catalogue but not installed.",
        "Check the path; `napari-seg models list` lists the known ones, and `models add NAME` installs one.",
    ),
    "bundle.unreadable": Code(
        "error",
        "A file or folder of the bundle can't be read, so that its content can't be compared with what was trusted.",
        "Give yourself the right to read it, or copy the bundle again.",
    ),
    "bundle.untrusted": Code(
        "error",
        "Loading or training the bundle would run code that comes with it.",
        "If you trust its source, give `--trust` (in Python, `trust=True`); otherwise do not use it.",
    ),
    "bundle.weights": Code(
        "error",
        "The weights are missing, do not fit the network, or changed while they were in use.",
        "`napari-seg models add SOURCE --replace` downloads what the bundle's `large_files.yml` names, and `models add "
        "totalsegmentator:TASK` the weights of a task; else train the bundle first, or put the right `models/model.pt` "
        "back.",
    ),
    "bundle.weights_unsafe": Code(
        "error",
        "The weights are a pickle that calls functions, and could do anything as it is loaded.",
        "Save the network's state dictionary alone, or look for weights as safetensors.",
    ),
    "bundle.workflow": Code(
        "error",
        "The bundle's own workflow, which MONAI runs as it is written, failed or has no place for the scan.",
        "The message shows the cause: a missing package or file, or another kind of scan. MONAI's own run shows more.",
    ),
    "bundle.workflow_output": Code(
        "error",
        "The bundle's own workflow saved no label map, several files, or labels on another grid than the scan's.",
        "Run it with MONAI and look at what it saves; the bundle's Invertd and SaveImaged decide that.",
    ),
    # channels
    "channels.ambiguous": Code(
        "error",
        "Several images could be one channel of a model, or two names mean the same channel. The message lists them.",
        "Choose one image for each channel with `--channel NAME=FILE`.",
    ),
    "channels.count": Code(
        "error",
        "An image does not have as many channels as are required: one, or as many as the model has.",
        "Name one image for each channel with `--channel NAME=FILE`, or choose another model.",
    ),
    "channels.frame": Code(
        "error",
        "DICOM series that should be channels of one case have different frames of reference, so their positions can't "
        "be compared.",
        "Register one series to the other, and give the registered file.",
    ),
    "channels.missing": Code(
        "error",
        "A model needs several images of a patient, and some are missing. The message lists all channels.",
        "Add the missing images, or name each with `--channel NAME=FILE`.",
    ),
    "channels.no_overlap": Code(
        "error",
        "Two images that should be channels of one case do not overlap in the patient.",
        "Check that both are of the same body part, and registered to each other.",
    ),
    "channels.partial": Code(
        "notice",
        "An image covers only a part of the field of view of the first channel. The rest has its lowest value.",
        "Do not rely on labels there, or crop the first image.",
    ),
    "channels.patient": Code(
        "error",
        "DICOM series that should be channels of one case are of different patients.",
        "Choose series of one patient.",
    ),
    "channels.repeated": Code(
        "notice",
        "Two channels of one case are the same image.",
        "Give each channel its own image; a result from a repeated one can't be relied on.",
    ),
    "channels.resampled": Code(
        "notice",
        "An image lies on another grid than the first channel, and was resampled onto that grid.",
        "Check that the images show the same position of the patient.",
    ),
    "channels.synonym": Code(
        "notice",
        "The name given to an image is not that of the channel, but a usual synonym or its number.",
        "Check that this channel was meant.",
    ),
    "channels.unknown": Code(
        "error",
        "The model has no channel with the name of an image. The message lists its channels.",
        "Use one of these names, or a usual synonym such as T1Gd for T1c; case, hyphens and spaces do not matter.",
    ),
    "channels.with_input": Code(
        "error",
        "Both `--channel` and an input were given.",
        "Give one of them: `--channel` names all images of one case.",
    ),
    # data
    "cohort.archive": Code(
        "error",
        "A scan lies in an archive, which is unpacked on this machine only, and the workers of the Dask cluster are "
        "on others.",
        "Unpack the archive into a folder that all machines share, or run this scan without --dask.",
    ),
    "cohort.changed": Code(
        "error",
        "The output folder has results that were made with other options, weights or another model than this run, or "
        "whose labels have other names.",
        "Choose another folder, so that results are comparable, or pass --redo to make them again.",
    ),
    "cohort.locked": Code(
        "error",
        "Another run works in the output folder; the message names its machine and process.",
        "Wait for it or stop it. To share the work on purpose, start every run with --join.",
    ),
    "cohort.manifest": Code(
        "error",
        "The manifest.sqlite in the output folder is damaged, of another program, or of a later version, or names "
        "files outside of this folder or behind a link.",
        "Finished results are not affected. Restore the file from a copy, or move it away and choose another output "
        "folder.",
    ),
    "cohort.manifest_locked": Code(
        "error",
        "Another program has kept manifest.sqlite in the output folder locked for half a minute.",
        "Close the program that has the file open, and give the same command again.",
    ),
    "cohort.no_manifest": Code(
        "error",
        "The folder has no manifest.sqlite, so no run wrote its results there.",
        "Name the output folder of 'napari-seg predict'.",
    ),
    "cohort.not_shared": Code(
        "error",
        "A worker of the Dask cluster does not see the output folder, a scan or the model, or can't write to the "
        "output folder.",
        "Keep input, output and models on a file system that all machines have at the same path, such as a network "
        "drive.",
    ),
    "cohort.scheduler": Code(
        "error",
        "No Dask scheduler answers, or the connection to it was lost.",
        "Start the scheduler and its workers, check the address, and give the same command again: finished cases are "
        "kept.",
    ),
    "cohort.inputs_gone": Code(
        "error",
        "The files of several scans in a row are gone, so the drive of the scans seems to be disconnected.",
        "Reconnect it and give the same command again: finished scans are skipped.",
    ),
    "cohort.taken_over": Code(
        "error",
        "Another run took over the cases of this one, which gave no sign of life for half a minute, such as after a "
        "suspended laptop.",
        "Let the other run go on. Finished results are kept; none is written twice.",
    ),
    "cohort.timeout": Code(
        "error",
        "A scan took longer than `--timeout` allows. The first scan with a model may also verify and compile the "
        "network, which is kept for later scans once it is complete.",
        "Raise the limit, or leave it out; if every scan fails, segment one without a limit first. The same command "
        "tries the scan again.",
    ),
    "cohort.tls": Code(
        "error",
        "The scheduler is reached by TLS, and Dask's configuration names no certificates.",
        "Set distributed.comm.tls.ca-file, and cert and key below distributed.comm.tls.client, in Dask's "
        "configuration.",
    ),
    "cohort.worker_lost": Code(
        "error",
        "The Dask worker that ran the case died or left, and so did those that tried it again.",
        "Look into the log of the workers: their machines may have too little memory, or too short a time limit. The "
        "same command tries the case again.",
    ),
    "cohort.worker_version": Code(
        "error",
        "A worker of the Dask cluster runs another version of napari-seg than this machine.",
        "Install the same version everywhere, best by one environment on a shared drive or by one container image.",
    ),
    "cohort.excluded": Code("skip", "The scan matches a pattern of `--exclude`.", "Nothing, if the pattern is right."),
    "cohort.list": Code(
        "error",
        "A list of scans (JSON, CSV, TSV) breaks its format; the message says where.",
        "Give paths, objects with image, or a table with a column path or image.",
    ),
    "cohort.list_name": Code(
        "error",
        "A name in a list of scans occurs twice, also in another list of the run, or is no valid file name.",
        "Give each scan a name of its own, of letters, digits, - and _.",
    ),
    "cohort.list_twice": Code(
        "error",
        "A list gives one scan two names.",
        "Correct the path of one of the entries, or remove it.",
    ),
    "cohort.modality": Code(
        "skip",
        "The scan has another modality than `--modality` accepts, or states none: NIfTI files state it only in their "
        "name, or in the JSON file next to them.",
        "Nothing, or add the modality to the file's name (`_CT`, `_T1w`).",
    ),
    "cohort.network": Code(
        "error",
        "A list or a file of rules names a path on another computer, to which Windows would send your credentials.",
        "Connect the other computer as a drive, and name the path on that drive.",
    ),
    "cohort.no_rule": Code("skip", "No rule of the rules file matches the scan.", "Add a rule for it."),
    "cohort.not_bids": Code(
        "error",
        "The path of a scan has no subject, such as `sub-01`, which the layout of BIDS requires.",
        "Arrange the inputs as BIDS does, or choose `--layout mirror` or `flat`.",
    ),
    "cohort.rule_skips": Code(
        "skip", "A rule of the rules file leaves the scan out.", "Nothing, if the rule is right."
    ),
    "cohort.rules": Code(
        "error",
        "The rules file breaks its format; the message says in which line, what was found and what is expected.",
        "Correct the line.",
    ),
    "cohort.rules_unreachable": Code(
        "error",
        "A rule without conditions accepts every scan, so that the rules after it never match.",
        "Give it a condition, or make it the last one.",
    ),
    "cohort.not_planned": Code(
        "skip",
        "An earlier run left the scan, and it is not among the inputs of the last run.",
        "Nothing; to segment it, give its folder again.",
    ),
    "cohort.renamed": Code(
        "skip",
        "A later run had the same scan under another name: it or its folder was renamed, moved or copied, or its name "
        "in a list was corrected.",
        "Nothing; the result under the present name counts.",
    ),
    "cohort.series": Code("skip", "The series matches no pattern of `--series`.", "Nothing, if the pattern is right."),
    "cohort.slices": Code("skip", "The scan has fewer slices than `--min-slices`.", "Nothing, if the number is right."),
    "data.2d": Code(
        "error",
        "The file holds a single slice; a volume was expected.",
        "Give the whole volume. A model of 2D images takes a single slice.",
    ),
    "data.4d": Code(
        "error",
        "The file holds several volumes, such as times or directions. With more dimensions the code is `data.5d`, "
        "`data.6d` or `data.7d`.",
        "Choose one with `--volume`, or save the one you need alone.",
    ),
    "data.alpha": Code(
        "notice",
        "A 2D image is transparent in parts; its transparency was ignored.",
        "If the hidden colours matter, save the image without transparency, on the background that it should have.",
    ),
    "data.faults": Code(
        "error",
        "The check of the data set found faults; the message lists each with its own code. Nothing was trained.",
        "Correct the cases in the list, or leave them out.",
    ),
    "data.no_such_volume": Code(
        "error",
        "The number after `--volume` is not one of the volumes in the scan.",
        "Give a number from 0 to the one that the message names.",
    ),
    "data.frames": Code(
        "notice",
        "The frames of time series, pages of 2D images or volumes of 4D files are cases of their own for a training.",
        "Nothing; those of one file stay together in training, validation or test.",
    ),
    "data.nonfinite": Code(
        "error", "The scan holds NaN or infinite values.", "Replace them by numbers, or export the scan again."
    ),
    "data.not_scalar": Code(
        "error",
        "A voxel holds a colour, a vector, a complex number or another value that is no intensity.",
        "Save the component you need alone, as one number per voxel.",
    ),
    "data.pixel_size": Code(
        "notice",
        "The single slices of a data set have pixels of different sizes, and are trained as 2D images without sizes.",
        "If structures differ in size by it, resample the slices to one pixel size first.",
    ),
    "data.too_small": Code(
        "error",
        "The scan is smaller than a third of a window of the network, and its bundle continues scans by themselves.",
        "Use a scan with a larger field of view, or another bundle.",
    ),
    "data.range": Code(
        "error",
        "The model was trained on colour images, and the scan has values below 0 or above 255.",
        "Give colour images of 8 bits, or choose a model for scans of this kind.",
    ),
    # dataset
    "dataset.ambiguous": Code(
        "error",
        "The data set fits several layouts, or a file fits several scans.",
        "Name the layout with `--layout`, or one derivative with `--labels-dir`.",
    ),
    "dataset.bad_json": Code(
        "error",
        "`dataset.json` is no JSON, or lists its cases or labels in another form than the Decathlon and nnU-Net do.",
        "Correct the entry that the message shows.",
    ),
    "dataset.bad_name": Code(
        "error",
        "The data set names a label or channel with $, @ or % at its beginning, or with control characters.",
        "Rename it.",
    ),
    "dataset.bad_table": Code(
        "error",
        "A table of cases lacks the columns image and label, or a path; or a BIDS table of labels lacks the columns "
        "index and name, or contradicts another one.",
        "Correct the columns or the row that the message shows.",
    ),
    "dataset.channels": Code(
        "error",
        "`--channels` was given for a data set in a layout with fixed channels, such as that of the Decathlon or of "
        "nnU-Net.",
        "Leave it out; to train on some of the channels, list their files in a CSV table.",
    ),
    "dataset.combined": Code(
        "error",
        "Data sets can't be trained on together: their channels differ, some hold 2D images and others volumes, or "
        "their classes overlap and differ.",
        "Leave one of them out, or correct the names of its channels and classes.",
    ),
    "dataset.missing": Code(
        "error",
        "The data set (a folder or a list of its cases), or the folder of its images or label maps does not exist.",
        "Check the path; give `--images` and `--labels-dir` for folders of other names.",
    ),
    "dataset.no_cases": Code(
        "error",
        "The layout was recognised, but no case was found in it.",
        "Give an image and its label map the same name, or list both in a table; the message lists what was not read.",
    ),
    "dataset.no_images": Code(
        "error",
        "The folder for inference holds no images that the bundle reads.",
        "Put images there, in `imagesTs/` or in `images/`.",
    ),
    "dataset.outside": Code(
        "error",
        "A list in the folder of a data set names files outside of this folder, which may be those of someone else.",
        "Correct the paths. If it is your own list, give the path of the list in place of the folder.",
    ),
    "dataset.patient": Code(
        "error",
        "The pattern that finds the patient in the name or the path of a case is no regular expression, or matches no "
        "case.",
        "Give one such as `--set 'patient=^[^_]+'`, which matches all before the first `_`.",
    ),
    "dataset.previous_stage": Code(
        "error",
        "The second stage of a cascade found no label map of the first stage for a case, or one of another image.",
        "Run `inference` in the folder `previous` of the bundle first, and name its results with `--previous_dir`; "
        "`napari-seg predict` runs both stages. In a comparison, repeat the command `napari-seg train`.",
    ),
    "dataset.stated": Code(
        "error",
        "A list of cases states patients or a split in a way that can't be used: in other words than train, validation "
        "and test, or in several columns that differ.",
        "Correct the words, or keep one column for patients and one for the split.",
    ),
    "dataset.unknown": Code(
        "error",
        "No layout of the data set was recognised, and no scan in it has a label map; or no layout has this name.",
        "Put label maps next to their scans, list both in a CSV table, or use a layout that the message lists.",
    ),
    "dataset.unreadable": Code(
        "error",
        "The operating system could not read a file of the data set.",
        "Check its permissions and the disk, or copy it again.",
    ),
    # download
    "download.denied": Code(
        "error",
        "A server gives a file only to users with an account, or hides that it does not exist.",
        "Check the name; download it in a browser, and add the file or folder.",
    ),
    "download.digest": Code(
        "error",
        "A downloaded file is not the one that its source describes: its digest differs. It was removed.",
        "Run again; if it stays so, do not trust the source.",
    ),
    "download.disk_full": Code(
        "error", "There is no room on the disk for a download.", "Free some space, and run again."
    ),
    "download.interrupted": Code(
        "error", "The connection broke during a download. What has come is kept.", "Run again to go on from there."
    ),
    "download.no_network": Code(
        "error",
        "A server can't be reached.",
        "Check the connection, the name of the server and any proxy, and run again.",
    ),
    "download.not_found": Code(
        "error", "A file or a version is not on the server.", "Check the name and the version of the model."
    ),
    "download.redirect": Code(
        "error",
        "A server redirects to an address that is not on the web, from https to http, or in a circle.",
        "Do not trust the address; look for another source of the model.",
    ),
    "download.server": Code(
        "error",
        "A server answered with an error, or with something else than was requested.",
        "Try again later; check `HF_ENDPOINT` if it is set.",
    ),
    "download.size": Code(
        "error",
        "A file has another size than its source says. What was downloaded was removed.",
        "Run again; if it stays so, do not trust the source.",
    ),
    "download.url": Code(
        "error", "An address is not one of the web.", "Give an address that begins with `http://` or `https://`."
    ),
    "download.web_page": Code(
        "error",
        "A server sent a web page in place of a file, for example to ask for an account or a confirmation.",
        "Download the file in a browser, or choose another source, such as `hf:MONAI/NAME`.",
    ),
    # edit
    "edit.backend_address": Code(
        "error",
        "The address of the server of an interactive network is no http address, or scans would be sent unencrypted.",
        "Give an address such as http://127.0.0.1:1527 or one with https, or allow http explicitly.",
    ),
    "edit.backend_failed": Code(
        "error",
        "The server of an interactive network can't be reached, is busy, or gave an unusable answer.",
        "Check that the server runs and that its version fits the client; or refine without the network.",
    ),
    "edit.backend_licence": Code(
        "error",
        "The licence of the weights of an interactive network is not accepted.",
        "Read the licence; accept it if it allows your use.",
    ),
    "edit.backend_missing": Code(
        "error",
        "The client of an interactive network is not installed.",
        "Install the package in the message; or refine without the network.",
    ),
    "edit.absent": Code(
        "error",
        "The structure to edit, or the other structure, has no voxels.",
        "Choose a structure that has voxels.",
    ),
    "edit.axis": Code(
        "error",
        "A function of `napari_seg.editing` was called with an axis that a volume does not have.",
        "Give 0, 1 or 2.",
    ),
    "edit.below_voxel": Code(
        "notice",
        "An operation changed nothing, because its size in mm is smaller than the voxels.",
        "Choose a size of at least the distance between two voxels.",
    ),
    "edit.cropped": Code(
        "notice",
        "A structure reaches the edge of a DICOM SEG or a cropped `.seg.nrrd`, which leave out empty planes. It was "
        "edited as if the scan went on there.",
        "If the scan ends there, convert the label map with `--scan` first, and edit the result.",
    ),
    "edit.empty_slice": Code(
        "error",
        "The structure has no voxels in the slice that it is to be copied from.",
        "Choose a slice that shows the structure.",
    ),
    "edit.label": Code(
        "error",
        "The label is no whole number that this label map can hold, or it is background where a structure is needed.",
        "Choose another label, or save the label map with a larger type.",
    ),
    "edit.leak": Code(
        "error",
        "The grown region is larger than the limit: it leaked into other tissue, or the limit is too small.",
        "Narrow the range of intensities, widen the neck, or raise the limit.",
    ),
    "edit.masks": Code(
        "error",
        "A folder holds a mask for each structure, as TotalSegmentator writes it, and structures were given by name.",
        "Convert the folder into one label map with `napari-seg convert FOLDER labels.nii.gz`, and edit that.",
    ),
    "edit.neck": Code(
        "error",
        "The tissue around the clicked voxel is thinner than the bridges that are not crossed.",
        "Choose a smaller neck, or click in the middle of the structure.",
    ),
    "edit.not_finite": Code(
        "error",
        "The intensity at the clicked voxel is not a number.",
        "Click on tissue.",
    ),
    "edit.no_plane": Code(
        "error",
        "The main canvas shows no plane of the labels, for example a plane of space and time.",
        "Show the axial, coronal or sagittal plane.",
    ),
    "edit.no_scan": Code(
        "error",
        "A tool of the Edit tab needs intensities, and no open scan has the voxels of the labels.",
        "Open the scan of the labels, or resample the labels on an open scan in the Structures tab.",
    ),
    "edit.not_in_structure": Code(
        "error",
        "The clicked voxel does not belong to the structure.",
        "Click on the structure, or select the one that was clicked.",
    ),
    "edit.nothing_between": Code(
        "error",
        "The structure has no empty slices between slices with voxels along the axis.",
        "Paint at least two slices with a gap between them, in the view in which they are filled.",
    ),
    "edit.nothing_left": Code(
        "error",
        "The edit would remove the whole structure.",
        "Choose a smaller distance, or delete the structure.",
    ),
    "edit.one_part": Code(
        "error",
        "The structure has no neck where it could be split, or less parts than requested.",
        "Choose a smaller depth, or click on each object.",
    ),
    "edit.out_of_range": Code(
        "error",
        "The clicked voxel is not in the range of intensities, or belongs to another structure.",
        "Change the range, click elsewhere, or allow to overwrite the other structure.",
    ),
    "edit.outside": Code(
        "error",
        "The position or the slice lies outside the scan.",
        "Click inside the scan.",
    ),
    "edit.plane": Code(
        "error",
        "The plane has no direction, or its numbers are not finite.",
        "Click on two different voxels, or choose two structures that lie apart.",
    ),
    "edit.polygon": Code(
        "error",
        "The lasso has less than three corners.",
        "Draw around the part to cut.",
    ),
    "edit.one_intensity": Code(
        "error",
        "The scan has the same intensity all around the prompts, so nothing shows where a new structure ends.",
        "Click on another place, or paint the structure.",
    ),
    "edit.prompt_conflict": Code(
        "error",
        "A voxel is marked both as part of the structure and as not part of it.",
        "Remove one of the two marks.",
    ),
    "edit.prompt_missing": Code(
        "error", "There is no prompt to find the structure by.", "Click on the structure, or draw a box around it."
    ),
    "edit.prompt_outside": Code(
        "error", "A prompt lies outside the scan, or a box is empty.", "Click inside the scan; draw the box again."
    ),
    "edit.prompt_shape": Code(
        "error", "Prompts are not voxel indices of shape (N, 3).", "Give one row of three indices for each voxel."
    ),
    "edit.same": Code(
        "error",
        "A structure was to be combined with itself, or two parts of a split structure were to get one label.",
        "Choose different structures.",
    ),
    "edit.shape": Code(
        "error",
        "The image or the other structure does not lie on the voxels of the label map.",
        "Put both on one grid first.",
    ),
    "edit.size": Code(
        "error",
        "The size in mm is negative, zero, or larger than any scan.",
        "Give a size in mm, such as 2.",
    ),
    "edit.too_few_labels": Code(
        "error",
        "The structure splits into more parts than there are labels for them.",
        "Give more labels, or choose a larger depth.",
    ),
    "edit.volume": Code(
        "error",
        "The volume in ml is negative or no number.",
        "Give a volume in ml, such as 0.5.",
    ),
    # environment
    "environment.backend": Code(
        "error",
        "OpenVINO is not installed, does not run on this device, or can't run this network.",
        "Install the extra `[openvino]`, or choose `--backend torch`.",
    ),
    "environment.data_worker": Code(
        "error",
        "A process that reads the training data failed.",
        "Read its output above. The same command resumes from the last checkpoint.",
    ),
    "environment.device": Code(
        "error", "The device is unknown or not present on this machine.", "Choose `--device auto` or `cpu`."
    ),
    "environment.drive": Code(
        "error",
        "The drive of a model, such as a network drive, did not answer for a moment.",
        "Check the connection of the drive, and give the same command again.",
    ),
    "environment.ended": Code(
        "error", "The process that did the work ended unexpectedly.", "Run it again; report it if it happens again."
    ),
    "environment.gpus": Code(
        "error",
        "The machine has fewer GPUs that torch can use than `--gpus` requests.",
        "Give a smaller number, or leave `--gpus` out; check `CUDA_VISIBLE_DEVICES`.",
    ),
    "environment.gpu_memory": Code(
        "notice",
        "The GPU ran out of memory; fewer windows ran at once, or the processor took over. The labels are complete.",
        "Close other programs that use the GPU, or use one with more memory.",
    ),
    "environment.memory": Code(
        "error",
        "The work needs more memory than the budget or the machine has.",
        "Give more with `--memory`, close other programs, or use smaller windows.",
    ),
    "environment.napari": Code(
        "error",
        "This version of napari lacks something that the plugin uses.",
        "Install the version of napari that the message names.",
    ),
    "environment.package": Code(
        "error", "An option needs a package that is not installed.", "Install the package that the message names."
    ),
    "environment.overflow": Code(
        "notice",
        "Float16, in which a GPU computes by default, can't hold the network's values; the scan was segmented again in "
        "float32.",
        "Choose `--precision float32`, which saves the first attempt.",
    ),
    "environment.precision": Code(
        "error",
        "The processor or GPU has no bfloat16, or the network is too inexact in the requested precision.",
        "Choose `--precision auto` or `float32`.",
    ),
    "environment.system": Code(
        "error",
        "The operating system refused to open or write a file.",
        "Check the permissions and the disk of the file that the message names.",
    ),
    "environment.template": Code(
        "error",
        "The template image, which shows where the region lies in a head, was not found.",
        "Install nilearn, or put the template into the bundle that names it.",
    ),
    "environment.temporary": Code(
        "error",
        "The folder for temporary files can't be written to.",
        "Make room there, or set the environment variable TMPDIR to another folder.",
    ),
    "environment.too_slow": Code(
        "error", "The work took longer than its time limit.", "Run it again on a machine with less load."
    ),
    # evaluation
    "evaluation.changed": Code(
        "error",
        "The data set has other cases, files, patients or parts than when the training was planned, or its list has "
        "another order, so the requested part could hold cases that the model was trained on.",
        "Restore the data set as it was planned; or evaluate new cases in a folder of their own, without `--part`.",
    ),
    "evaluation.versus": Code(
        "error",
        "The results that `--versus` compares have no structure of the same name in a case, or only one of them has "
        "names.",
        "Name the structures alike in both, in their records or in a `.seg.nrrd`; for label maps without names, say "
        "with `--labels` what the values of the references mean.",
    ),
    "evaluation.seen": Code(
        "error",
        "The part of the data set holds cases that the model was trained on, so its scores there say nothing about "
        "other cases.",
        "Take cases of other patients; the scores of the cross-validation are in `configs/metadata.json`.",
    ),
    # file
    "file.bad_checksum": Code(
        "error", "The checksum of a compressed file does not fit its content.", "Copy or export the file again."
    ),
    "file.bad_header": Code(
        "error",
        "The header contradicts itself, its pixels or the format, or has a field that can't be used.",
        "Export the file again from its source.",
    ),
    "file.crashes_reader": Code(
        "error",
        "The file ended the process that reads it: it is damaged, or made to do harm.",
        "Copy or export it again.",
    ),
    "file.damaged": Code("error", "The gzip stream of a file is damaged.", "Copy or export the file again."),
    "file.empty": Code("error", "The file has 0 bytes.", "Copy or export it again."),
    "file.format": Code("error", "Training does not read this format.", "Convert the file to NIfTI, PNG or TIFF."),
    "file.longer": Code(
        "notice",
        "The file holds more bytes of pixels than its header names; they were left out.",
        "Compare the number of slices with the source.",
    ),
    "file.not_dicom": Code(
        "error",
        "The file is not DICOM, or its beginning was lost in copying.",
        "Copy or export it again, or leave it out.",
    ),
    "file.not_nifti": Code(
        "error", "The file is named as NIfTI and is none.", "Copy or export it again, or rename it if it is no NIfTI."
    ),
    "file.not_picture": Code(
        "error", "The 2D image is damaged, or not what its name says.", "Copy or export it again."
    ),
    "file.outside": Code(
        "error",
        "An NRRD or MetaImage header names a pixel file outside its own folder.",
        "Put the pixel file into the folder of the header and correct the name.",
    ),
    "file.pages": Code(
        "error",
        "The 2D image holds several pages or frames.",
        "Choose one with `--volume`, or save the one you need alone.",
    ),
    "file.pair_missing": Code(
        "error",
        "One file of a pair of .hdr and .img is missing.",
        "Put both files into the same folder.",
    ),
    "file.too_large": Code(
        "error",
        "The file would need more memory than may be used.",
        "Give more with `--memory`, or close other programs.",
    ),
    "file.too_slow": Code(
        "error", "The file could not be decoded within the time limit.", "Export it again, uncompressed if possible."
    ),
    "file.truncated": Code(
        "error", "The file ends before its content does, or can't be decoded to its end.", "Copy or export it again."
    ),
    "file.unreadable": Code(
        "error",
        "The operating system could not open or read the file.",
        "Check its permissions, the link and the disk.",
    ),
    # fitness
    "fitness.field_of_view": Code(
        "notice",
        "The scan is smaller than half of what the network sees at once, so the network sees mostly padding.",
        "Check the result, or segment a scan of a larger part of the body.",
    ),
    "fitness.intensities": Code(
        "notice",
        "The model expects a CT in Hounsfield units, and the values are none: no air, or grey values from 0 to 255; or "
        "a task of TotalSegmentator, which truncates values to whole numbers, leaves few different ones.",
        "Export the scan again without windowing, multiply its values, or choose another model.",
    ),
    "fitness.label_map": Code(
        "notice",
        "The values of the scan are those of a label map: whole numbers from 0 up, equal in neighbouring voxels.",
        "If it is a label map, leave it out (--exclude). A thresholded or synthetic image can be segmented as it is.",
    ),
    "fitness.modality": Code(
        "notice",
        "The model was trained on MR, and the scan has the values of air in a CT; or the name of the file, or the JSON "
        "file next to it, says another modality than that of the model.",
        "Check the modality of the scan, or choose another model.",
    ),
    "fitness.spacing": Code(
        "notice",
        "The voxels of the scan are more than three times as long as those of the network.",
        "Check small structures and borders, or use a scan with thinner slices.",
    ),
    # geometry
    "geometry.affine": Code(
        "error",
        "The affine is not a valid one: not 4 x 4, not finite, singular or with a voxel size of 0. In a training data "
        "set: an image and its label map lie on different grids.",
        "Correct the affine in the file, or resample the label map on the image's grid.",
    ),
    "geometry.axes": Code(
        "error",
        "An image of the training data set has another number of spatial axes than three.",
        "Save a single slice as I x J x 1 voxels or as PNG or TIFF, or leave it out.",
    ),
    "geometry.duplicate_position": Code(
        "error",
        "Several slices of the series lie at one position.",
        "Leave the others out, or separate the volumes.",
    ),
    "geometry.few_slices": Code(
        "notice", "The series has fewer than four slices.", "Check that the series is complete."
    ),
    "geometry.form_conflict": Code(
        "error",
        "The sform and the qform of a NIfTI file give positions that lie more than half a voxel apart.",
        "Correct one of them, or set its code to 0.",
    ),
    "geometry.frame_of_reference_ignored": Code(
        "notice",
        "The segmentation names another frame of reference and was placed by its coordinates, as requested.",
        "Check its position by eye.",
    ),
    "geometry.frame_of_reference_unknown": Code(
        "notice",
        "Nothing says whether the segmentation belongs to this scan, for example because the scan is NIfTI.",
        "Check its position by eye.",
    ),
    "geometry.frames_apart": Code(
        "notice",
        "No two frames of the DICOM segmentation are neighbours, so the slice spacing follows from its header.",
        "Check the result; name the scan if slices between the frames are empty.",
    ),
    "geometry.identifiers_differ": Code(
        "notice",
        "The segmentation belongs to the scan, but some of their identifiers differ.",
        "Check that it is the right file.",
    ),
    "geometry.incomplete": Code(
        "error",
        "A slice or frame gives no usable position, orientation or pixel spacing.",
        "Leave it out, or export the series again.",
    ),
    "geometry.invalid": Code(
        "error",
        "An image of the training data set does not say where its voxels lie.",
        "Export it again with a valid affine.",
    ),
    "geometry.mismatch": Code(
        "error",
        "Two label maps, or an image and a label map, lie on different grids.",
        "Resample one of them on the other's grid.",
    ),
    "geometry.missing_slice": Code(
        "error",
        "The gaps between the slices show that at least one slice is missing.",
        "Export the series again with all its slices.",
    ),
    "geometry.mixed_orientation": Code(
        "error", "The slices or frames do not lie parallel.", "Separate the orientations into several series."
    ),
    "geometry.no_orientation": Code(
        "notice",
        "The file does not say how it lies in the patient; left and right are not known.",
        "Check the sides, or export the scan with its orientation.",
    ),
    "geometry.no_spacing": Code(
        "error",
        "A multi-page TIFF that is a volume does not say how large its voxels are.",
        "Set the voxel size in ImageJ (Image > Properties) and save it again, or convert it to NIfTI.",
    ),
    "geometry.no_thickness": Code(
        "error",
        "A DICOM segmentation of one frame does not say how thick it is.",
        "Name the scan that it belongs to.",
    ),
    "geometry.no_units": Code(
        "notice", "The layer has no units of length; its scale was taken for mm.", "Set the layer's units to mm."
    ),
    "geometry.not_on_slices": Code(
        "error",
        "Contours lie between or outside the slices of the scan.",
        "Name the scan on which they were drawn, or read other structures with `--segments`.",
    ),
    "geometry.orientation": Code(
        "error",
        "The given orientation is not three letters for three different axes.",
        "Give one such as RAS or LPS.",
    ),
    "geometry.other_axes": Code(
        "notice",
        "The axes of the layer run in other directions than those of the open scans, so it does not lie on them.",
        "Check the sides of the layer.",
    ),
    "geometry.other_frame_of_reference": Code(
        "error",
        "The segmentation belongs to another scan: its patient, study or frame of reference differs.",
        "Name the right scan. If identifiers were replaced, give `--ignore-frame-of-reference`.",
    ),
    "geometry.other_grid": Code(
        "error, notice",
        "The segmentation does not lie on the voxels of this scan. The plugin opens it on its own voxels.",
        "Name the scan that it was made for, or use *Resample* in the Structures tab.",
    ),
    "geometry.pixdim_conflict": Code(
        "notice",
        "The voxel sizes in pixdim of a NIfTI file differ from those of its affine, which is used.",
        "Find out which is right before you trust a volume.",
    ),
    "geometry.qform_unusable": Code(
        "notice",
        "The qform of a NIfTI file is no orientation; its sform is used.",
        "Nothing, if the sform is right.",
    ),
    "geometry.rounded": Code(
        "notice",
        "The segmentation lies a little off the voxels of the scan, as rounded positions do; it was put on them.",
        "Check its position by eye.",
    ),
    "geometry.shape": Code(
        "error",
        "An array and its grid have different shapes.",
        "Give an array of the shape (C, I, J, K), or (I, J, K) for a label map.",
    ),
    "geometry.shear": Code(
        "error",
        "The axes are not at right angles (a tilted gantry), or a slice lies off the straight line of the others.",
        "Give `--resample-tilt` if the message offers it; otherwise resample or export the scan on a straight grid.",
    ),
    "geometry.single_slice": Code(
        "error",
        "The series has one slice; a volume was expected, or the slice states no thickness.",
        "Give the folder with the whole series. A model of 2D images takes a single slice that states its thickness.",
    ),
    "geometry.spacing_contradicted": Code(
        "notice",
        "SpacingBetweenSlices of a DICOM segmentation contradicts the positions of its frames, which are used.",
        "Check the position of the segmentation by eye.",
    ),
    "geometry.tilt_resampled": Code(
        "notice",
        "The gantry was tilted; the slices were shifted onto a straight grid, as requested.",
        "Nothing; labels go back onto the slices in DICOM formats.",
    ),
    "geometry.uneven_spacing": Code(
        "error",
        "The slices or frames do not lie at even distances.",
        "Resample the scan on an even grid first.",
    ),
    "geometry.units": Code("error", "The file gives its lengths in other units than mm.", "Export it in mm."),
    # image
    "image.channels": Code(
        "error",
        "An image has another number of channels than the others, or one that the network does not take.",
        "Add the missing files, or leave the case out.",
    ),
    "image.constant": Code(
        "error", "All voxels of an image have the same value.", "Export it again, or leave the case out."
    ),
    "image.mode": Code(
        "error",
        "A 2D image in grey with more than 8 bits can't be used as RGB.",
        "Save it with 8 bits, leave it out, or train on grey images (one channel).",
    ),
    # improve
    "improve.channels": Code(
        "error",
        "The scans of the training set have another number of channels than the model takes.",
        "Choose a model for these scans.",
    ),
    "improve.classes": Code(
        "error",
        "The replayed data sets have other classes than the model, which is run in boxes and finds its own ones only.",
        "Rename the classes in dataset.json of the data set as the model names them, or do not replay it.",
    ),
    "improve.model": Code(
        "error",
        "The model is not one that napari-seg can train further: it has structures that overlap, is run "
        "where another model finds something, is of another program than nnU-Net, or is a cascade or an ensemble of "
        "several models.",
        "Train a new model on the folder of accepted cases with `napari-seg train`, or improve one network of the "
        "cascade or the ensemble, such as `OUT/training/3d`.",
    ),
    "improve.no_structure": Code(
        "error",
        "An accepted case is left out of the training of a model that is run in boxes: it has none of the model's "
        "structures, its labels lie outside the boxes, or a small scan shows several boxes.",
        "Check the labels of the case; the other cases are used.",
    ),
    "improve.parts": Code(
        "error",
        "The corrected structures belong to several models of a task of TotalSegmentator, or to none; each model "
        "learns alone.",
        "Make a training set with the structures of one model, or choose a task with one model.",
    ),
    "improve.seen": Code(
        "error",
        "Scans of the validation part of the training set are among those that are replayed, which trains on them.",
        "Leave them out of the data set that is replayed, and choose another folder for the new model.",
    ),
    "improve.too_few": Code(
        "error",
        "The training set lacks cases for training or for validation, or they can't be read, or the boxes of the model "
        "were not found in them.",
        "Accept cases of at least two patients, and mend those that the message names.",
    ),
    # input
    "input.missing": Code("error", "The file or folder does not exist.", "Check the path."),
    "input.none": Code(
        "error",
        "No scan, or no pair of result and reference, was found in the inputs.",
        "Check the path and the names; `napari-seg inspect` shows what lies there.",
    ),
    "input.not_a_file": Code("error", "The input is a pipe, a socket or a device.", "Give a regular file or a folder."),
    "input.same_file": Code(
        "error, notice",
        "A result and its reference are one file, so that the scores say nothing.",
        "Give the results and, in another folder, their references.",
    ),
    "input.several_scans": Code("error", "Several scans were found where one was expected.", "Name one of them."),
    "input.unpaired": Code(
        "error",
        "A label map has no partner of the same name and folder, or several, such as `a.nii` and `a.nii.gz`.",
        "Add the partner, correct the name or the folder, or remove the other files of this name.",
    ),
    # internal
    "internal.error": Code(
        "error",
        "A fault in napari-seg itself. The other scans are not affected.",
        "Please report it with the text of the message; it holds no private data.",
    ),
    # label
    "label.channels": Code(
        "error",
        "A label map has several channels, or fractions (`--option soft`) fewer than there are structures.",
        "Save one number per voxel, or one volume of fractions for each structure.",
    ),
    "label.colour": Code("error", "A label map is in colour.", "Save it with grey values or a palette (mode P)."),
    "label.empty": Code(
        "error",
        "A label map holds no class.",
        "Leave the case out, or give `--set allow_empty=true` if empty cases belong to the data.",
    ),
    "label.fractional": Code(
        "error",
        "A label map holds values that are no whole numbers, because it was interpolated.",
        "Resample the original with nearest neighbours. If the values are fractions of structures from 0 to 1 (several "
        "raters, partial volumes), train on them: `--option soft`.",
    ),
    "label.fractions": Code(
        "error",
        "A label that should hold fractions from 0 to 1 (`--option soft`) holds other values, or is no such volume.",
        "Divide the values by their largest possible one, and save a volume for each structure as NIfTI, NRRD or "
        "MetaImage; leave the option out if the values are numbers of classes.",
    ),
    "label.ignored": Code(
        "error",
        "All voxels of a label map have a value that the data set declares as ignored.",
        "Leave the case out; if the value is background, name it so with `--labels`: `background=255`.",
    ),
    "label.labelled": Code(
        "error",
        "A label map holds values that its `labelled` in dataset.json does not list.",
        "Add them to `labelled`, or correct the label map.",
    ),
    "label.values": Code(
        "error",
        "A label map holds values that no class has.",
        "Correct them, leave them out with `--labels background=7` or `ignore=7`, or name every class with `--labels`.",
    ),
    # labels
    "labels.annotation": Code(
        "error",
        "An annotation of COCO or labelme has another form or size than its image.",
        "Export the annotation again, with polygons or run lengths.",
    ),
    "labels.bad_table": Code(
        "notice",
        "The table of structure names in the header of a NIfTI label map is damaged or too large; it was ignored.",
        "Name the structures in a record next to the file, or in a `.seg.nrrd`.",
    ),
    "labels.bad_value": Code("error", "The text is no label value.", "Write values as `3`, `2,3` or `10-19`."),
    "labels.beyond_scan": Code(
        "notice",
        "Contours reach beyond the scan; the part outside was left out.",
        "Check that they were drawn on this scan.",
    ),
    "labels.colour": Code("error", "A 2D label map is in colour.", "Save it with grey values or a palette (mode P)."),
    "labels.contours_overlap": Code(
        "notice",
        "Contours of one structure overlap in part; everything that they enclose counts as inside.",
        "Check these slices.",
    ),
    "labels.fractional": Code(
        "notice",
        "The DICOM segmentation holds probabilities; voxels of one half or more count as present.",
        "Nothing, if one half is the right threshold.",
    ),
    "labels.ignored": Code(
        "notice",
        "Voxels of the reference with a value that stands for no class were left out of the comparison.",
        "Nothing, if the value has no class; otherwise name it with `--labels`.",
    ),
    "labels.intensities": Code(
        "error",
        "The values of the file are those of a scan: there are many, without names, and neighbouring voxels differ.",
        "Give the label map of the scan; name the structures of a label map in a `.seg.nrrd` or a record next to it.",
    ),
    "labels.layers": Code(
        "error",
        "The layer of a segment in a `.seg.nrrd` is missing or holds other values only, or two segments have the same "
        "layer and value.",
        "Export it again from 3D Slicer.",
    ),
    "labels.names": Code(
        "error",
        "A name is not one of the result's structures, or two structures have the same name.",
        "Use the names that the message lists, each once.",
    ),
    "labels.names_differ": Code(
        "notice",
        "Some structures have a name in one of the two label maps only; structures are compared by name.",
        "Rename them if they are the same structure; the others count as errors. With `--versus`, structures that only "
        "one of the two models names are not compared.",
    ),
    "labels.needs_grid": Code(
        "error", "Contours fill voxels only on the grid of a scan.", "Name the scan too, with `--scan`."
    ),
    "labels.no_class": Code(
        "error", "`labels` names something that is no class of the bundle.", "Use a class that the message lists."
    ),
    "labels.no_voxels": Code(
        "notice",
        "The contours of a structure enclose the centre of no voxel, so it is empty.",
        "Nothing, if the structure is that small.",
    ),
    "labels.none_common": Code(
        "error",
        "In no case do the result and the reference have a structure with the same name or, if the result has no "
        "names, a label of the same number.",
        "Rename the structures, or say with `--labels` what the values of the reference mean.",
    ),
    "labels.not_closed": Code(
        "notice",
        "A structure has only points or open lines, which enclose nothing.",
        "Nothing, if it is a marker; otherwise close its contours.",
    ),
    "labels.not_masks": Code(
        "error",
        "A folder with several NIfTI files was given as one label map, and a file holds several values, so that it is "
        "no mask of a single structure.",
        "Give the path of one label map, or a folder with a mask for each structure.",
    ),
    "labels.nowhere": Code(
        "error",
        "A class of the training has values that no label map contains, or is made of names that no data set has "
        "together, so that no case annotates all of it.",
        "Give `--labels` values that the message lists. Name one structure alike in each data set's dataset.json or "
        "labels.json; merge only what one data set tells apart.",
    ),
    "labels.overlap": Code(
        "error",
        "Two structures share voxels, or one label value stands for two classes; a label map holds one label for each "
        "voxel.",
        "Read one structure at a time with `--segments`, or give each value one class. To train overlapping classes, "
        "add `--option regions`.",
    ),
    "labels.overlap_resolved": Code(
        "notice",
        "Structures of a training case share voxels; each of these went to the smallest structure that has it.",
        "Nothing, if small structures lie in large ones, as a lesion in an organ; otherwise correct the segmentation.",
    ),
    "labels.overlapping": Code(
        "notice",
        "Structures of a data set share voxels. They are trained as regions, each found on its own, and a result shows "
        "the smaller one on top.",
        "Nothing; for classes that exclude each other, give the shared values to one of them with `--labels`.",
    ),
    "labels.regions": Code(
        "error",
        "The data set names regions that overlap (nnU-Net's lists of values), and the bundle's classes exclude each "
        "other.",
        "Name each value alone with `--labels`, or train a new bundle with the option `regions`.",
    ),
    "labels.slices": Code(
        "error",
        "`annotated_slices` names no orientation of slices, or the data set contains 2D images.",
        "Write `sagittal`, `coronal` or `axial`.",
    ),
    "labels.same_name": Code(
        "error",
        "Several files of a training case hold a structure with the same name.",
        "Keep one of them in the data set, such as the newest.",
    ),
    "labels.too_many": Code(
        "error",
        "A label map holds more labels than a comparison takes, as one does that numbers single objects.",
        "Give one label to each kind of structure.",
    ),
    "labels.soft": Code(
        "error",
        "Labels are fractions, and the training can't use them so: voxels or classes are not annotated, classes "
        "exclude each other, or the loss is not smallest where probabilities equal fractions.",
        "Give `--option soft` without values to ignore, and without another loss than `loss_dice`, "
        "`loss_generalised_dice` or `loss_tversky`.",
    ),
    "labels.slices_skipped": Code(
        "notice",
        "A structure has contours on every second slice, or fewer; only these slices are filled, and its volume is too "
        "small if it continues between them.",
        "Fill the slices between (`napari-seg edit --fill-between`, or in the Edit tab) if it continues there.",
    ),
    "labels.type": Code(
        "error",
        "The values are no labels: negative, as in a CT; fractional, as in a map of probabilities; too large; or "
        "several per voxel.",
        "Give the label map: whole numbers from 0 up, one per voxel. To train on fractions: `train --option soft`.",
    ),
    "labels.undescribed": Code(
        "notice",
        "The segmentation holds frames or values that its header does not describe; they were left out.",
        "Check that no structure is missing; export it again if one is.",
    ),
    "labels.unknown": Code(
        "error",
        "A label value or a structure's name is not known.",
        "Say what the value means with `--labels`, or use a name that the message lists.",
    ),
    "labels.unmatched": Code(
        "error",
        "A class of the bundle has no counterpart in the data set.",
        "Name the values with `labels`.",
    ),
    "labels.unnamed": Code(
        "error",
        "The data set names no labels, and its label maps hold no value, or too many, to name them by number.",
        "Name the values with `--labels`.",
    ),
    "labels.volumes": Code(
        "error",
        "A 4D label map holds 0 and 1 in as many volumes as its image has: a mask of a structure in each, or a time "
        "series.",
        "Save masks of structures as one label map with the values 1, 2, ... In a time series, state the time between "
        "volumes in the header (fourth `pixdim`, or a unit), or write `4d` or `cine` into the names of the files.",
    ),
    "labels.unnamed_beside_named": Code(
        "error",
        "A training case has a label map whose values have no names, and those of other cases name their structures.",
        "Name the values in a file `labels.json` in the folder of the data set, for all cases.",
    ),
    "labels.void": Code(
        "notice",
        "The references hold 255 together with other labels; it was taken for a border without a class.",
        "If it is a structure, name it with `--labels NAME=255`.",
    ),
    # layer
    "layer.colour": Code(
        "error",
        "The layer is a colour image that napari itself opened.",
        "Open its file in the *Study* tab, or use a layer with one number per voxel.",
    ),
    "layer.dimensions": Code(
        "error",
        "The layer has another number of dimensions than three.",
        "Split a stack (right-click, *Split Stack*), open the whole volume, or open a 2D image in the *Study* tab.",
    ),
    "layer.no_voxel_size": Code(
        "error",
        "The layer has no voxel size: its scale is 1, in pixels.",
        "Open its file with napari-seg, or set the layer's scale and units='mm'.",
    ),
    "layer.turned": Code(
        "error",
        "The labels are rotated against napari's axes, as layers of other programs can be. Their slices are not those "
        "that the window shows, so the tools of the Edit tab can't work on them.",
        "Save the labels, and open them and the file of the scan with napari-seg; or select the scan and add a "
        "structure with *+*, which makes labels along the axes.",
    ),
    "layer.type": Code("error", "The values of the layer are no real numbers.", "Convert the layer's data."),
    "layer.units": Code("error", "An axis of the layer has a unit that is no length.", "Set the units to mm."),
    # localise
    "localise.doubtful": Code(
        "notice",
        "The scan resembles the template less than usual, so the region may be wrong.",
        "Check that the structures lie where they should.",
    ),
    "localise.failed": Code(
        "error",
        "The scan could not be registered to the template: it is empty or too thin, or the two do not overlap.",
        "Check its orientation, and that it shows the whole head.",
    ),
    "localise.low_similarity": Code(
        "error",
        "The scan does not resemble the template enough to find the region; it may show another part of the body.",
        "Check that the scan is of the expected kind and its orientation right, give a crop around the structure, or "
        "choose another model.",
    ),
    "localise.mirrored": Code(
        "error",
        "The scan fits the template only as a mirror image, so left and right may be exchanged.",
        "Check the orientation of the scan.",
    ),
    "localise.outside": Code(
        "error",
        "The region lies partly outside the scan.",
        "Give a scan of the whole head, or a crop around the structure.",
    ),
    "localise.stretched": Code(
        "error",
        "The scan fits the template only when stretched more than heads differ.",
        "Check the voxel size, and that the scan shows the whole head.",
    ),
    # name
    "name.twice": Code("error", "Several cases have the same name.", "Rename or remove them."),
    # network
    "network.encoder": Code(
        "error",
        "The settings of an encoder contradict each other.",
        "Correct channels, units, output_stride or multi_grid, as the message says.",
    ),
    "network.stages": Code(
        "error",
        "`frozen_stages` is no number of stages of the network's encoder, or the network has none.",
        "Give a number that the message lists, or `encoder`.",
    ),
    "network.regions": Code(
        "error",
        "The loss or the network is made for classes that exclude each other, and the classes overlap.",
        "Choose another loss, such as loss_dice_focal, or another network.",
    ),
    "network.views": Code(
        "error",
        "The settings of a MultiView network contradict each other.",
        "Correct spatial_dims, views or the networks, as the message says.",
    ),
    # output
    "output.disk_full": Code(
        "error",
        "The disk is full, or a quota is used up. Earlier results are unchanged.",
        "Free some space and run the same command again.",
    ),
    "output.exists": Code(
        "error",
        "The output exists, and was edited, or made by another program, with other choices or for other data.",
        "Choose another output. `predict` and `convert` replace it with `--overwrite`; `train` resumes with the same "
        "choices.",
    ),
    "output.folder": Code(
        "error",
        "The output folder can't be created or written to, or a link stands in the place of one of its folders.",
        "Choose another folder with `-o`, or replace the link by a folder.",
    ),
    "output.format": Code(
        "error", "The ending of the output names no known format.", "Use an ending that the message lists."
    ),
    "output.labels": Code(
        "error",
        "A labels layer has another shape than its scan, or values that are no labels, such as 65536 or higher ones.",
        "Make a new labels layer with the scan selected; give structures labels up to 65535.",
    ),
    "output.moved": Code(
        "error",
        "A labels layer was moved or turned in napari, by its transform mode or a script, away from the voxels that it "
        "was made on. Files, sessions and training sets hold labels on those voxels, which are not what you see.",
        "Hold Alt and click napari's transform button to put the layer back. Automatic copies hold it in its place.",
    ),
    "output.no_dicom": Code(
        "error, notice",
        "A DICOM output can't be made: the scan is no DICOM series, its images were moved or replaced, or their "
        "headers can't be used. With `--also` the other files are written and this is a notice.",
        "Name the DICOM series with `--scan`, or save as NIfTI or `.seg.nrrd`.",
    ),
    "output.no_folder": Code(
        "error", "The folder of an output file does not exist.", "Create it, or choose another folder."
    ),
    "output.no_geometry": Code(
        "error",
        "The labels layer lies on no open scan and has no voxel size of its own.",
        "Add labels with the scan selected, or set the layer's scale and units='mm'.",
    ),
    "output.no_segments": Code(
        "error", "The output would hold no segment.", "Write a segmentation that holds at least one voxel."
    ),
    "output.no_record": Code(
        "notice",
        "The file that would be the record of a NIfTI label map belongs to another program, such as the metadata of a "
        "BIDS data set, and stays. Names are in the header; who made the labels is not recorded.",
        "Choose another file name, or `.seg.nrrd`, if the origin matters.",
    ),
    "output.not_equal": Code(
        "error",
        "The written file reads back with other content, so it was removed.",
        "Try again; if it happens again, try another disk.",
    ),
    "output.not_written": Code(
        "error",
        "The output could not be written.",
        "Check the folder, its permissions and the disk; the message shows the cause.",
    ),
    "output.unknown_origin": Code(
        "error",
        "A DICOM segmentation must state whether a person or a program made its segments; the input does not do so.",
        "State it: `--origin manual`, `semiautomatic` (a person with a program) or `automatic`.",
    ),
    # partner
    "partner.frames": Code(
        "error",
        "A label map of a time series, a 4D file or an image of several pages has another number of frames than its "
        "image.",
        "Export image and label map with the same frames.",
    ),
    "partner.no_image": Code("error", "A label map has no image.", "Add the image, or leave the label map out."),
    "partner.no_label": Code("error", "An image has no label map.", "Add the label map, or leave the image out."),
    # result
    "queue.changed": Code(
        "error",
        "The scan of a case is another one than when it was segmented.",
        "Run `napari-seg predict` again with `--redo`, or name the folder of the scans that were segmented.",
    ),
    "queue.empty": Code(
        "error",
        "No case of the run is finished, so there is nothing to rank.",
        "Run `napari-seg predict` first.",
    ),
    "queue.model": Code(
        "error",
        "The model of the run is not found by its name, has changed since, or the run has several models.",
        "Name the model to improve with `--model`.",
    ),
    "queue.no_look": Code(
        "error",
        "The model did not look at the scan of a case yet.",
        "Name the folder of the scans with `--scans`.",
    ),
    "queue.no_scan": Code(
        "error",
        "The scan of a case is not in the folder of `--scans`, neither by its name nor by its files.",
        "Name the folder that `predict` was given.",
    ),
    "result.at_border": Code(
        "notice",
        "Structures touch the border of the scan, so that the statistics have zeros for them.",
        "Take `--statistics-all` to measure the part of them that is in the scan.",
    ),
    "result.empty": Code(
        "notice",
        "The model found none of its structures in the scan.",
        "Check that the scan is of the kind that the model was trained on: body part, modality, intensities.",
    ),
    "result.implausible": Code(
        "notice",
        "A structure can't be right: its volume, its confidence or its number of islands is outside the range that "
        "the bundle gives.",
        "Look at the result before you use it.",
    ),
    "result.islands": Code(
        "notice",
        "Islands of a structure that should be in one piece were removed; the largest is kept.",
        "Check the result; `--keep-islands` keeps them.",
    ),
    "result.nowhere": Code(
        "notice",
        "The model looks around certain structures only, and a coarser model found none of them. The result is empty.",
        "Check that the scan shows that part of the body.",
    ),
    "result.structures": Code(
        "notice",
        "On this scan the model names its structures otherwise than on a whole one, and none of them is among those of "
        "`--structures`: on a crop around the hippocampus it does not tell left from right.",
        "Name the structure without its side, as `anterior hippocampus`: this stands for that of a crop, and for both "
        "sides of a head.",
    ),
    "result.overlap": Code(
        "notice",
        "The bundle's structures are independent of each other, and several are present in the same voxels. A label "
        "map holds one of them, the last.",
        "Look at the result before you measure volumes.",
    ),
    "result.no_confidence": Code(
        "notice",
        "Confidence was requested, but the bundle's own workflow gives labels alone.",
        "Leave `--confidence-maps` out for this bundle.",
    ),
    "result.rounded": Code(
        "notice",
        "The bundle interpolates labels linearly, which gives values between two labels; they were rounded.",
        "Look at the borders of the structures; where more than two meet, a rounded value can be a third one's label.",
    ),
    # run
    "run.cancelled": Code("error", "You stopped the work. What was finished is kept.", "Run it again."),
    "run.damaged": Code(
        "error",
        "No checkpoint of the training can be read.",
        "Restore one, or delete the folder and train again.",
    ),
    "run.differs": Code(
        "error",
        "The folder holds a training with other choices or other data, or one on another number of GPUs.",
        "Resume with the same choices, files and `--gpus`, or choose another folder.",
    ),
    "run.exists": Code(
        "error",
        "The folder holds a training, and a new one was requested (resume: false).",
        "Choose another folder, or delete this one.",
    ),
    "run.in_use": Code(
        "error",
        "Another process trains or improves a model in this folder.",
        "Wait for its end, stop it, or choose another folder.",
    ),
    "run.longer": Code(
        "error",
        "The training has run for more epochs already than were requested.",
        "Give as many epochs or more, or choose another folder.",
    ),
    "run.outdated": Code(
        "error",
        "The training was planned by a version that did not record the files and patients of its cases, so that they "
        "can't be compared with those of the data set.",
        "Continue with the version that planned it, or train again in a new folder.",
    ),
    "run.stopped": Code("error", "You stopped the training.", "Give the same command again to resume it."),
    # series
    "series.4d": Code(
        "error",
        "The series holds several volumes, such as times or echoes.",
        "Choose one with `--volume` if the message offers it; otherwise separate the volumes.",
    ),
    "series.burned_in_text": Code(
        "notice",
        "The series states that text is burned into its pixels (Burned In Annotation); it may hold the patient's name, "
        "and previews and reports show it.",
        "Look at previews and reports before you share them, or run with `--no-preview`.",
    ),
    "series.changed": Code(
        "error",
        "A DICOM series that a training set refers to holds other voxels than when its labels were accepted.",
        "Open the series and accept it again.",
    ),
    "series.colour": Code("error", "The series is in colour.", "Use a series of grey values."),
    "series.lookup_table": Code(
        "error",
        "The values of a slice are mapped by a table, which is not supported.",
        "Export the series with rescale slope and intercept.",
    ),
    "series.lossy": Code(
        "notice",
        "The series went through lossy compression; fine detail may be lost.",
        "Use the original series if there is one.",
    ),
    "series.mixed_image_type": Code(
        "error, notice",
        "The series mixes kinds of images, such as magnitude and phase, in one stack. Slices that differ only in being "
        "marked as derived are read as one volume, with a notice.",
        "Separate them; `--volume` chooses one if the message offers it.",
    ),
    "series.mixed_rescale": Code(
        "error",
        "Some slices of the series state a rescale slope or intercept and others do not, so that their values do not "
        "compare.",
        "Export the series again, without removing attributes.",
    ),
    "series.mixed_size": Code(
        "error",
        "The slices of the series have different numbers of pixels.",
        "Separate them; `--volume` chooses one if the message offers it.",
    ),
    "series.mixed_spacing": Code(
        "error",
        "The slices of the series have different pixel spacings.",
        "Separate them; `--volume` chooses one if the message offers it.",
    ),
    "series.monochrome1": Code(
        "notice",
        "The series is stored for display in negative (MONOCHROME1); its values were kept.",
        "Check that high values mean the same as in the model's scans.",
    ),
    "series.mosaic": Code(
        "error",
        "A Siemens mosaic does not say how its slices lie, or contradicts itself; its private header was removed.",
        "Export it without mosaic, or as NIfTI from the original files.",
    ),
    "series.moved": Code(
        "error",
        "Files of a DICOM series that a training set refers to are no longer where they were.",
        "Restore them, or open the series where it is now and accept it again.",
    ),
    "series.multiframe": Code(
        "error",
        "A file of several frames does not say where each lies.",
        "Export it as NIfTI, or again with the positions of its frames.",
    ),
    "series.no_intercept": Code(
        "notice",
        "A CT series states no rescale intercept and has no value below 0, so its values are probably no Hounsfield "
        "units; stored values are often 1024 higher.",
        "Export the series again, without removing attributes.",
    ),
    "series.transfer_syntax": Code(
        "error, notice",
        "The pixels are compressed in a way that can't be read. As a notice: those of copies, which were left out.",
        "Export the series uncompressed.",
    ),
    "series.two_versions": Code(
        "error",
        "Two files have the identifiers of one DICOM image and other pixels, as if an image was filtered or defaced, "
        "and saved with the identifiers of the original.",
        "Give the folder of one version, or move the files of the other one away.",
    ),
    "series.unknown": Code(
        "error",
        "A training set refers to a DICOM series, and this machine does not know where that lies.",
        "Open the series here and accept it again, or copy its images into the set where it is known "
        "(`napari-seg accept --copy-series`).",
    ),
    # session
    "session.damaged": Code(
        "error",
        "The file is no session of napari-seg, is truncated, or holds values that a session can't have.",
        "Copy it again, or save the session again. It is a zip of NIfTI files: unpack it to get the label maps.",
    ),
    "session.incomplete": Code(
        "error",
        "The session was opened without some of its labels or images, and saving over it would remove them.",
        "Save the session under another name. The message when it was opened says why they were not opened.",
    ),
    "session.newer": Code(
        "error",
        "The session was saved by a later version of napari-seg, in a format that this version does not know.",
        "Install the latest napari-seg.",
    ),
    "session.scan_changed": Code(
        "error, notice",
        "A scan of the session has another grid (error) or other intensities (notice) than when the session was saved, "
        "or only a part of its files was found.",
        "Open the right scan by itself and check the labels on it. Labels are shown on their own grid in any case. If "
        "it is the right one, but changed, say so: *These labels belong to …* in the tab Structures.",
    ),
    "session.scan_missing": Code(
        "error",
        "No file next to the session file or below has the content of a scan of the session. Names don't matter.",
        "Choose the folder of the scans. The labels are shown without them.",
    ),
    "session.too_large": Code(
        "error",
        "The prompts and settings of a session take more room than a session file may have.",
        "Clear the prompts of finished structures, and save again.",
    ),
    "session.unsafe": Code(
        "error",
        "The session file holds files that are no part of a session, two of one name, links, or an encrypted part.",
        "Do not trust it; ask its source for another one.",
    ),
    # skip
    "skip.empty": Code("skip", "The archive holds no files.", "Nothing, if it should be empty."),
    "skip.hidden": Code("skip", "Hidden files, whose names begin with a dot, are not read.", "Rename a scan."),
    "skip.label_map": Code(
        "skip",
        "The file looks like a label map by its name or folder.",
        "Name the file itself to segment it.",
    ),
    "skip.link": Code(
        "skip",
        "A link leads nowhere or into a folder that is read already; or an archive holds links, pipes or devices.",
        "Correct the link, or unpack the archive.",
    ),
    "skip.localizer": Code("skip", "The image is a localizer (scout).", "Nothing."),
    "skip.no_geometry": Code(
        "skip",
        "The DICOM image, such as a captured screen, does not say where it lies.",
        "Nothing, if it is no scan; otherwise export it with its position.",
    ),
    "skip.not_a_file": Code("skip", "It is a pipe, a socket or a device.", "Nothing."),
    "skip.not_an_image": Code(
        "skip", "The file is no image in a format that napari-seg reads.", "Convert it if it is a scan."
    ),
    "skip.not_intensities": Code(
        "skip",
        "The file holds no intensities: a report, a plan, a segmentation or contours.",
        "Nothing; segmentations open in the plugin, and convert with `napari-seg convert`.",
    ),
    "skip.picture": Code(
        "skip",
        "A 2D image lies among scans and was taken for a screenshot.",
        "Name the file itself to segment it.",
    ),
    # split
    "split.empty_part": Code(
        "error",
        "The requested part of the data set holds no patient.",
        "Add patients, use `--folds`, or request another part.",
    ),
    "split.fold": Code("error", "There is no fold of this number.", "Give 0 to the number of folds - 1."),
    "split.folds": Code(
        "error",
        "Fewer than two folds were requested, or another number than the list of cases states; or the list states the "
        "folds of some patients only.",
        "Give at least 2; or the number in the list; or complete its folds, or remove them.",
    ),
    "split.part": Code("error", "There is no such part of the data set.", "Give training, validation, test or all."),
    "split.patient": Code(
        "error",
        "The list of cases puts scans of one patient into several parts or folds.",
        "Put them into one; if they are of different patients, give a pattern with `--set patient=...`.",
    ),
    "split.shares": Code(
        "error", "The fractions of the three parts are not three numbers.", "Give them as `[0.8, 0.1, 0.1]`."
    ),
    "split.too_few": Code(
        "error",
        "The data set has too few patients to split.",
        "Add patients. If names mislead, give a pattern with `--set patient=...`.",
    ),
    # store
    "store.busy": Code(
        "error", "Another program is installing the same model.", "Wait until it has finished, or stop it."
    ),
    "store.exists": Code(
        "error",
        "A model of this name is installed.",
        "Remove it first (`napari-seg models remove`), give `--replace`, or install under another `--name`.",
    ),
    "store.large_files": Code(
        "error",
        "The list of files that a bundle keeps elsewhere (`large_files.yml`) can't be read.",
        "Correct it: `large_files` is a list of `path` and `url`, with `hash_val` and `hash_type`.",
    ),
    "store.licence": Code(
        "error",
        "The licence of a model was not accepted, so it was not installed.",
        "Read the licence; give `--accept-licence` in a script.",
    ),
    "store.name": Code(
        "error",
        "The name of a model can't be the name of a folder on all systems, or a structure or channel of a new bundle "
        "has a number, a list, nothing, or the name of another as its name.",
        "Give another name with `--name`, or names with spaces between them: `--channels T1 T1c T2 FLAIR`.",
    ),
    "store.no_bundle": Code(
        "error",
        "What was to be installed holds no bundle, or more than one.",
        "Give a folder or zip with `configs/metadata.json`, directly or in one folder.",
    ),
    "store.offline": Code(
        "error",
        "The weights of a model would have to be downloaded, which `--offline` excludes.",
        "Leave `--offline` out, or download the named zips elsewhere and unzip them in the named folder.",
    ),
    "store.record": Code(
        "error",
        "Nothing is noted of the files of an installed model, so they can't be compared.",
        "Remove the model and add it again.",
    ),
    "store.refused": Code(
        "error",
        "A published model can't be installed: it does not segment a scan by itself, or its weights need a licence "
        "that is bought or requested elsewhere.",
        "Choose another one; `napari-seg models search` says which ones can be used. Licensed weights of "
        "TotalSegmentator are used from the folder that TotalSegmentator fetched them to.",
    ),
    "store.source": Code(
        "error",
        "What was to be installed is not there, or is named in an unknown way.",
        "Give a source that `napari-seg models add --help` lists.",
    ),
    "store.too_large": Code(
        "error",
        "A model has far more or far larger files than any published one, or its zip unpacks to hundreds of times its "
        "size.",
        "Do not trust it.",
    ),
    "store.unknown": Code(
        "error", "No model of this name is installed.", "Choose one that `napari-seg models list` lists."
    ),
    "store.unsafe": Code(
        "error",
        "A model holds a link that leads out of its folder, a pipe or a device.",
        "Copy the files that the links stand for, or do not trust it.",
    ),
    # training
    "training.diverged": Code(
        "error",
        "The loss became NaN or infinite.",
        "Resume with a lower learning_rate, or with max_gradient_norm set (to 12, for example).",
    ),
    "training.failed": Code("error", "The training process ended with an error.", "Read its output above the message."),
    "training.out_of_memory": Code(
        "error",
        "The training ran out of memory.",
        "In this order: raise accumulation_steps, lower patch_size in a new folder, on a GPU set amp to true; in a "
        "validation or an evaluation set windows#sw_batch_size, windows#device or windows#roi_size. The same command "
        "resumes.",
    ),
    # values
    "values.not_finite": Code(
        "error", "An image holds NaN or infinite values.", "Replace them by numbers, or leave the case out."
    ),
    # weights
    "weights.changed": Code(
        "error",
        "The weights of `--fine-tune` differ from those that the training was planned with.",
        "Bring the old ones back and name them with `--fine-tune`, or choose a new folder.",
    ),
    "weights.channels": Code(
        "error",
        "The data set has other channels than the model that the training begins from, or in another order, and this "
        "model keeps its preprocessing for each of them.",
        "Write the files of the channels with the numbers that the message lists, or train without `--fine-tune`.",
    ),
    "weights.classes": Code(
        "error",
        "`--classes-from` names a class that the new network, or the network of the initial weights, does not have; or "
        "the weights belong to no bundle, so their classes have no names.",
        "Use the names that the message lists, and give `--fine-tune` the folder of a bundle.",
    ),
    "weights.differ": Code(
        "error",
        "The networks of an ensemble differ from each other.",
        "Use the weights of one network that was trained several times.",
    ),
    "weights.missing": Code(
        "error", "The file with the weights does not exist.", "Give a `model.pt`, a bundle's folder, or one of nnU-Net."
    ),
    "weights.nothing_fits": Code(
        "error",
        "Too few of the weights fit this network.",
        "Choose the network_def with which the weights were trained.",
    ),
    "weights.unreadable": Code(
        "error",
        "The file holds no weights that can be read safely.",
        "Give the `model.pt` of a training or of a bundle.",
    ),
}
