"""Agreement with readings: the statistics against slow ones, and one patient's way through."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SAUNetLib.errors import InputError
from SAUNetLib.evaluation import intervals
from SAUNetLib.evaluation.readings import (
    GradedDisc,
    _disc,
    agreements,
    area_under_curve,
    by_level,
    measure_labels,
    rank_correlation,
    read_discs,
    table,
)


def disc(patient: str, level: str, height: float, narrowed: bool) -> GradedDisc:
    return GradedDisc(
        patient,
        level,
        narrowed,
        narrowed,
        5 if narrowed else 2,
        height,
        height,
        20 * height,
        10.0 * narrowed,
        height,
        False,
    )


@pytest.mark.parametrize(
    ("flags", "doubtful"), [((), False), (("estimated",), False), (("estimated", "partial"), True)]
)
def test_a_height_is_doubtful_where_it_has_another_flag_than_an_estimated_sacrum(flags, doubtful):
    measures = SimpleNamespace(
        value=lambda level, name: {"disc_height_index": 0.3}.get(name),
        rows=[SimpleNamespace(level="L5/S1", measures={"disc_height_index": SimpleNamespace(flags=flags)})],
    )
    row = {"IVD label": "1", "Pfirrman grade": "4", "Disc narrowing": "1", "Spondylolisthesis": "0"}
    graded = _disc("001", row, measures)
    assert (graded.level, graded.height_index, graded.narrowed, graded.slipped) == ("L5/S1", 0.3, True, False)
    assert graded.doubtful is doubtful


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30))
def test_area_under_curve_counts_pairs(pairs):
    scores = np.array([float(score) for score, _ in pairs])
    positive = np.array([truth for _, truth in pairs])
    counted = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    found = area_under_curve(scores, positive)
    assert found == pytest.approx(np.mean(counted)) if counted else np.isnan(found)


def test_rank_correlation_of_monotone_values():
    values = np.array([0.1, 0.5, 2.0, 9.0])
    assert rank_correlation(values, -np.exp(values)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(values, np.ones(4)))


def test_what_is_usual_comes_from_other_patients_only():
    discs = [disc(str(n), "L4/L5", 0.3, False) for n in range(4)] + [disc("9", "L4/L5", 0.15, True)]
    values = np.array([one.height_index for one in discs])
    assert by_level(values, discs)[4] == pytest.approx(0.5)
    values[0] = 900.0
    assert by_level(values, discs)[0] == pytest.approx(3000)  # not by itself
    assert np.isnan(by_level(values[3:], discs[3:])).all()  # too few others


def test_a_patient_s_own_disc_is_no_part_of_what_is_usual():
    discs = [disc(str(n), "L4/L5", height, False) for n, height in enumerate((0.2, 0.3, 0.4, 0.9))]
    assert by_level(np.array([0.2, 0.3, 0.4, 0.9]), discs)[3] == pytest.approx(3)


def test_a_perfect_reader_agrees_and_the_table_says_so(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 20)  # enough to lie around the figures
    discs = [
        disc(str(n), level, 0.2 if n % 3 == 0 else 0.4, n % 3 == 0) for n in range(12) for level in ("L5/S1", "L3/L4")
    ]
    discs = [replace(one, height_by_depth=one.height_index / 2, middle_height=30 * one.height_index) for one in discs]
    found = agreements(discs)
    of_heights = next(n for n, one in enumerate(found) if "Pfirrmann" in one.name)
    assert of_heights == 8 and all(one.value == 1 for one in found[:of_heights]), "some share a name"
    figures = {one.name: one for one in found[of_heights:] + found[:1]}
    assert figures["AUC, disc height index, narrowing"].value == 1
    assert figures["AUC, disc height index, narrowing"].positive == 8
    assert figures["rho, signal ratio, Pfirrmann grade"].value == pytest.approx(-1)
    assert all(one.low <= one.value <= one.high for one in found if one.discs)
    assert "0.85" in table(found)


def test_a_folder_without_readings_is_refused(tmp_path):
    with pytest.raises(InputError) as failure:
        read_discs(tmp_path)
    assert failure.value.code == "INPUT_NOT_FOUND"


def measured(shared_data, patient):
    """The measures of a patient of SPIDER's label map."""
    folder = shared_data / "spider_t2space"
    if not (folder / f"{patient}_labels.nii.gz").is_file():
        pytest.skip("needs spider_t2space in ../shared/data")
    return measure_labels(folder / f"{patient}_labels.nii.gz", folder / f"{patient}_image.nii.gz")


def test_a_slipped_vertebra_of_a_patient(shared_data):
    found = measured(shared_data, "200")
    assert found.value("L5/S1", "slip_mm") == pytest.approx(9.5, abs=2)
    band = found.row("L5/S1").measures["meyerding_grade"]
    assert band.value >= 1 and "low_confidence" not in band.flags
    assert abs(found.value("L2/L3", "slip_mm")) < 3
    assert 0 < found.value("L1/L2", "signal_ratio") < 1


def test_a_small_slip_on_an_estimated_endplate_is_doubtful(shared_data):
    """No reader saw one there."""
    found = measured(shared_data, "078")
    assert found.value("L5/S1", "slip_mm") == pytest.approx(3.1, abs=0.5)
    assert "low_confidence" in found.row("L5/S1").measures["meyerding_grade"].flags
