"""Names of files and descriptions of series say which channel an image is, or they say nothing."""

from __future__ import annotations

import pytest

from napari_seg.errors import InputError
from napari_seg.formats.channel_names import assigned, case_in, channels_in, sequence_of, synonym_notices

BRATS = ("T1c", "T1", "T2", "FLAIR")

TEXTS = {
    "T1": [
        "T1 posterior fossa",
        "t1fse",
        "sagT1",
        "sub-01_T1w",
        "t1",
        "BraTS-GLI-00001-000-t1n",
        "AX T1 PRE",
        "T1w without contrast",
        "MPRAGE",
        "t1_se_tra",
    ],
    "T1c": [
        "sub-01_ce-gd_T1w",
        "BraTS_001_t1ce",
        "T1postcontrast",
        "T1cFS",
        "t1fs3d gadovist",
        "UPENN-GBM-00001_11_T1GD",
        "BraTS-MET-00002-000-t1c",
        "AX T1 POST",
        "t1_mprage_sag_post",
        "T1 +C",
        "T1 tra KM",
        "T1 with contrast",
    ],
    "T2": ["sub-01_T2w", "BraTS-GLI-00001-000-t2w", "AX T2 FSE", "t2_tse_tra"],
    "FLAIR": ["sub-01_FLAIR", "T2-FLAIR", "BraTS-GLI-00001-000-t2f", "t2_tirm_tra_dark-fluid", "AX FLAIR +C"],
    "": [
        "T1 FLAIR",
        "T1 T2",
        "T2*",
        "T2 star",
        "ADC",
        "T1 map",
        "T1 subtraction",
        "DWI T2 trace",
        "head",
        "survey T1",
        "patient1_t12",
        "swi_t2",
        "case_T1X",
        "T1T2",
        "T1cX",
        "FLAIRE",
        "t1flair",
    ],
}


@pytest.mark.parametrize(("sequence", "text"), [(name, text) for name, texts in TEXTS.items() for text in texts])
def test_sequences_are_recognised_by_their_synonyms(sequence: str, text: str) -> None:
    assert sequence_of(text) == sequence


def test_other_channels_are_recognised_by_their_own_words() -> None:
    assert channels_in("kidney_vein_phase", ("artery", "vein")) == ["vein"]
    assert channels_in("vein and artery", ("artery", "vein")) == ["artery", "vein"]
    assert channels_in("CHUM-001__CT", ("CT", "PT")) == ["CT"]
    assert channels_in("case_1", ("0", "1")) == []
    assert channels_in("T1 SE", ("T1 SE", "T1 MPRAGE")) == ["T1 SE"]
    assert channels_in("case t1 mprage", ("T1 SE", "T1 MPRAGE")) == ["T1 MPRAGE"]


def test_a_contrast_agent_in_the_header_counts_unless_the_text_denies_it() -> None:
    assert channels_in("AX T1", BRATS, has_contrast=True) == ["T1c"]
    assert channels_in("AX T1 PRE", BRATS, has_contrast=True) == ["T1"]
    assert channels_in("T1pre tra", BRATS, has_contrast=True) == ["T1"]
    assert channels_in("AX T2", BRATS, has_contrast=True) == ["T2"]


@pytest.mark.parametrize(
    ("stem", "channel", "case"),
    [
        ("BraTS-GLI-00001-000-t1c", "T1c", "BraTS-GLI-00001-000"),
        ("UPENN-GBM-00001_11_T1GD", "T1c", "UPENN-GBM-00001_11"),
        ("T1_post_case7", "T1c", "case7"),
        ("case7_T1_mprage", "T1", "case7"),
        ("case7_T1_mprage_raw", "T1", "case7_raw"),
        ("flair", "FLAIR", ""),
        ("T1_post", "T1c", ""),
        ("sub-01_ses-2_run-1_T1w", "T1", "sub-01_ses-2"),
    ],
)
def test_the_rest_of_a_name_is_the_case(stem: str, channel: str, case: str) -> None:
    assert channels_in(stem, BRATS) == [channel]
    assert case_in(stem, [channel], BRATS) == case


def test_given_names_are_assigned_to_the_channels_of_a_model() -> None:
    assert assigned(["flair", "T1", "t1gd", "T2w"], BRATS) == {"T1c": "t1gd", "T1": "T1", "T2": "T2w", "FLAIR": "flair"}
    assert list(assigned(["flair", "T1", "t1gd", "T2w"], BRATS)) == list(BRATS)
    assert assigned(["1", "0"], ("0", "1")) == {"0": "0", "1": "1"}
    assert assigned(["1", "T1c"], ("T1c", "T1")) == {"T1c": "T1c", "T1": "1"}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["T1", "T1c", "T2"], "channels.missing"),
        (["T1", "T1c", "T2", "FLAIR", "DWI"], "channels.unknown"),
        (["T1", "t1w", "T2", "FLAIR"], "channels.ambiguous"),
        (["4", "T1c", "T2", "FLAIR"], "channels.unknown"),
        ([], "channels.missing"),
    ],
)
def test_wrong_names_are_refused_with_the_expected_ones(given: list[str], code: str) -> None:
    with pytest.raises(InputError, match="the model expects T1c, T1, T2, FLAIR") as caught:
        assigned(given, BRATS)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("given", "meant"),
    [("T1X", "T1"), ("T1T2", "T1 or T2"), ("T1cX", "T1c"), ("FLAIRE", "FLAIR"), ("t1gdd", "T1c"), ("Bananas", "")],
)
def test_a_misspelt_name_is_refused_with_the_nearest_one(given: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        assigned([given, *BRATS], BRATS)
    hint = f"; did you mean {meant}?" if meant else ";"
    assert caught.value.code == "channels.unknown"
    assert caught.value.message == f"found the channel {given!r}{hint} the model expects T1c, T1, T2, FLAIR"


def test_words_beside_the_name_of_another_channel_are_refused() -> None:
    with pytest.raises(InputError, match="found the channel 'old CT'"):
        assigned(["old CT", "PT"], ("CT", "PT"))
    assert assigned(["t-1 se", "T1_MPRAGE"], ("T1 SE", "T1 MPRAGE")) == {"T1 SE": "t-1 se", "T1 MPRAGE": "T1_MPRAGE"}
    with pytest.raises(InputError, match="found the channel 'T1'"):
        assigned(["T1", "T1 MPRAGE"], ("T1 SE", "T1 MPRAGE"))


def test_a_synonym_and_a_number_are_reported_but_not_case_and_separators() -> None:
    chosen = assigned(["t1-c", "T1Pre", "2", "t2_flair"], BRATS)
    notices = synonym_notices(chosen)
    assert {notice.code for notice in notices} == {"channels.synonym"}
    assert [notice.message for notice in notices] == [
        "T1Pre was taken for T1",
        "2 was taken for T2",
        "t2_flair was taken for FLAIR",
    ]
