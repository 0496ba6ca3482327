"""`saunet compare`: networks trained alike, a comparison that can be stopped, tables that say what was found."""

import csv
import json
import re
import shutil
import threading
import time
import warnings
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from builders import read_pair, write_pair, write_pairs
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss
from safetensors import SafetensorError

from SAUNetLib.cli import main
from SAUNetLib.errors import CancelledError, UsageError
from SAUNetLib.evaluation import comparison as compared
from SAUNetLib.evaluation import comparison_records, intervals
from SAUNetLib.evaluation.comparison import _begin, _timed, trials
from SAUNetLib.evaluation.comparison_measures import _ScoresBeforeAttention, measure, predict, without_islands
from SAUNetLib.evaluation.comparison_networks import BUDGETS, CANDIDATES, TASKS, Trial, UNet
from SAUNetLib.evaluation.comparison_records import FIGURES, SHIPPED, read_comparison, trained
from SAUNetLib.evaluation.comparison_report import PAPERS_TABLE, TITLES, Summary, TrialTable, _painted, _scale
from SAUNetLib.network import SAUNet
from SAUNetLib.training.held_out import AS_DRAWN, SPECKS, held_out_images, per_patient
from SAUNetLib.training.train import GOES_ON

pytestmark = pytest.mark.usefixtures("one_thread")

SMOKE = ["--budget", "smoke", "--seeds", "1", "--hold-out", "p1", "p2", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals of reports that are read for their rows, not for their figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"), "p0", "p1", "p2", "p3")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A comparison that was interrupted after three trainings and then went on."""
    run = tmp_path_factory.mktemp("compare") / "run"
    whole, count = compared.fit, iter(range(100))

    def interrupted(*arguments):
        if next(count) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "fit", interrupted)
        # To time the networks of the shipped size would take longer than all the rest.
        patch.setattr(compared, "NetworkConfig", lambda: BUDGETS["smoke"].network.model_copy(update={"reach": 2}))
        patch.setattr(compared, "TrainingConfig", lambda: BUDGETS["smoke"])
        assert main(["compare", str(data), "--output", str(run), *SMOKE]) == 6
        kept = {path: path.stat().st_mtime_ns for path in run.glob("*/result.json")}
        assert len(kept) == 3
        assert main(["compare", str(data), "--output", str(run), *SMOKE]) == 0
    assert next(count) == 1 + 2 * len(CANDIDATES), "the interrupted one is begun twice, no other one"
    assert kept == {path: path.stat().st_mtime_ns for path in kept}, "what was finished is not done again"
    return run


def test_every_network_is_trained_and_measured_for_both_tasks(finished, data):
    comparison, results = read_comparison(finished)
    assert [(one.task, one.network) for one in results] == [(task, name) for task in TASKS for name in CANDIDATES]
    assert comparison.held_out == ("p1", "p2") and comparison.trained_on == ("p0", "p3")
    for one in results:
        structures = {"spine": 1, "structures": 3}[one.task]
        assert len(one.figures) == 2 * 2 * structures and one.seconds > 0
        assert {row.patient for row in one.figures} == {"p1", "p2"}
        assert (one.moved is not None) == (one.network == "isa-scores")
        assert all(row.cleaned_hausdorff_mm >= 0 for row in one.figures)
    assert not list(finished.glob("*/last.ckpt")), "weights are kept, the optimiser's state is not"
    for task, costs in comparison.costs.items():
        assert costs["unet-3d"].parameters > costs["isa-scores"].parameters > costs["dense"].parameters > 0, task
        assert all(min(cost.seconds.values()) > 0 < cost.gigaflop for cost in costs.values())


def test_help_says_how_many_trainings_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    number = len(CANDIDATES) * len(TASKS) * compared.SEEDS
    assert f"there are {number} trainings" in " ".join(capsys.readouterr().out.split())


def test_the_page_on_the_comparison_names_every_table_in_which_a_u_net_has_the_lower_distance():
    page = " ".join((ROOT / "docs" / "comparison.md").read_text(encoding="utf-8").split())
    for name in ("results.csv", "results-small.csv"):
        rows = list(csv.DictReader((ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()))
        for ours in (row for row in rows if row["network"] == "isa-features"):
            if ours["structure"] != ("vertebra" if ours["task"] == "spine" else "mean"):
                continue
            table = [row for row in rows if all(row[key] == ours[key] for key in ("task", "slices", "structure"))]
            for other in (row for row in table if row["network"].startswith("unet")):
                for column in ("hausdorff_mm mean", "cleaned_hausdorff_mm mean"):
                    theirs, here = float(other[column]), float(ours[column])
                    assert theirs > here or re.search(rf"{theirs:.1f}( mm)? against {here:.1f}\b", page), other


def test_networks_of_the_shipped_size_are_timed_once():
    assert list(_timed(list(TASKS), BUDGETS["large"])) == list(TASKS)
    for tasks, budget in ((list(TASKS), "small"), (["spine"], "large")):
        assert list(_timed(tasks, BUDGETS[budget])) == [*tasks, SHIPPED]


@pytest.mark.parametrize("number", range(len(CANDIDATES)))
def test_the_kept_weights_are_those_that_were_measured(finished, data, number):
    comparison, results = read_comparison(finished)
    one = results[number]
    network = trained(finished, Trial(one.network, one.task, one.seed), comparison.config)
    patient = next(held_out_images(data, ["p1"]))
    found = predict(network, patient.volume, comparison.config.pixel_mm, torch.device("cpu"))
    both, truth = int(np.sum((found == 1) & (patient.labels == 1))), int(np.sum(patient.labels == 1))
    assert one.figures[0].recall == pytest.approx(both / truth)


def test_weights_of_another_network_are_refused(finished, tmp_path):
    comparison, _ = read_comparison(finished)
    shutil.copytree(finished / "spine-dense-2020", tmp_path / "spine-isa-features-2020")
    with pytest.raises(UsageError):
        trained(tmp_path, Trial("isa-features", "spine", 2020), comparison.config)


def test_the_report_has_every_network_beside_the_paper_s_figures(finished):
    report = (finished / "results.md").read_text(encoding="utf-8")
    assert f"{2 * len(CANDIDATES)} finished trainings" in report and BUDGETS["smoke"].description in report
    for name, candidate in CANDIDATES.items():
        rows = [line for line in report.splitlines() if line.startswith(f"| {candidate.title} |")]
        # beside the paper, two thicknesses for two tasks, the costs of both and of the shipped size
        assert len(rows) == 8, name
        assert len({row.count("|") for row in (rows[1], rows[2])}) == 1
        if name in PAPERS_TABLE:
            assert all(figure in rows[0] for figure in PAPERS_TABLE[name].values())
    command = "saunet compare data0 --output RUN --budget smoke --seeds 1 --hold-out p1 p2"
    assert SPECKS in report
    assert f"Written by `{command}`" in report and "SPIDER" not in report, "what it is about, and how to do it again"
    assert (finished / "results-errors.png").read_bytes().startswith(b"\x89PNG") and "results-errors.png" in report
    with open(finished / "results.csv", newline="", encoding="utf-8") as file:
        sheet = list(csv.DictReader(file))
    assert len(sheet) == 2 * (1 + 4) * len(CANDIDATES)
    assert all(0 <= float(row["dice mean"]) <= 1 for row in sheet)


def test_thick_slices_that_cannot_be_averaged_have_a_report_all_the_same(finished, tmp_path, data):
    """As of 3 to 5 mm: after all trainings the report failed."""
    run, thick = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished, run)
    shutil.copytree(data, thick)
    for path in thick.glob("*.nii.gz"):
        image = sitk.ReadImage(str(path))
        image.SetSpacing((*image.GetSpacing()[:2], 4.0))
        sitk.WriteImage(image, str(path))
    for path in run.glob("*/result.json"):
        told = json.loads(path.read_text())
        told["figures"] = [row for row in told["figures"] if row["slices"] == "native slices"]
        path.write_text(json.dumps(told))
    told = json.loads((run / "comparison.json").read_text())
    for costs in told["costs"].values():
        for cost in costs.values():
            cost["seconds"]["4 slices averaged"] = 0.0
    (run / "comparison.json").write_text(json.dumps(told))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert main(["compare", str(thick), "--output", str(run), "--finished"]) == 0
    report = (run / "results.md").read_text(encoding="utf-8")
    assert "4 slices averaged:" not in report and "four averaged would be thicker" in report
    costs = report.split("## What they cost")[1].splitlines()
    assert any("| 1.00 | - |" in line for line in costs) and "below four averaged" not in report
    with open(run / "results.csv", newline="", encoding="utf-8") as file:
        assert {row["slices"] for row in csv.DictReader(file)} == {"native slices"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), CancelledError("Nothing was saved yet")])
def test_a_cancelled_comparison_says_that_it_goes_on(data, tmp_path, monkeypatch, capsys, stop):
    def fit(*_):
        raise stop

    monkeypatch.setattr(compared, "fit", fit)
    monkeypatch.setattr(compared, "network_costs", lambda *rest: {})
    assert main(["compare", str(data), "--output", str(tmp_path / "run"), *SMOKE]) == 6
    err = capsys.readouterr().err
    assert err.count("timing all networks") == 1, "which takes minutes"
    assert GOES_ON in err and "start" not in err


def test_an_image_to_measure_on_is_trained_on_under_no_name(tmp_path, capsys, monkeypatch):
    data = write_pairs(tmp_path / "data", "p0", "p1", "p2", "p3")
    for part in ("image", "labels"):
        shutil.copy(data / f"p1_{part}.nii.gz", data / f"p9_{part}.nii.gz")
    monkeypatch.setattr(compared, "network_costs", None)
    assert main(["compare", str(data), "--output", str(tmp_path / "run"), *SMOKE]) == 3
    assert "the image of p1, a validation case, is also a training case, as p9" in capsys.readouterr().err


def test_trials_on_data_that_have_changed_are_not_mixed(finished, data, tmp_path, capsys, monkeypatch):
    run, other = tmp_path / "run", tmp_path / data.name
    shutil.copytree(finished, run)
    shutil.copytree(data, other)
    shutil.rmtree(run / "spine-dense-2020")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compared, "_train", stop)
    volume, labels = read_pair(other, "p0")
    write_pair(other, "p0", volume, np.roll(labels, 1, axis=1))
    command = ["compare", str(other), "--output", str(run), *SMOKE]
    assert main(command) == 2
    assert "label maps or dataset.json have changed since the comparison" in capsys.readouterr().err
    told = json.loads((run / "comparison.json").read_text(encoding="utf-8"))
    (run / "comparison.json").write_text(json.dumps(told | {"record": None}), encoding="utf-8")  # of an earlier version
    assert main(command) == 6
    assert read_comparison(run)[0].record.labels != told["record"]["labels"]


def test_weights_that_cannot_be_written_are_no_bug(tmp_path, monkeypatch):
    def full(network, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(comparison_records, "save_model", full)
    with pytest.raises(UsageError, match=r"weights\.safetensors could not be written") as caught:
        comparison_records.write_trial(tmp_path, Trial("dense", "spine", 1), torch.nn.Linear(1, 1), None)
    assert caught.value.code == "OUTPUT_WRITE" and not list(tmp_path.glob("*/*"))


def test_what_is_finished_can_be_reported_without_training(finished, data, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for one in ("spine-isa-features-2020", "structures-unet-2d-2020"):
        shutil.rmtree(run / one)
    monkeypatch.setattr(compared, "fit", None)
    target = tmp_path / "docs" / "table.md"
    assert main(["compare", str(data), "--output", str(run), "--finished", "--report", str(target)]) == 0
    assert capsys.readouterr().out.split() == [str(target), str(target.with_suffix(".csv"))]
    assert f"{2 * len(CANDIDATES) - 2} finished trainings" in target.read_text(encoding="utf-8")
    assert "errors.png" not in target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        (["--budget", "small"], 2, "a different budget"),
        (["--hold-out", "p1"], 2, "a different budget"),
        (["--hold-out", "p9"], 3, "p9"),
        (["--hold-out", "p0", "p1", "p2", "p3"], 3, "no case is left"),
        (["--seeds", "0"], 2, "--seeds"),
        (["--report", "table.txt"], 2, ".md"),
        (["--task", "heart"], 2, "heart"),
    ],
)
def test_what_cannot_be_compared_is_explained(finished, data, capsys, change, status, word):
    before = sorted(finished.rglob("*"))
    assert main(["compare", str(data), "--output", str(finished), *SMOKE, *change]) == status
    err = capsys.readouterr().err
    assert word in err and err.count("\n") == 1
    assert sorted(finished.rglob("*")) == before


def test_a_comparison_goes_on_where_it_was_begun(finished, data, tmp_path, capsys):
    """Times of two devices are not compared, and of several one is used."""
    (tmp_path / "other").mkdir()
    begun = json.loads((finished / "comparison.json").read_text(encoding="utf-8"))
    (tmp_path / "other" / "comparison.json").write_text(json.dumps(begun | {"device": "cuda"}), encoding="utf-8")
    assert main(["compare", str(data), "--output", str(tmp_path / "other"), *SMOKE]) == 2
    assert "or device" in capsys.readouterr().err

    used = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "fit", lambda run, data, folder, device: used.append((run.config, data.config)) or 0.0)
        compared._train(Trial("dense", "spine", 7), BUDGETS["smoke"], [], tmp_path, torch.device("cpu"))
    assert [(one.devices, one.seed) for one in used[0]] == [(1, 7)] * 2


def test_two_runs_of_one_comparison_share_the_trainings(data, tmp_path, monkeypatch):
    """Both trained every network, and the second one's results replaced the first one's."""
    begun, trained_by = threading.Event(), []
    measured: list[int] = []
    names = [one.name for one in trials(["spine"], 1, BUDGETS["smoke"].seed)]

    def fit(run, cases, folder, device):
        trained_by.append((threading.current_thread().name, folder.name))
        if folder.name == names[0]:
            begun.set()
            end = time.monotonic() + 60
            while len(trained_by) < len(names) and time.monotonic() < end:
                time.sleep(0.05)
        (folder / "last.ckpt").touch()
        return 0.0

    def go():
        compared.compare(data, tmp_path / "run", "smoke", ["spine"], 1, ["p1", "p2"], "cpu")

    monkeypatch.setattr(compared, "fit", fit)
    monkeypatch.setattr(compared, "network_costs", lambda *rest: measured.append(1) or {})
    monkeypatch.setattr(compared, "measure", lambda *rest: ([], 0.0))
    first, second = (threading.Thread(target=go, name=one) for one in ("first", "second"))
    first.start()
    assert begun.wait(60)
    second.start()
    first.join(60)
    second.join(60)
    assert not first.is_alive() and not second.is_alive()
    assert sorted(folder for _, folder in trained_by) == sorted(names)
    assert {who for who, _ in trained_by} == {"first", "second"} and len(measured) == 2
    assert all((tmp_path / "run" / name / "result.json").exists() for name in names)


def test_a_folder_without_a_comparison_has_no_report(data, tmp_path, capsys):
    assert main(["compare", str(data), "--output", str(tmp_path / "none"), "--finished"]) == 2
    assert "holds no comparison" in capsys.readouterr().err and not (tmp_path / "none").exists()


@given(done=st.integers(0, 30), seeds=st.integers(1, 3))
def test_a_stopped_comparison_is_balanced(done, seeds):
    counts = {(task, name): 0 for task in TASKS for name in CANDIDATES}
    for trial in islice(trials(list(TASKS), seeds, 7), done):
        counts[trial.task, trial.network] += 1
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_budget_makes_every_network():
    """Also the one for GPUs, whose networks are only laid out here, not filled."""
    for budget in BUDGETS.values():
        with torch.device("meta"):
            sizes = {
                name: sum(part.numel() for part in Trial(name, "spine", 0).build(budget).parameters())
                for name in CANDIDATES
            }
        assert sizes["unet-3d"] > 2 * sizes["unet-2d"] and sizes["isa-features"] > sizes["isa-scores"] > sizes["dense"]
        assert all(side % 16 == 0 for side in budget.crop)


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_u_nets_take_stacks_as_sau_net_does_and_only_the_3d_one_looks_across_slices(slices):
    stacks = torch.randn(2, slices, 1, 32, 48)
    changed = stacks.clone()
    changed[:, 0] += 1
    for dimensions in (2, 3):
        network = UNet(dimensions, 4, (2, 2, 2, 2, 4), 3).eval()
        with torch.inference_mode():
            scores, others = network(stacks), network(changed)
        assert scores.shape == (2, slices, 4, 32, 48)
        assert not torch.equal(scores[:, 0], others[:, 0])
        if slices > 1:
            assert torch.equal(scores[:, 1], others[:, 1]) == (dimensions == 2)


def test_one_score_is_trained_as_a_sigmoid():
    run = compared._Run(BUDGETS["smoke"], torch.nn.Identity())
    scores, labels = torch.randn(2, 1, 16, 16), torch.randint(0, 4, (2, 16, 16))
    truth = (labels == 1).float()[:, None]
    wanted = F.binary_cross_entropy_with_logits(scores, truth) + DiceLoss(sigmoid=True, batch=True)(scores, truth)
    assert float(run.loss(scores, labels)) == pytest.approx(float(wanted), abs=1e-5)
    labels[:, 8:] = 255
    assert torch.equal(run.loss(scores, labels), run.loss(scores + 5 * (labels == 255)[:, None], labels))


def before_and_after(classes, seed):
    """Scores (1, 3, classes, 32, 32) of random stacks, before ISA on the scores and after it."""
    torch.manual_seed(seed)
    stacks = torch.randn(1, 3, 1, 32, 32)
    network = SAUNet(classes, (2, 2, 2, 2, 2), attention="scores").eval()
    with torch.inference_mode():
        return _ScoresBeforeAttention(network)(stacks), network(stacks)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_the_written_form_moves_no_voxel_where_there_is_one_score(seed):
    before, after = before_and_after(1, seed)
    assert not torch.equal(before, after) and torch.equal(before > 0, after > 0)


def test_the_written_form_moves_voxels_where_there_are_several_scores():
    before, after = before_and_after(4, 3)
    assert (before.argmax(2) != after.argmax(2)).any()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(-0.5, 0.5))
@settings(max_examples=10, deadline=None)
def test_a_summary_holds_its_mean_and_shifts_with_the_values(patients, shift):
    values = np.array([patients, patients[::-1]])
    one, other = Summary.of(values), Summary.of(values + shift)
    assert one.low - 1e-9 <= one.mean <= one.high + 1e-9
    assert (other.mean, other.low, other.high) == pytest.approx((one.mean + shift, one.low + shift, one.high + shift))
    assert other.deviation == pytest.approx(one.deviation, abs=1e-9) and one.deviation < 1e-9


@pytest.mark.parametrize("side, kept", [(1, False), (2, True)])
def test_an_island_is_a_small_share_of_what_was_found(side, kept):
    """The large part has 400 voxels, of which one or eight more are less and more than a hundredth."""
    mask = np.zeros((12, 12, 24), bool)
    mask[:4, :10, :10] = True
    mask[4, 10, 10] = True  # a corner is enough to belong to it
    mask[8 : 8 + side, 4 : 4 + side, 20 : 20 + side] = True
    cleaned = without_islands(mask)
    assert cleaned[8, 4, 20] == kept and cleaned[4, 10, 10] and cleaned[:4, :10, :10].all()
    assert not (cleaned & ~mask).any() and not without_islands(np.zeros_like(mask)).any()


def test_summaries_say_what_is_not_known():
    assert Summary.of(np.array([[0.8, 0.9]])).text(100) == "85.00 (80.0 to 90.0)"
    assert "±" in Summary.of(np.array([[0.8], [0.9]])).text(100)
    assert Summary.of(np.array([[np.inf, 2.0]])).text(1) == "no result in some patient"
    assert Summary.of(np.array([[np.nan, 2.0]])).text(1) == "-"


def test_distances_are_shown_in_mm_and_shares_in_percent():
    assert {name: _scale(name) for name in FIGURES} == {name: 1 if " mm" in TITLES[name] else 100 for name in FIGURES}


def test_what_is_no_vertebra_is_orange_and_what_was_missed_blue():
    predicted, truth = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    found, extra, missed, nothing = _painted(np.zeros((1, 4, 3)), predicted, truth)[0]
    assert not nothing.any() and found.argmax() == 1
    assert extra[0] > extra[1] > extra[2] and missed[2] > missed[1] > missed[0]


def test_differences_are_paired(finished):
    _, results = read_comparison(finished)
    table = TrialTable(results)
    same = table.gain("spine", ("dense", "dense"), "native slices", "recall")
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    pair = ("isa-features", "dense")
    gain = table.gain("structures", pair, "native slices", "recall")
    means = [table.summary("structures", name, "native slices", "mean", "recall").mean for name in pair]
    assert gain.mean == pytest.approx(means[0] - means[1])


@pytest.fixture
def two_series(tmp_path, data):
    """A folder in SPIDER's layout: three patients with two images each."""
    folder = tmp_path / "spider"
    for number, name in enumerate(("p0", "p1", "p2")):
        for kind, place in (("image", "images"), ("labels", "masks")):
            image = sitk.ReadImage(str(data / f"{name}_{kind}.nii.gz"))
            (folder / place).mkdir(parents=True, exist_ok=True)
            for series in ("t1", "t2"):
                sitk.WriteImage(image, str(folder / place / f"{number + 1}_{series}.mha"))
    (folder / "dataset.json").write_text('{"encoding": "classes"}')
    return folder


def test_images_of_one_patient_count_as_one(two_series, monkeypatch):
    """Else deviations and intervals over patients would be too small."""
    images = list(held_out_images(two_series, ["1_t1", "1_t2", "2_t1"]))
    native = [one.patient for one in images if one.slices == "native slices"]
    assert native == ["1", "1", "2"]
    answers = [one.labels for one in images]
    answers[0] = np.zeros_like(answers[0])  # nothing is found in one of the two images of patient 1
    found = iter(answers)
    monkeypatch.setattr(
        "SAUNetLib.training.held_out.segment", lambda *rest, **options: SimpleNamespace(labels=next(found))
    )
    figures = per_patient(None, two_series, ["1_t1", "1_t2", "2_t1"])
    assert figures["native slices"]["dice vertebra"] == [0.5, 1.0]


def test_specks_count_where_figures_are_those_of_the_labels_as_drawn(tmp_path, data, monkeypatch):
    """Far from all else: without them HD95 is that of another truth."""
    for name in ("p1", "p2"):
        for kind in ("image", "labels"):
            shutil.copy(data / f"{name}_{kind}.nii.gz", tmp_path)
    image = sitk.ReadImage(str(tmp_path / "p1_labels.nii.gz"))
    image[38, 45, 5] = 3
    sitk.WriteImage(image, str(tmp_path / "p1_labels.nii.gz"))
    monkeypatch.setattr(
        "SAUNetLib.training.held_out.segment",
        lambda volume, *rest, **options: SimpleNamespace(labels=read_pair(data, volume.name)[1]),
    )
    monkeypatch.setattr("SAUNetLib.training.held_out.VALIDATIONS", {"native slices": 1})
    figures = per_patient(None, tmp_path, ["p1", "p2"])
    assert figures["native slices"]["hsd_mm canal"] == [0.0, 0.0]
    first, second = figures["native slices" + AS_DRAWN]["hsd_mm canal"]
    assert first > 10 and second == 0
    assert list(per_patient(None, tmp_path, ["p2"])) == ["native slices"], "without specks it would say the same"


def test_other_images_of_a_patient_who_is_measured_on_teach_nothing(tmp_path, two_series):
    found = _begin(two_series, tmp_path / "run", "smoke", ("1_t2",), torch.device("cpu"))
    assert found.trained_on == ("2_t1", "2_t2", "3_t1", "3_t2")


def test_what_is_not_known_is_no_error_and_what_is_too_short_is_not_averaged(tmp_path, data, monkeypatch):
    for kind, change in (("image", lambda v: v[:3]), ("labels", lambda v: v[:3])):
        image = sitk.ReadImage(str(data / f"p1_{kind}.nii.gz"))
        voxels = change(sitk.GetArrayFromImage(image)).copy()
        if kind == "labels":
            voxels[voxels == 1] = 255
            voxels[:, :2] = 1
        short = sitk.GetImageFromArray(voxels)
        short.SetSpacing(image.GetSpacing())
        short.SetDirection(image.GetDirection())
        sitk.WriteImage(short, str(tmp_path / f"p1_{kind}.nii.gz"))
    patients = list(held_out_images(tmp_path, ["p1"]))
    assert [one.slices for one in patients] == ["native slices"]
    perfect = np.where(patients[0].labels == 255, 1, patients[0].labels)
    monkeypatch.setattr("SAUNetLib.evaluation.comparison_measures.predict", lambda *rest: perfect)
    trial = Trial("unet-2d", "structures", 2020)
    figures, _ = measure(torch.nn.Identity(), trial, 1.5, patients, torch.device("cpu"))
    assert {one.dice for one in figures if one.structure == "vertebra"} == {1.0}
