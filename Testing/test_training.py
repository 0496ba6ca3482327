"""Training: data as they should be, the same for the same seed, and a run that survives being killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from builders import SLICES_TO_LEFT, labelled, read_pair, rearranged, write_pair, write_pairs
from conftest import CARD, ROOT
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from SAUNetLib.cli import main
from SAUNetLib.errors import InputError, SAUNetError, UsageError
from SAUNetLib.model import load_model, save_model
from SAUNetLib.network import SAUNet
from SAUNetLib.training import run as running
from SAUNetLib.training import self_training, workers
from SAUNetLib.training import train as training
from SAUNetLib.training.augmentation import Augmentation, _bend, _moved, tissue_contrast
from SAUNetLib.training.datasets import (
    Case,
    StackDataset,
    can_thicken,
    load_cases,
    slice_profile,
    thick_slices,
    thick_volume,
)
from SAUNetLib.training.folders import SPECK_MM3, UNKNOWN, case_names, image_hash, read_info
from SAUNetLib.training.held_out import _figures
from SAUNetLib.training.run import _config, _with_validation, _worse, validate
from SAUNetLib.training.train import NetworkConfig, RunData, TrainingConfig, TrainingRun
from SAUNetLib.training.workers import uninterrupted
from SAUNetLib.volume import Geometry, SagittalStack, Volume, to_sitk

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path):
    return write_pairs(tmp_path / "data", "p0", "p1", "p2")


def test_cases_are_pairs(data, tmp_path):
    assert case_names(data) == ["p0", "p1", "p2"]
    for folder, code in ((tmp_path / "none", "INPUT_NOT_FOUND"), (tmp_path, "INPUT_EMPTY")):
        with pytest.raises(InputError) as caught:
            case_names(folder)
        assert caught.value.code == code


def test_specks_are_not_known_and_structures_stay(data):
    volume, labels = labelled(0)
    spoilt = labels.copy()
    spoilt[5, 45, 35] = 1
    assert volume.geometry.voxel_volume < SPECK_MM3
    sitk.WriteImage(to_sitk(spoilt, volume.geometry), str(data / "p0_labels.nii.gz"))
    assert np.array_equal(read_pair(data, "p0")[1], np.where(spoilt == labels, labels, UNKNOWN))


def test_labels_on_another_grid_or_with_other_values_are_refused(data):
    volume, labels = labelled(0)
    sitk.WriteImage(to_sitk(labels + 40, volume.geometry), str(data / "p0_labels.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(data / "p1_labels.nii.gz"))
    for name, code in (("p0", "INPUT_LABELS"), ("p1", "INPUT_GEOMETRY")):
        with pytest.raises(InputError) as caught:
            read_pair(data, name)
        assert caught.value.code == code


def test_a_case_at_its_own_pixel_size_is_unchanged(data):
    case = load_cases(data, ["p0"], 1.5)[0]
    assert np.array_equal(case.labels.numpy(), labelled(0)[1])
    assert case.images.min() == 0 and case.images.max() == 1 and case.slice_spacing == pytest.approx(0.9)


def test_a_case_at_another_pixel_size_keeps_its_proportions(data):
    fine, coarse = load_cases(data, ["p0"], 0.75)[0], load_cases(data, ["p0"], 3.0)[0]
    assert fine.labels.shape == (10, 96, 80) and coarse.labels.shape == (10, 24, 20)
    for value in range(4):
        share = (labelled(0)[1] == value).mean()
        assert (fine.labels == value).float().mean() == pytest.approx(share, abs=0.01)
        assert (coarse.labels == value).float().mean() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("count", "gap", "expected"), [(1, 0, 10), (2, 0, 5), (3, 0, 3), (4, 1, 2), (1, 1, 5), (11, 0, 0)]
)
def test_thick_slices_are_means_and_majorities(count, gap, expected):
    images = torch.arange(10).float()[:, None, None].expand(10, 4, 4)
    labels = (torch.arange(10) >= 5).to(torch.uint8)[:, None, None].expand(10, 4, 4)
    if expected == 0:
        with pytest.raises(RuntimeError):
            thick_slices(images, labels, count, gap)
        return
    thick, majority = thick_slices(images, labels, count, gap)
    assert thick.shape[0] == majority.shape[0] == expected
    for group in range(expected):
        start = group * (count + gap)
        assert thick[group, 0, 0] == pytest.approx(start + (count - 1) / 2)
        share = np.mean(np.arange(start, start + count) >= 5)
        assert majority[group, 0, 0] == (share > 0.5 or (share == 0.5 and start + count // 2 >= 5))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_thick_slices_keep_the_volume_of_what_is_drawn(count):
    """Wherever a structure begins and ends between the slices: none becomes narrower or wider in the mean."""
    begin = torch.arange(20, 40).repeat_interleave(20)
    end = torch.arange(60, 80).repeat(20)
    thin = torch.arange(120)[:, None]
    labels = ((thin >= begin) & (thin < end)).to(torch.uint8)[:, None]
    _, thick = thick_slices(torch.zeros(labels.shape), labels, count)
    assert count * thick.sum().item() == pytest.approx(labels.sum().item(), rel=0.005)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("reverse", [(False, False, False), (True, False, True)])
def test_a_thick_volume_lies_where_its_slices_lay(order, reverse):
    volume, labels = labelled(0)
    source = rearranged(volume, order, reverse)
    truth = rearranged(Volume(labels, volume.geometry), order, reverse).voxels
    thick, classes = thick_volume(source, truth, 2)
    assert thick.geometry.voxel_volume == pytest.approx(2 * source.geometry.voxel_volume)
    # Sampled at the thick voxels' centres, the thin image's position map must agree.
    index = np.array([3, 7, 2])
    point = thick.geometry.points(index)
    thin = np.linalg.solve(
        np.asarray(volume.geometry.direction) * volume.geometry.spacing, point - np.asarray(volume.geometry.origin)
    )
    assert thin[2] % 1 == pytest.approx(0.5), "between two thin slices"
    column, row, left = round(thin[0]), round(thin[1]), int(thin[2])
    mean = volume.voxels[left : left + 2, row, column].mean()
    assert thick.voxels[tuple(index[::-1])] == pytest.approx(mean)
    assert np.array_equal(SagittalStack.of(Volume(classes, thick.geometry)).slices[1:-1] > 0, labels[2:-2:2] > 0)


def test_simulated_slices_lie_no_farther_apart_than_clinical_ones():
    images = torch.arange(40).float()[:, None, None].expand(40, 16, 16)
    case = Case("thick already", images, torch.zeros(40, 16, 16, dtype=torch.uint8), 3.0)
    dataset = StackDataset([[case]], [1], 1, 6, (16, 16), seed=1)
    steps = [dataset._stack(case, np.random.default_rng(seed))[0][:, 0, 0].diff().abs().max() for seed in range(60)]
    assert {round(float(step)) for step in steps} == {1, 2}, "3 and 6 mm"


@pytest.mark.parametrize(
    ("slices", "spacing", "count", "can"),
    [(8, 1.5, 4, True), (8, 1.6, 4, False), (3, 1.5, 4, False), (1, 9.0, 1, True)],
)
def test_slices_are_averaged_up_to_what_clinical_ones_measure(slices, spacing, count, can):
    assert can_thicken(slices, spacing, count) is can


def test_a_slice_profile_is_even_or_a_bell():
    profiles = [slice_profile(5, np.random.default_rng(seed)) for seed in range(40)]
    bells = [one for one in profiles if one.std() > 0]
    assert 5 < len(bells) < 35
    for bell in bells:
        assert torch.allclose(bell, bell.flip(0)) and (bell[:3].diff() > 0).all() and bell[2] == 1
    images = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])[:, None, None].expand(5, 2, 2)
    thick, labels = thick_slices(images, (images > 0).byte(), 5, profile=torch.tensor([0.0, 1.0, 4.0, 1.0, 0.0]))
    assert thick[0, 0, 0] == pytest.approx(4 / 6) and labels[0, 0, 0] == 1, "most of the weight"
    assert thick_slices(images, (images > 0).byte(), 5)[1][0, 0, 0] == 0


@pytest.mark.parametrize("rows", [48, 90, 200])
def test_training_sees_a_large_field_of_view_to_its_borders(rows):
    augmentation, random = Augmentation((48, 48), 0.0), np.random.default_rng(6)
    labels = torch.zeros(1, rows, 60, dtype=torch.uint8)
    labels[:, :4], labels[:, rows // 2 - 2 : rows // 2 + 2], labels[:, -4:] = 1, 2, 3
    images = torch.rand(1, rows, 60)
    seen = [set(augmentation(images, labels, random)[1].unique().tolist()) - {0} for _ in range(80)]
    share = {value: sum(value in one for one in seen) / len(seen) for value in (1, 2, 3)}
    assert min(share.values()) > 0.03, share


def test_stacks_have_the_network_s_shape_and_are_the_same_for_the_same_seed(data):
    cases = load_cases(data, ["p0", "p1"], 1.5)
    one, two = (StackDataset([cases], [1], 6, 3, (48, 32), seed=7) for _ in range(2))
    for index in range(6):
        first, second = one[index], two[index]
        assert first["image"].shape == (3, 1, 48, 32) and first["label"].shape == (3, 48, 32)
        assert first["image"].isfinite().all() and set(first["label"].unique().tolist()) <= {0, 1, 2, 3}
        assert torch.equal(first["image"], second["image"]) and torch.equal(first["label"], second["label"])
    other = StackDataset([cases], [1], 6, 3, (48, 32), seed=8)
    assert not all(torch.equal(one[index]["image"], other[index]["image"]) for index in range(6))
    two.epoch = 1
    assert not all(torch.equal(one[index]["image"], two[index]["image"]) for index in range(6))


def test_augmentation_moves_image_and_labels_together():
    """Where the labels say bone after the move, the unchanged contrast must say so too."""
    labels = labelled(0)[1]
    images = torch.from_numpy(np.array([0.1, 1.0, 0.6, 0.3], np.float32)[labels])
    augmentation = Augmentation((48, 40))
    random = np.random.default_rng(0)
    agreed = []
    for _ in range(30):
        moved = augmentation.geometry.set_random_state(int(random.integers(1000)))(
            {"image": images, "label": torch.from_numpy(labels).float()}
        )
        bone = torch.as_tensor(moved["label"]) == 1
        if bone.sum() > 20:
            agreed.append(float((torch.as_tensor(moved["image"])[bone] > 0.7).float().mean()))
    assert len(agreed) >= 3 and np.median(agreed) > 0.9 and min(agreed) > 0.7


def test_tissue_contrast_stays_in_range_and_changes_the_order_of_tissues():
    labels = torch.from_numpy(labelled(0)[1])
    images = torch.from_numpy(np.array([0.1, 0.5, 0.3, 0.9], np.float32)[labelled(0)[1]])
    orders = set()
    for seed in range(60):
        changed = tissue_contrast(images.clone(), labels, np.random.default_rng(seed))
        assert changed.min() >= 0 and changed.max() <= 1
        orders.add(bool(changed[labels == 3].mean() > changed[labels == 1].mean()))
    assert orders == {True, False}, "fluid brighter and darker than bone"


def test_air_mostly_stays_dark():
    air = [float(_bend(torch.zeros(1, 2, 2), np.random.default_rng(seed)).max()) for seed in range(200)]
    assert 0.75 < np.mean(np.array(air) == 0) < 1


CONFIG = {
    "name": "small",
    "network": {"widths": [4, 4, 4, 4, 4]},
    "pixel_mm": 1.5,
    "crop": [48, 32],
    "slices": 2,
    "stacks": 1,
    "steps": 250,
    "learning_rate": 0.005,
    "averaging": 0.9,
    "validation": ["p2"],
}


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_training_computes_as_the_device_does_best(data, tmp_path, monkeypatch, fast, precision):
    """bfloat16 takes a processor without it several times as long."""

    class Made(Exception):
        pass

    def trainer(**settings):
        raise Made(settings["precision"])

    monkeypatch.setattr(training, "computes_bfloat16", lambda device: fast)
    monkeypatch.setattr(training.pl, "Trainer", trainer)
    with pytest.raises(Made, match=precision):
        training.train([data], tmp_path / "run", TrainingConfig(**CONFIG), "cpu")


def test_a_killed_run_goes_on_and_ends_with_a_verified_model(data, tmp_path):
    config = tmp_path / "small.json"
    config.write_text(json.dumps(CONFIG))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "SAUNetLib", "train", str(data), "--output", str(run), "--device", "cpu"]
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(
            [*command, "--config", str(config)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 240
        while not (run / "last.ckpt").exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert first.poll() is None, (tmp_path / "log").read_text()
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert (run / "last.ckpt").exists()
    reached = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert 100 <= reached < 250
    # Without --config: a run knows its own.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 250

    card = load_model(str(run / "small.safetensors")).card
    assert set(card.metrics) == {"native slices", "4 slices averaged"}
    assert card.metrics["native slices"]["dice mean"][0] > 0.1, "more than chance after 250 steps of a tiny network"
    assert json.loads((run / "config.json").read_text())["validation"] == ["p2"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"speed": 3}, "speed"),
        ({"validation": ["p9"]}, "p9"),
        ({"name": "a/b"}, "name"),
        ({"crop": [60, 64]}, "crop"),
        ({"crop": [64, 0]}, "crop"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"averaging": 1}, "averaging"),
        ({"shares": [0]}, "shares"),
        ({"shares": [-1]}, "shares"),
        ({"devices": 0}, "devices"),
        ({"seed": -3}, "seed"),
        ({"pixel_mm": 50}, "pixel_mm"),
        ({"steps": 50, "patience": 2}, "patience"),
        ({"network": {"reading": "foo"}}, "reading"),
        ({"network": {"attention": "foo"}}, "attention"),
        ({"network": {"widths": [4, 4, 0, 4, 4]}}, "widths"),
        ({"network": {"classes": 2}}, "classes"),
        *(({"name": name}, f"{name}.json") for name in ("config", "cases", "Start")),
    ],
)
def test_a_wrong_configuration_is_explained(data, tmp_path, capsys, change, word):
    config = tmp_path / "wrong.json"
    config.write_text(json.dumps(CONFIG | change))
    status = main(["train", str(data), "--output", str(tmp_path / "run"), "--config", str(config)])
    err = capsys.readouterr().err
    assert status in (2, 3) and word in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_done_is_refused_before_the_run_has_a_folder(data, tmp_path, capsys):
    command = ["train", str(data), "--output", str(tmp_path / "run")]
    assert main([*command, "--device", "cuda"]) == 2 and "DEVICE" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").write_text("a file")
    assert main(command) == 2 and "OUTPUT_WRITE" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_an_interrupted_run_is_cancelled_and_goes_on(data, tmp_path, number, group):
    """A scheduler, which may signal its workers too, must not take it for a crash."""
    (tmp_path / "small.json").write_text(json.dumps(CONFIG | {"steps": 100000}))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "SAUNetLib", "train", str(data), "--output", str(run), "--device", "cpu"]
    command += ["--config", str(tmp_path / "small.json")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True
    ) as one:
        deadline = time.monotonic() + 200
        while not (run / "log").exists() and time.monotonic() < deadline and one.poll() is None:
            time.sleep(0.2)
        if group:
            while not (run / "last.ckpt").exists() and time.monotonic() < deadline and one.poll() is None:
                time.sleep(0.2)  # its workers are at work
            os.killpg(one.pid, number)
        else:
            one.send_signal(number)
        err = one.communicate(timeout=90)[1]
    assert one.returncode == 6, err
    told = "continues from the last checkpoint" if (run / "last.ckpt").exists() else "starts from the beginning"
    assert "error CANCELLED" in err and told in err


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [("DefaultCPUAllocator: can't allocate memory: you tried to allocate 34984800000 bytes.", 5, "MEMORY"),
     ("DataLoader worker (pid 1) is killed by signal: Killed. ", 5, "MEMORY"),
     ("shapes do not match", 1, "INTERNAL")],
)  # fmt: skip
def test_a_run_that_fails_is_not_said_to_be_cancelled(data, tmp_path, capsys, monkeypatch, said, status, code):
    """Lightning calls every failed run interrupted."""

    def fail(*_):
        raise RuntimeError(said)

    monkeypatch.setattr(training.TrainingRun, "training_step", fail)
    (tmp_path / "small.json").write_text(json.dumps(CONFIG))
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--config", str(tmp_path / "small.json")]
    assert main([*command, "--device", "cpu"]) == status
    assert f"error {code}" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
def test_ctrl_c_reaches_no_worker_but_their_parent():
    """One that is interrupted while it starts reads no more, and who writes to it waits for ever."""
    code = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.2); print('works on')"
    with uninterrupted():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (0, "works on\n")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_on_windows_workers_inherit_that_ctrl_c_is_ignored(monkeypatch):
    calls = []
    kernel = SimpleNamespace(SetConsoleCtrlHandler=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(workers, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(workers.ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    with pytest.raises(ValueError), uninterrupted():
        assert calls == [(None, True)]
        raise ValueError
    assert calls == [(None, True), (None, False)]


@pytest.mark.parametrize(
    ("platform", "processes", "method"),
    [("linux", 1, "fork"), ("linux", 2, "spawn"), ("darwin", 1, "spawn"), ("win32", 1, "spawn")],
)
def test_workers_are_forked_only_where_that_is_safe(monkeypatch, platform, processes, method):
    monkeypatch.setattr(workers, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(workers.torch.multiprocessing, "set_sharing_strategy", lambda name: None)
    assert workers.worker_context(processes).get_start_method() == method


def test_a_worker_that_starts_anew_makes_batches():
    context = workers._UninterruptedContext()
    assert [int(one) for one in DataLoader(range(3), None, num_workers=1, multiprocessing_context=context)] == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes")
def test_batches_under_way_fit_into_a_container_s_shared_memory(data, monkeypatch):
    """Of which Docker gives 64 MiB: those of all workers, and the few that the run holds."""
    monkeypatch.setattr(training, "suggested_max_num_workers", lambda devices: 64)
    one = RunData(TrainingConfig(), [load_cases(data, ["p0"], 0.75)], [])
    one.trainer = SimpleNamespace(current_epoch=0, world_size=1, num_devices=1)
    loader = one.train_dataloader()
    stack = sum(part.nbytes for part in loader.dataset[0].values())
    assert stack * loader.batch_size * (loader.num_workers * loader.prefetch_factor + 3) < 64 * 2**20


@pytest.mark.parametrize("steps", [4, 7])  # at the next check, and at the last checkpoint
def test_a_run_that_diverges_ends_and_keeps_its_last_good_checkpoint(data, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(training, "STEPS_PER_EPOCH", 3)
    monkeypatch.setattr(training, "LOG_EVERY", 2 if steps == 4 else 100)
    loss, begun = TrainingRun.loss, []

    def diverging(self, *batch):
        begun.append(self.trainer.global_step)
        return loss(self, *batch) * (torch.nan if len(begun) == steps else 1)

    monkeypatch.setattr(TrainingRun, "loss", diverging)
    with pytest.raises(UsageError, match="diverged"):
        training.train([data], tmp_path / "run", TrainingConfig(**CONFIG | {"steps": 7}), "cpu")
    assert len(begun) == steps
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert last["global_step"] == (steps - 1) // 3 * 3
    assert all(
        value.isfinite().all() for name in ("state_dict", "current_model_state") for value in last[name].values()
    )


def test_where_the_best_weights_are_taken_or_networks_compared_what_diverges_stops_nothing():
    from SAUNetLib.evaluation.comparison import _Run

    run = TrainingRun(TrainingConfig(**CONFIG))
    run.check_weights()
    next(run.network.parameters()).data.fill_(torch.nan)
    with pytest.raises(UsageError, match="diverged"):
        run.check_weights()
    _Run.check_weights(run)
    run.config = run.config.model_copy(update={"patience": 2})
    run.check_weights()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    """Where a rename is refused (Windows, another disk), Lightning would copy over the only one."""
    last = tmp_path / "last.ckpt"
    training._WholeCheckpoints().save_checkpoint({"global_step": 1}, last)

    def full(checkpoint, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UsageError, match=r"last\.ckpt"):
        training._WholeCheckpoints().save_checkpoint({"global_step": 2}, last)
    monkeypatch.undo()
    assert torch.load(last, weights_only=True) == {"global_step": 1}
    assert list(tmp_path.iterdir()) == [last]


def test_a_damaged_checkpoint_is_told_as_such(data, tmp_path, capsys):
    (tmp_path / "small.json").write_text(json.dumps(CONFIG))
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.ckpt").write_bytes(b"PK" + bytes(1000))
    command = ["train", str(data), "--output", str(run), "--config", str(tmp_path / "small.json"), "--device", "cpu"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "error USAGE" in err and "last.ckpt is damaged" in err and "Remove it" in err


@pytest.mark.parametrize(
    ("where", "failure", "code"),
    [
        ("load", MemoryError(), "MEMORY"),
        ("load", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "MEMORY"),
        ("read", OSError(errno.ENOMEM, "Cannot allocate memory"), "MEMORY"),
        ("read", OSError(errno.EIO, "Input/output error"), "USAGE"),
        ("read", PermissionError(errno.EACCES, "Permission denied"), "USAGE"),
    ],
)
def test_a_good_checkpoint_that_cannot_be_read_now_is_not_to_be_removed(tmp_path, monkeypatch, where, failure, code):
    last = tmp_path / "last.ckpt"
    torch.save({"callbacks": {}, "epoch": 1}, last)
    assert training._checkpoint(last) == {"callbacks": {}, "epoch": 1}

    def refuse(*rest, **more):
        raise failure

    monkeypatch.setattr(*((torch, "load") if where == "load" else (Path, "read_bytes")), refuse)
    with pytest.raises(SAUNetError) as caught:
        training._checkpoint(last)
    assert caught.value.code == code and "Remove" not in str(caught.value)


@pytest.mark.parametrize("broken_at", [[3], [4, 9]])
def test_a_run_that_went_on_is_the_unbroken_one(data, tmp_path, monkeypatch, broken_at):
    """The same stacks, learning rates and averages, to the last bit; the last epoch is a short one."""
    monkeypatch.setattr(training, "STEPS_PER_EPOCH", 4)
    config = TrainingConfig(**CONFIG | {"steps": 11})
    step = TrainingRun.training_step

    def weights(folder, breaks):
        def stopping(self, batch, number):
            if breaks and self.trainer.global_step == breaks[0]:
                raise KeyError(breaks.pop(0))
            return step(self, batch, number)

        monkeypatch.setattr(TrainingRun, "training_step", stopping)
        while True:
            try:
                return training.train([data], tmp_path / folder, config, "cpu").state_dict()
            except KeyError:
                continue

    whole, parts = weights("whole", []), weights("parts", list(broken_at))
    assert torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["global_step"] == 11
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_the_average_follows_the_weights_until_it_begins():
    def averaged(updates: int) -> list[float]:
        average = [torch.tensor([1.0]), torch.tensor([5.0])]
        weights = [torch.tensor([2.0]), torch.tensor([3.0])]
        training._average(average, weights, torch.tensor(updates), decay=0.9, start=5)
        return [float(one) for one in average]

    assert averaged(0) == averaged(5) == [2, 3]
    assert averaged(6) == pytest.approx([1.1, 4.8])


@pytest.mark.parametrize(("patience", "start"), [(None, 500), (3, 50)])
def test_with_patience_weights_are_averaged_from_the_warm_up_on(tmp_path, monkeypatch, patience, start):
    made = []
    monkeypatch.setattr(
        training, "WeightAveraging", lambda device, multi_avg_fn: made.append(multi_avg_fn) or Callback()
    )
    training._callbacks(TrainingConfig(steps=1000, patience=patience, averaging=0.9), tmp_path, torch.device("cpu"))

    def averaged(updates: int) -> float:
        average = [torch.tensor([1.0])]
        made[0](average, [torch.tensor([2.0])], torch.tensor(updates))
        return float(average[0])

    assert averaged(start) == 2 and averaged(start + 1) == pytest.approx(1.1)


def test_validation_while_training_feeds_the_network_s_device():
    class Elsewhere:
        """A network on a device that is not the processor; answers from the processor."""

        def __init__(self):
            self.encoder = SAUNet(**CARD["network"]).encoder

        def parameters(self):
            yield torch.zeros(1, device="meta")

        def stream(self, parts):
            for part in parts:
                assert part.device.type == "meta"
                yield torch.zeros(1, 4, *part.shape[-2:])

    assert training.predict(Elsewhere(), torch.rand(3, 20, 24)).shape == (3, 20, 24)


def test_every_process_watches_the_same_sets(data):
    cases = load_cases(data, ["p0", "p1"], 1.5)
    assert set(RunData(TrainingConfig(**CONFIG), [cases], cases).watched) == {"native", "thick"}
    cases[1] = replace(cases[1], images=cases[1].images[:3], labels=cases[1].labels[:3])
    assert set(RunData(TrainingConfig(**CONFIG), [cases], cases).watched) == {"native"}


@pytest.mark.parametrize("slices", [4, 6])
def test_a_stack_repeats_slices_only_where_the_patient_has_too_few(slices):
    for available in range(2, 17):
        images = torch.arange(available, dtype=torch.float16)[:, None, None].expand(available, 16, 16)
        case = Case("p", images, torch.zeros(available, 16, 16, dtype=torch.uint8), 0.9)
        dataset = StackDataset([[case]], [1.0], 1, slices, (16, 16), 0)
        for seed in range(60):
            place = dataset._stack(case, np.random.default_rng(seed))[0][:, 0, 0]
            steps = place.diff()
            assert steps.abs().max() - steps.abs().min() < 0.01, "neighbours are neighbours"
            assert len(place.unique()) >= min(slices, available, 4)


def test_a_lone_slice_keeps_its_small_pieces(tmp_path):
    volume, labels = labelled(0)
    single = Volume(volume.voxels[5:6], replace(volume.geometry, size=(40, 48, 1)), "p")
    drawn = np.zeros_like(labels[5:6])
    drawn[0, 10, 10], drawn[0, 20:40, 20:40] = 1, 1
    write_pair(tmp_path, "p", single, drawn)
    assert read_pair(tmp_path, "p")[1][0, 10, 10] == 1


def test_figures_that_are_none_are_null(data, monkeypatch):
    found = {"native slices": {"dice disc": [0.5, 1.0], "hsd_mm disc": [float("inf"), 2.0], "dice canal": [0.5]}}
    monkeypatch.setattr("SAUNetLib.training.run.per_patient", lambda *rest: found)
    figures = validate(None, data, [])
    assert figures == {
        "native slices": {"dice disc": [0.75, 0.3536], "hsd_mm disc": [None, None], "dice canal": [0.5, None]}
    }


def test_another_configuration_does_not_overwrite_a_run(data, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(CONFIG))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(CONFIG | {"steps": 3}))
    assert main(["train", str(data), "--output", str(run), "--config", str(other)]) == 2
    assert "a different configuration" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_cases_only(data, tmp_path, capsys, monkeypatch):
    """Otherwise the model's card would speak of the last folders alone."""
    monkeypatch.setattr(training, "fit", lambda run, *rest: None)
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--config", str(tmp_path / "c.json")]
    (tmp_path / "c.json").write_text(json.dumps(CONFIG))
    for _ in range(2):
        training.train([data], tmp_path / "run", TrainingConfig(**CONFIG), "cpu")
    (tmp_path / "run" / "last.ckpt").touch()
    write_pairs(data, "p3")
    assert main(command) == 2
    assert "run with other cases" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "run" / "cases.json").read_text())["cases"][0]) == 2, "as it was"
    (tmp_path / "run" / "last.ckpt").unlink()
    training.train([data], tmp_path / "run", TrainingConfig(**CONFIG), "cpu")
    assert len(json.loads((tmp_path / "run" / "cases.json").read_text())["cases"][0]) == 3, "nothing was kept"


@pytest.mark.parametrize("case", ["p0", "p2"])  # p2 is validated on
@pytest.mark.parametrize(
    "changed, ending", [("image", ".nii.gz"), ("labels", ".nii.gz"), ("labels", ".mhd"), ("labels", ".nhdr")]
)
def test_changed_files_need_a_run_of_their_own(data, tmp_path, monkeypatch, case, changed, ending):
    """The old model was measured on them, and a table printed as if it had learnt them."""
    volume, labels = labelled(int(case[1]))
    for path in data.glob(f"{case}_*"):
        path.unlink()
    write_pair(data, case, volume, labels, ending)
    monkeypatch.setattr(training, "fit", lambda run, *rest: None)
    monkeypatch.setattr(training, "_is_finished", lambda *rest: False)
    run, config = tmp_path / "run", TrainingConfig(**CONFIG)
    training.train([data], run, config, "cpu")
    (run / "last.ckpt").touch()
    training.train([data], run, config, "cpu")
    told = json.loads((run / "cases.json").read_text())
    (run / "cases.json").write_text(json.dumps({"cases": told["cases"]}))  # of an earlier version
    training.train([data], run, config, "cpu")
    (run / "cases.json").write_text(json.dumps(told))
    if changed == "labels":
        write_pair(data, case, volume, np.where(labels == 2, 0, labels), ending)
    else:
        write_pair(data, case, labelled(7)[0], labels, ending)
    with pytest.raises(UsageError, match=r"images, label maps or dataset\.json have changed"):
        training.train([data], run, config, "cpu")
    training.train([data], tmp_path / "other", config, "cpu")


def test_labels_of_another_meaning_need_a_run_of_their_own(data, tmp_path, monkeypatch):
    """But what was only stated as it was read is the same, and runs of earlier versions do not know it."""
    monkeypatch.setattr(training, "fit", lambda run, *rest: None)
    monkeypatch.setattr(training, "_is_finished", lambda *rest: False)
    run, config = tmp_path / "run", TrainingConfig(**CONFIG)
    training.train([data], run, config, "cpu")
    (run / "last.ckpt").touch()
    (data / "dataset.json").write_text('{"encoding": "classes"}')
    training.train([data], run, config, "cpu")
    told = json.loads((run / "cases.json").read_text())
    assert told["meaning"] == [["classes", "canal", "disc", "vertebra"]]
    (data / "dataset.json").write_text('{"encoding": "spider", "draws": ["vertebra"]}')
    with pytest.raises(UsageError, match="have changed"):
        training.train([data], run, config, "cpu")
    del told["meaning"]
    (run / "cases.json").write_text(json.dumps(told))
    training.train([data], run, config, "cpu")


def test_a_finished_run_says_that_nothing_is_trained(data, tmp_path, capsys):
    (tmp_path / "small.json").write_text(json.dumps(CONFIG | {"steps": 2}))
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--config", str(tmp_path / "small.json")]
    assert main([*command, "--device", "cpu"]) == 0
    assert "already finished" not in capsys.readouterr().err
    weights = (tmp_path / "run" / "small.safetensors").read_bytes()
    assert main([*command, "--device", "cpu"]) == 0
    assert "is already finished: it is not trained" in capsys.readouterr().err
    assert (tmp_path / "run" / "small.safetensors").read_bytes() == weights


def test_data_that_are_refused_leave_no_folder_of_a_run(data, tmp_path, capsys):
    (data / "p1_labels.nii.gz").write_bytes((data / "p1_labels.nii.gz").read_bytes()[:50])
    (tmp_path / "small.json").write_text(json.dumps(CONFIG))
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--config", str(tmp_path / "small.json")]
    assert main([*command, "--device", "cpu"]) == 3
    assert "INPUT_UNREADABLE" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_folder_that_was_there_is_not_removed_with_a_run_that_did_not_begin(tmp_path):
    for folder, stays in ((tmp_path, True), (tmp_path / "new", False)):
        with pytest.raises(ValueError, match="refused"), running._alone(folder):
            raise ValueError("refused")
        assert folder.exists() == stays


def test_a_second_command_on_one_run_is_refused(data, tmp_path, capsys):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    (tmp_path / "small.json").write_text(json.dumps(CONFIG | {"steps": 2}))
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--config", str(tmp_path / "small.json")]
    with FileLock(tmp_path / "run" / "training.lock"):
        assert main([*command, "--device", "cpu"]) == 2
    assert "another command trains in" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_labels_with_levels_are_read_as_classes_and_unknown_stays_unknown(data):
    volume, labels = labelled(0)
    levels = np.array([0, 45, 95, 2, 50, 255], np.uint8)[labels]
    levels[:, 40:, 30:], levels[:, 40:, :5] = 50, 255
    sitk.WriteImage(to_sitk(levels, volume.geometry), str(data / "p0_labels.nii.gz"))
    found = read_pair(data, "p0")[1]
    assert set(np.unique(found)) == {0, 1, 2, 3, 255}
    assert (found[:, 40:, 30:] == 0).all() and (found[:, 40:, :5] == 255).all()
    assert np.array_equal(found[:, :40], labels[:, :40])
    thick = thick_slices(torch.zeros(found.shape), torch.from_numpy(found), 2)[1]
    assert (thick[:, 40:, :5] == 255).all()
    assert set(load_cases(data, ["p0"], 3.0)[0].labels.unique().tolist()) == {0, 1, 2, 3, 255}


def test_a_configuration_says_how_far_attention_reaches(tmp_path):
    config = TrainingConfig.model_validate({"network": {"widths": (4, 4, 4, 4, 4), "reach": 2}})
    network = config.network.build()
    assert network.reach == 2 and network.isa.generation[1].out_channels == 8
    save_model(network, tmp_path / "far.safetensors", CARD | {"network": config.network.model_dump()})
    assert load_model(str(tmp_path / "far.safetensors")).network.reach == 2
    with pytest.raises(ValueError):
        NetworkConfig(reach=0)


def test_two_processes_train_one_model(data, tmp_path):
    """As with two GPUs: each has its share of the stacks, both watch the same, one writes."""
    write_pairs(data, "p3")
    config = tmp_path / "two.json"
    config.write_text(json.dumps({**CONFIG, "steps": 100, "devices": 2, "patience": 3}))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "SAUNetLib", "train", str(data), "--output", str(run), "--config", str(config)]
    done = subprocess.run([*command, "--device", "cpu"], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=280)
    assert done.returncode == 0, done.stderr
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 100
    assert load_model(str(run / "small.safetensors")).card.metrics["native slices"]["dice mean"][0] >= 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
def test_a_run_that_waits_for_other_computers_can_be_ended(data, tmp_path):
    """Only SIGKILL did: no handler of Python's runs while PyTorch waits."""
    (tmp_path / "two.json").write_text(json.dumps({**CONFIG, "nodes": 2}))
    command = [sys.executable, "-m", "SAUNetLib", "train", str(data), "--output", str(tmp_path / "run")]
    command += ["--config", str(tmp_path / "two.json"), "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, encoding="utf-8") as one:
        told = next((line for line in one.stderr if "waiting for the run" in line), "")
        assert "to start on 2 computers" in told
        time.sleep(2)
        assert one.poll() is None
        one.terminate()
        one.communicate(timeout=60)
    assert one.returncode == -signal.SIGTERM


def test_a_case_that_several_processes_repeat_counts_once(data, monkeypatch):
    """PyTorch repeats the first cases so that all processes have as many."""
    cases = load_cases(data, ["p0", "p1", "p2"], 1.5)
    run = TrainingRun(TrainingConfig(**CONFIG))
    monkeypatch.setattr(training, "predict", lambda network, images: torch.ones_like(images, dtype=torch.uint8))
    counted = []
    for rank, shares in enumerate([(0, 2), (1, 0)]):
        run._trainer = SimpleNamespace(datamodule=RunData(run.config, [cases], cases), world_size=2, global_rank=rank)
        for index, number in enumerate(shares):
            run.validation_step(number, index)
        counted.append(run.agreement["native"].aggregate()[1].tolist())
        run.agreement["native"].reset()
    assert counted == [[2, 2, 2], [1, 1, 1]]


def test_what_a_case_has_not_is_no_part_of_the_mean(data):
    """A perfect prediction of cases without discs has a perfect mean."""
    case = load_cases(data, ["p0"], 1.5)[0]
    without = replace(case, labels=torch.where(case.labels == 2, 0, case.labels))
    run, logged = TrainingRun(TrainingConfig(**CONFIG)), {}
    watched = RunData(TrainingConfig(**CONFIG), [[case]], [case, without])
    run._trainer = SimpleNamespace(datamodule=watched, world_size=1, global_rank=0)
    run.log = lambda name, value, **_: logged.update({name: value})
    with pytest.MonkeyPatch.context() as patch:
        labels = iter([case.labels, without.labels])
        patch.setattr(training, "predict", lambda *_: next(labels))
        run.trainer.datamodule.watched = {"native": 1}
        for number in range(2):
            run.validation_step(number, number)
    run.on_validation_epoch_end()
    assert logged == {f"native/{name}": 1.0 for name in ("vertebra", "disc", "canal", "mean")}


def test_what_is_not_known_teaches_nothing(data):
    run = TrainingRun(TrainingConfig(**CONFIG))
    scores = torch.randn(2, 4, 16, 16, requires_grad=True)
    labels = torch.randint(0, 4, (2, 16, 16))
    labels[:, :8] = 255
    loss = run.loss(scores, labels)
    loss.backward()
    assert loss.isfinite() and scores.grad[:, :, 8:].abs().sum() > 0
    assert scores.grad[:, :, :8].abs().sum() == 0


def test_what_is_found_where_the_truth_is_not_known_is_no_error():
    truth, predicted = np.zeros((3, 30, 30), np.uint8), np.zeros((3, 30, 30), np.uint8)
    truth[:, 2:10, 2:10] = predicted[:, 2:10, 2:10] = 1
    truth[:, 15:25], predicted[:, 16:20, 2:10], predicted[:, 21:24, 2:10] = UNKNOWN, 1, 2
    figures = _figures(predicted, truth, (4.0, 1.0, 1.0), (1, 2, 3))
    assert figures["dice vertebra"] == 1 and figures["hsd_mm vertebra"] == 0 and "dice disc" not in figures


def test_sources_are_drawn_by_their_shares_and_single_slices_share_a_stack_apart(data):
    cases = load_cases(data, ["p0", "p1"], 1.5)
    single = [type(cases[0])(str(k), cases[0].images[k : k + 1], cases[0].labels[k : k + 1], 4.0) for k in range(5)]
    dataset = StackDataset([cases, single], [0, 1], 6, 3, (48, 32), seed=1)
    different = 0
    for index in range(6):
        stack = dataset[index]
        assert stack["image"].shape == (3, 1, 48, 32) and stack["label"].shape == (3, 48, 32)
        assert bool(stack["apart"])
        different += not torch.equal(stack["label"][0], stack["label"][1])
    assert different >= 2, "each is drawn and moved on its own"
    assert not bool(StackDataset([cases, single], [1, 0], 1, 3, (48, 32), seed=1)[0]["apart"])


def grey(path, seed=0):
    """A greyscale picture (96, 96) without a pixel size, and with noise: without, it would pass for a label map."""
    random = np.random.default_rng(seed)
    values = np.kron(random.integers(0, 250, (8, 8)), np.ones((12, 12))) + random.integers(0, 6, (96, 96))
    values = values.astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return path


def test_a_teacher_s_probabilities_of_a_picture(tiny_model, tmp_path):
    volume = self_training.single_slice(grey(tmp_path / "a.png"))
    assert volume.geometry.size == (96, 96, 1) and volume.geometry.spacing[:2] == pytest.approx((280 / 96, 280 / 96))
    mean = self_training.probabilities(load_model(str(tiny_model)), volume.voxels[0], volume.geometry.spacing[0])
    assert mean.shape == (4, 96, 96) and torch.allclose(mean.sum(0), torch.ones(96, 96), atol=1e-4)


def test_a_teacher_sees_a_picture_at_its_own_pixel_size(tiny_model):
    model, seen = load_model(str(tiny_model)), []
    model.network.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape[-2:])))
    pixels = np.random.default_rng(0).random((96, 64)).astype(np.float32)
    self_training.probabilities(model, pixels, 2 * model.card.pixel_mm)
    rows, columns = 2 * 96, 2 * 64
    padded = [
        tuple(-(-round(count * zoom) // 16) * 16 for count in (rows, columns)) for zoom, _ in self_training.CHANGES
    ]
    assert seen == padded


SEEN = np.zeros((96, 96), np.uint8)
SEEN[10:40, 20:50], SEEN[40:50, 20:50], SEEN[10:80, 60:64] = 1, 2, 3


def teacher(monkeypatch, unsure):
    """Make every teacher see SEEN, not sure of some pixels; returns the labels to be learnt from."""
    doubt = np.zeros(SEEN.shape, bool)
    doubt[unsure] = True
    best = torch.from_numpy(np.where(doubt, 0.89, 0.91)).float()
    mean = ((1 - best) / 3).expand(4, -1, -1).clone()
    mean.scatter_(0, torch.from_numpy(SEEN)[None].long(), best[None])
    monkeypatch.setattr(self_training, "probabilities", lambda *_: mean)
    return np.where(doubt, 255, SEEN)


@pytest.mark.parametrize(
    ("unsure", "kept"),
    [
        (np.s_[:, :30], True),  # a quarter of what is no background
        (np.s_[:, :32], False),  # a third
        (np.s_[:, 55:], False),  # the whole canal, less than a fifth
        (np.s_[70:, :], True),
        (np.s_[:0], True),
    ],
)
def test_a_teacher_says_what_it_is_sure_of(tmp_path, monkeypatch, unsure, kept):
    """A picture is kept where it knows most of the foreground and something of each class."""
    labels = teacher(monkeypatch, unsure)
    (tmp_path / "in").mkdir()
    volume, out = self_training.single_slice(grey(tmp_path / "in" / "a.png")), tmp_path / "out"
    found = self_training.pseudo_labels(None, volume)
    assert np.array_equal(found, labels[None]) if kept else found is None
    assert self_training.write_pseudo_labels(None, tmp_path / "in", out) == (int(kept), 1)
    if not kept:
        assert not out.exists()
        return
    assert sorted(path.name for path in out.iterdir()) == ["a_image.nii.gz", "a_labels.nii.gz", "dataset.json"]
    assert read_info(out).patient_before == "_"
    image, written = read_pair(out, "a")
    assert np.array_equal(written, labels[None]) and np.array_equal(image.voxels, volume.voxels)


def test_pictures_of_any_camera_s_ending_are_taken_and_none_are_said(tmp_path, monkeypatch):
    teacher(monkeypatch, np.s_[:, :30])
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("a.JPG", "b.jpeg")):
        grey(tmp_path / "one.jpg", seed).rename(tmp_path / "in" / name)
    (tmp_path / "none").mkdir()
    assert self_training.write_pseudo_labels(None, tmp_path / "in", tmp_path / "out") == (2, 2)
    with pytest.raises(InputError, match="holds no pictures") as caught:
        self_training.write_pseudo_labels(None, tmp_path / "none", tmp_path / "out")
    assert caught.value.code == "INPUT_EMPTY"


def test_drawn_and_undrawn_pictures_become_one_data_folder(tmp_path, monkeypatch):
    labels = teacher(monkeypatch, np.s_[:, :30])
    pictures, out = tmp_path / "in", tmp_path / "out"
    pictures.mkdir()
    for seed, name in enumerate(("1.png", "2_image.png", "3_left.png")):
        grey(pictures / name, seed)
    drawn = np.zeros(SEEN.shape, np.uint8)
    drawn[12:42, 30:50] = 255
    sitk.WriteImage(sitk.GetImageFromArray(drawn), str(pictures / "2_vertebra.png"))
    assert self_training.write_pseudo_labels(None, pictures, out, leave_out=["3"]) == (2, 2)
    assert case_names(out) == ["1", "2"] and np.array_equal(read_pair(out, "1")[1][0], labels)
    found = read_pair(out, "2")[1][0]
    assert np.array_equal(found == 1, drawn > 0) and (found[42:50, 30:50] == 2).all()


def test_a_drawing_is_found_beside_a_picture_of_any_ending(tmp_path, monkeypatch):
    teacher(monkeypatch, np.s_[:0])
    (tmp_path / "in").mkdir()
    grey(tmp_path / "in" / "a_image.jpg")
    drawn = np.zeros(SEEN.shape, np.uint8)
    drawn[12:42, 30:50] = 1
    sitk.WriteImage(sitk.GetImageFromArray(drawn), str(tmp_path / "in" / "a_vertebra.png"))
    self_training.write_pseudo_labels(None, tmp_path / "in", tmp_path / "out")
    assert np.array_equal(read_pair(tmp_path / "out", "a")[1][0] == 1, drawn == 1)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("b.png", b"no picture", "INPUT_UNREADABLE"),
        ("a_vertebra.png", b"no picture", "INPUT_UNREADABLE"),
        ("a_vertebra.png", np.ones((80, 64), np.uint8), "INPUT_GEOMETRY"),
        ("b_vertebra.png", np.ones((96, 96), np.uint8), "INPUT_NOT_FOUND"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named(tmp_path, monkeypatch, name, content, code):
    teacher(monkeypatch, np.s_[:0])
    (tmp_path / "in").mkdir()
    grey(tmp_path / "in" / "a_image.png")
    if isinstance(content, bytes):
        (tmp_path / "in" / name).write_bytes(content)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(content), str(tmp_path / "in" / name))
    with pytest.raises(InputError, match=name) as caught:
        self_training.write_pseudo_labels(None, tmp_path / "in", tmp_path / "out")
    assert caught.value.code == code
    assert not list((tmp_path / "out").glob("*")), "the next labelling would refuse the folder"


def test_a_labelling_that_ends_early_leaves_pairs_whose_patients_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "ab":
        grey(tmp_path / "in" / f"{name}_image.png")

    asked = []

    def labels(model, volume):
        asked.append(volume)
        if len(asked) > 1:
            raise KeyboardInterrupt
        return np.ones(volume.voxels.shape, np.uint8)

    monkeypatch.setattr(self_training, "pseudo_labels", labels)
    with pytest.raises(KeyboardInterrupt):
        self_training.write_pseudo_labels(None, tmp_path / "in", tmp_path / "out")
    assert read_info(tmp_path / "out").patient_before == "_"
    assert {path.name for path in (tmp_path / "out").glob("*.gz")} == {"a_image.nii.gz", "a_labels.nii.gz"}


def test_pairs_of_an_earlier_labelling_are_not_mixed_with_new_ones(tmp_path, monkeypatch):
    """Among them are patients who are left out by now."""
    teacher(monkeypatch, np.s_[:0])
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("1.png", "2.png")):
        grey(tmp_path / "in" / name, seed)
    self_training.write_pseudo_labels(None, tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match="already holds a data set"):
        self_training.write_pseudo_labels(None, tmp_path / "in", tmp_path / "out", leave_out=["1"])


def test_drawn_vertebrae_are_kept_and_lateral_discs_and_canal_stay_unknown(tiny_model):
    model = load_model(str(tiny_model))
    values = np.kron(np.random.default_rng(0).integers(0, 255, (8, 8)), np.ones((12, 12))).astype(np.uint8)
    volume = Volume(values[None], Geometry((96, 96, 1), (1.5, 1.5, 4.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT), "a")
    for rows, lateral in ((40, False), (4, True)):
        drawn = np.zeros((96, 96), bool)
        drawn[20 : 20 + rows, 30:60] = True
        assert (drawn.mean() < self_training.LATERAL) == lateral
        labels = self_training.complete_labels(model, volume, drawn)[0]
        assert ((labels == 1) == drawn).all(), "what is drawn, also where nothing is"
        found = set(np.unique(labels[~drawn])) - {255}
        assert found <= ({0} if lateral else {0, 2, 3})


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_contrasts_are_made_up_for_their_share_of_the_stacks(share, monkeypatch):
    """What is not made up keeps the order of the tissues."""
    made_up = []
    monkeypatch.setattr("SAUNetLib.training.augmentation.tissue_contrast", lambda image, *_: made_up.append(1) or image)
    augmentation, random = Augmentation((48, 40), share), np.random.default_rng(4)
    images, labels = torch.rand(2, 48, 40), torch.zeros(2, 48, 40, dtype=torch.uint8)
    for _ in range(40):
        augmentation(images, labels, random)
    assert abs(len(made_up) / 40 - share) < 0.2 and (0 < share < 1 or len(made_up) == 40 * share)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_intensities_of_other_scanners_belong_to_contrasts_that_are_made_up(share):
    applied = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def set_random_state(self, seed):
            return self

        def __call__(self, sample):
            applied.append(self.name)
            return sample

    augmentation = Augmentation((48, 40), share)
    augmentation.one_sequence, augmentation.other_scanners = Recorder("one sequence"), Recorder("other scanners")
    augmentation(torch.rand(2, 48, 40), torch.zeros(2, 48, 40, dtype=torch.uint8), np.random.default_rng(4))
    assert applied == ["other scanners" if share else "one sequence"]


@pytest.mark.parametrize("slices", [1, 4])
def test_motion_leaves_every_slice_where_its_labels_are(slices):
    """It blurs and ghosts; it neither moves a slice nor takes anything from another one."""
    images = torch.zeros(slices, 64, 48)
    for number in range(slices):
        images[number, 12 + 3 * number : 30 + 5 * number, 10 + number : 34 - 2 * number] = 1
    moved = torch.zeros(0)
    for seed in range(30):
        torch.manual_seed(seed)
        moved = _moved(images.movedim(0, -1)[None])[0].movedim(-1, 0)
        for one, other in zip(images, moved, strict=True):
            one, other = one - one.mean(), other - other.mean()
            match = torch.fft.ifft2(torch.fft.fft2(other) * torch.fft.fft2(one).conj()).real
            row, column = np.unravel_index(int(match.argmax()), match.shape)
            assert min(row, 64 - row) <= 1 and min(column, 48 - column) <= 1
            assert (one * other).sum() / (one.norm() * other.norm()) > 0.8
    assert moved.shape == images.shape and not torch.allclose(moved, images, atol=0.01)


def test_artefacts_are_the_same_for_the_same_seed():
    augmentation = Augmentation((48, 40))
    images = torch.rand(3, 48, 40)
    changed = [augmentation._acquire(images, seed) for seed in range(40)]
    state = torch.get_rng_state()
    again = [augmentation._acquire(images, seed) for seed in range(40)]
    assert all(torch.equal(one, other) for one, other in zip(changed, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "nobody else's randomness is touched"
    touched = sum(not torch.equal(one, images) for one in changed)
    assert 2 <= touched <= 20, "one in five"


@pytest.fixture
def base(tmp_path):
    """A small network with random weights as a model to start from."""
    torch.manual_seed(9)
    network = NetworkConfig(widths=(4, 4, 4, 4, 4))
    card = CARD | {"name": "base", "network": network.model_dump(mode="json"), "limits": ["lumbar"]}
    save_model(network.build(), tmp_path / "base.v1.safetensors", card)
    return tmp_path / "base.v1.safetensors"


def test_a_model_is_adapted_until_it_no_longer_improves(data, base, tmp_path, monkeypatch):
    """`--from`: shape, pixel size and limits are the model's; patience ends the run and the best weights stay."""
    monkeypatch.setattr(training, "STEPS_PER_EPOCH", 2)
    config = {"crop": [48, 32], "slices": 2, "stacks": 1, "steps": 80, "learning_rate": 1e-9, "patience": 1}
    (tmp_path / "c.json").write_text(json.dumps(config))
    run = tmp_path / "run"
    command = ["train", "--from", str(base), "--data", str(data), "--output", str(run), "--device", "cpu"]
    assert main([*command, "--config", str(tmp_path / "c.json")]) == 0
    reached = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert reached < 80, "weights that hardly move do not improve"
    tuned = load_model(str(run / "base-tuned.safetensors"))
    assert tuned.card.pixel_mm == 1.5 and tuned.card.limits == ["lumbar"]
    # Neither the card nor the configuration beside it, which go where the model goes, name a case or a folder.
    assert tuned.card.command == "saunet train DIR --from base.v1 --output RUN --config base-tuned.train.json"
    beside = (run / "base-tuned.train.json").read_text()
    assert json.loads(beside)["start"] == "base.v1" and str(tmp_path) not in beside
    (kept,) = json.loads((run / "config.json").read_text())["validation"]
    assert not any(f'"{kept}"' in path.read_text() for path in run.glob("base-tuned*.json"))
    before = load_model(str(base)).network.state_dict()
    for name, value in tuned.network.state_dict().items():
        if "running" not in name and value.is_floating_point():
            assert torch.allclose(value, before[name], atol=1e-3), "it went on from the model"
    # Called again, with the same configuration or without, it is still finished.
    for more in ([], ["--config", str(tmp_path / "c.json")]):
        assert main([*command, *more]) == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == reached


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A configuration of a few tiny steps."""
    monkeypatch.setattr(training, "STEPS_PER_EPOCH", 2)
    config = {"crop": [48, 32], "slices": 2, "stacks": 1, "steps": 2, "learning_rate": 1e-3}
    (tmp_path / "quick.json").write_text(json.dumps(config))
    return tmp_path / "quick.json"


def adapt(data, start, run, config):
    return main(["train", str(data), "--from", str(start), "--output", str(run), "--config", str(config)])


def test_a_tuned_model_s_card_says_what_it_was_measured_on_and_what_it_came_from(data, base, quick, tmp_path, capsys):
    run = tmp_path / "run"
    quick.write_text(json.dumps(json.loads(quick.read_text()) | {"patience": 1, "steps": 4, "validation": ["p1"]}))
    assert adapt(data, base, run, quick) == 0
    out = capsys.readouterr().out
    card, parent = load_model(run / "base-tuned.safetensors").card, load_model(base).card
    told = "; the weights were chosen on the same cases (patience), so this is not a test."
    assert f"Validated on 1 own case: p1{told}" in out
    assert card.data.endswith(f"Validated on 1 own case{told}"), "names may be patients'"
    assert f"whose card says of itself: [{parent.data}]" in card.data
    assert "native slices, before: base 1" in out
    found = validate(running.Engine(load_model(base), "cpu"), data, ["p1"])
    for title, figures in found.items():
        assert card.metrics[f"{title}, before: base 1"] == figures and title in card.metrics
    assert card.validated_on == [image_hash(labelled(1)[0])]
    assert card.trained_on == sorted(image_hash(labelled(seed)[0]) for seed in (0, 2))


def test_a_dice_that_fell_is_told():
    before = {"native slices": {"dice vertebra": [0.941, 0.1], "dice disc": [0.9, 0.1], "dice canal": [None, None]}}
    after = {"native slices": {"dice vertebra": [0.858, 0.1], "dice disc": [0.899, 0.1], "dice canal": [0.2, None]}}
    assert _worse(before, after) == "dice vertebra 0.941 to 0.858"
    assert _worse(after, before) == "" and _worse({}, after) == ""


def test_what_the_start_was_trained_on_is_not_validated_on(data, base, quick, tmp_path, capsys):
    """By the images, whatever they are called; what it was validated on comes first."""
    assert adapt(data, base, tmp_path / "first", quick) == 0
    first = tmp_path / "first" / "base-tuned.safetensors"
    (kept,) = json.loads((tmp_path / "first" / "config.json").read_text())["validation"]
    more = tmp_path / "more"
    write_pairs(more, *(f"other{number}" for number in range(6)))
    again = {name: f"other{name[1:]}" for name in ("p0", "p1", "p2")}
    trained = {again[name] for name in again if name != kept}
    for seed in range(8):
        quick.write_text(json.dumps(json.loads(quick.read_text()) | {"seed": seed}))
        assert _config(tmp_path / "second", str(quick), str(first), more).validation == (again[kept],)
    quick.write_text(json.dumps(json.loads(quick.read_text()) | {"validation": [min(trained)]}))
    capsys.readouterr()
    assert adapt(more, first, tmp_path / "second", quick) == 3
    err = capsys.readouterr().err
    assert "error INPUT_SERIES" in err and f"validation patients: {min(trained)}" in err
    for path in more.glob("*"):
        if path.name.partition("_")[0] not in trained:
            path.unlink()
    quick.write_text(json.dumps({**json.loads(quick.read_text()), "validation": []}))
    assert adapt(more, first, tmp_path / "second", quick) == 3
    assert "none is left for validation" in capsys.readouterr().err and not (tmp_path / "second").exists()


def test_a_model_of_a_tuned_model_knows_what_both_were_trained_on(data, base, quick, tmp_path):
    assert adapt(data, base, tmp_path / "first", quick) == 0
    other = tmp_path / "other"
    for seed in (7, 8):
        write_pair(other, f"q{seed}", *labelled(seed))
    first = tmp_path / "first" / "base-tuned.safetensors"
    assert adapt(other, first, tmp_path / "second", quick) == 0
    cards = [load_model(path).card for path in (first, tmp_path / "second" / "base-tuned-tuned.safetensors")]
    assert len(cards[0].trained_on) == 2 and len(cards[1].trained_on) == 3
    assert set(cards[0].trained_on) < set(cards[1].trained_on)


def test_patients_of_the_start_are_not_drawn_to_validate_on():
    cases = {str(number): [f"{number}_t1", f"{number}_t2"] for number in range(12)}
    trained = [f"{number}_t1" for number in range(6)]  # of whom the other image shows the same
    for seed in range(20):
        config = TrainingConfig(seed=seed)
        kept = _with_validation(config, cases, trained, ["7_t2", "3_t1"]).validation
        assert (
            len(kept) == 4
            and "7_t1" in kept
            and not set(kept) & {f"{number}_t{k}" for number in range(6) for k in (1, 2)}
        )
    with pytest.raises(InputError, match="0_t2"):
        _with_validation(TrainingConfig(validation=("0_t2",)), cases, trained)


def test_a_start_is_measured_before_the_first_step(data, base, quick, tmp_path, monkeypatch):
    """Its name may mean another model once the run is finished."""
    monkeypatch.setattr(running, "train", lambda *rest: base.unlink() or NetworkConfig(widths=(4,) * 5).build())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cases.json").write_text('{"cases": [["p0"]]}')
    (tmp_path / "run" / "start.json").write_text('{"name": "other 1", "trained_on": [], "metrics": {}}')
    assert adapt(data, base, tmp_path / "run", quick) == 0
    told = json.loads((tmp_path / "run" / "base-tuned.json").read_text())
    assert "native slices, before: base 1" in told["metrics"]


def test_a_begun_run_needs_the_model_that_it_started_from_no_more(data, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    torch.save({"callbacks": {}, "epoch": 0}, tmp_path / "run" / "last.ckpt")
    monkeypatch.setattr(training, "fit", lambda *_: 0.0)
    config = TrainingConfig(**CONFIG | {"validation": ("p2",), "start": "gone", "steps": 300})
    training.train([data], tmp_path / "run", config, "cpu")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["start"] == "gone"


def test_other_data_for_a_begun_run_are_told_as_such(data, tmp_path, capsys):
    """Not as a configuration or data that lack a case."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(CONFIG))
    (run / "last.ckpt").touch()
    other = write_pairs(tmp_path / "other", "q0", "q1")
    assert main(["train", str(other), "--output", str(run)]) == 2
    assert f"{run} holds a run with other cases" in capsys.readouterr().err


def test_a_copied_run_keeps_its_best_score(tmp_path, recwarn):
    """Else the first validation after it would replace better weights, with a warning about Lightning's files."""
    (old, new) = (tmp_path / "old", tmp_path / "new")
    config = TrainingConfig(patience=2)
    before, after = (training._callbacks(config, folder, torch.device("cpu"))[-1] for folder in (old, new))
    before.best_model_score = torch.tensor(0.8)
    before.best_model_path = str(old / "best.ckpt")
    before.best_k_models = {str(old / "best.ckpt"): torch.tensor(0.8)}
    after.load_state_dict(before.state_dict())
    assert after.best_model_score == 0.8 and after.best_model_path == str(new / "best.ckpt")
    assert after.best_k_models == {str(new / "best.ckpt"): torch.tensor(0.8)} and not recwarn.list
    assert before.state_key.startswith("ModelCheckpoint{"), "as in runs of earlier versions"


def test_a_short_epoch_brings_no_advice_of_lightning_s(data, tmp_path):
    with warnings.catch_warnings(record=True) as heard:
        training.train([data], tmp_path / "run", TrainingConfig(**CONFIG | {"steps": 2}), "cpu")
    assert not [one for one in heard if "logging interval" in str(one.message)]


def test_adapting_refuses_another_network_and_another_start(data, base, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({"network": {"widths": [4, 4, 4, 4, 8]}}))
    command = ["train", str(data), "--output", str(tmp_path / "run"), "--from"]
    assert main([*command, str(base), "--config", str(tmp_path / "c.json")]) == 2
    assert "network is not that of base" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "none.safetensors")]) == 4
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(CONFIG | {"start": "other.safetensors"}))
    assert main([*command, str(base)]) == 2
    assert "a different configuration" in capsys.readouterr().err
    assert main(["train", "--output", str(tmp_path / "run")]) == 2


def test_partly_drawn_data_are_trained_on_and_measured_by_what_is_drawn(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STEPS_PER_EPOCH", 2)
    for path in data.glob("*_labels.nii.gz"):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.Cast(image == 1, sitk.sitkUInt8), str(path))
    (data / "dataset.json").write_text('{"encoding": "classes", "draws": ["vertebra"]}')
    (tmp_path / "c.json").write_text(json.dumps(CONFIG | {"steps": 8}))
    run = tmp_path / "run"
    command = ["train", str(data), "--output", str(run), "--config", str(tmp_path / "c.json"), "--device", "cpu"]
    assert main(command) == 0
    figures = json.loads((run / "small.json").read_text())["metrics"]["native slices"]
    assert set(figures) == {"dice vertebra", "hsd_mm vertebra", "hd95_mm vertebra", "dice mean"}


def test_phantoms_are_a_data_folder(tmp_path):
    assert main(["phantom", str(tmp_path / "many"), "--count", "1", "--seed", "3"]) == 0
    assert case_names(tmp_path / "many") == ["phantom003"]
    classes = read_pair(tmp_path / "many", "phantom003")[1]
    assert set(np.unique(classes)) == {0, 1, 2, 3}
