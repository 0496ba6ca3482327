"""The benchmark: its measures, its tables, peers that are absent, and a whole run on tiny volumes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from SAUNetLib.cli import main
from SAUNetLib.engine import Engine
from SAUNetLib.errors import CancelledError, InputError, ModelError, SAUNetError, UsageError, error_of
from SAUNetLib.evaluation import benchmark as module
from SAUNetLib.evaluation import benchmark_child, benchmark_measures, benchmark_peers
from SAUNetLib.model import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "3.nrrd"
    assert benchmark_child.volume(str(path), 3, 64, 96.0)["shape"] == (3, 64, 64)
    return path


def child(image: Path, model: Path, runs: int = 1) -> dict:
    output = str(image.with_name("labels.nrrd"))
    return benchmark_child.product(str(image), output, str(model), "cpu", runs, 64)


def fake_row(slices: int, total: float = 2.0, network: float = 1.6, peak: float | None = 500.0) -> dict:
    stages = dict.fromkeys(module.STAGES, total / len(module.STAGES))
    return {
        "model": "m 1", "device": "cpu", "gpu": None, "precision": "bfloat16", "slices": slices, "threads": 2,
        "peak_mb": peak, "gpu_peak_mb": None,
        "matrix_gflops": 100.0, "memory_gbs": 10.0, "gflop": 120.0, "traffic_gb": 8.0,
        "median": stages | {"total": total, "network": network},
    }  # fmt: skip


def fake(**changes: object) -> dict:
    """What `benchmark` returns, with figures that are easy to divide."""
    measured = {
        "software": "SAUNet 0", "date": "2026-11-23", "volume": [20, 512, 512], "runs": 5,
        "machine": {
            "processor": "P", "system": "S", "threads": 2, "device": "cpu", "gpu": None, "precision": "bfloat16",
            "matrix_gflops": 100.0, "memory_gbs": 10.0,
        },
        "product": {10: fake_row(10, 1.0, 0.8), 20: fake_row(20), 40: fake_row(40, 4.0, 3.2, 510.0)},
        "worker": {"cold": 5.0, "warm": 1.7, "peak_mb": 480.0},
        "imports": {"python": 0.02, "saunet --help": 0.1},
        "peers": {
            "MONAI 3D BasicUNet, bfloat16": {"absent": "monai"},
            "nnU-Net 3d_fullres, float32": {"seconds": 130.0, "runs": 1, "peak_mb": 3000.0, "version": "2.8.1"},
            "broken": {"failed": "it broke"},
        },
    } | changes  # fmt: skip
    return measured | {"targets": module.targets(measured)}


def test_the_targets_are_ratios_of_what_was_measured():
    rows = {row["title"]: row for row in fake()["targets"]}
    assert rows.keys() == {target.title for target in module.TARGETS if target.device == "cpu"}
    assert rows["times faster than nnU-Net 3d_fullres, float32"] == {
        "title": "times faster than nnU-Net 3d_fullres, float32", "figure": 65, "limit": 60, "sense": "at least",
        "met": True,
    }  # fmt: skip
    assert rows["times faster than MONAI 3D BasicUNet, bfloat16"]["met"] is None
    assert rows["everything but the network / network"]["figure"] == pytest.approx(0.25)
    assert rows["network's rate / measured matrix rate"]["figure"] == pytest.approx(0.75)
    assert rows["peak memory, most slices / fewest"]["figure"] == pytest.approx(1.02)
    assert rows["seconds per slice, most slices / fewest"]["figure"] == pytest.approx(1)
    assert rows["worker's warm request / network"]["figure"] == pytest.approx(1.0625)
    assert rows["worker's cold request - warm request, s"] | {"figure": 0, "met": 0} == {
        "title": "worker's cold request - warm request, s", "figure": 0, "limit": 4, "sense": "at most", "met": 0
    }  # fmt: skip


def test_a_target_that_is_missed_is_told_as_missed():
    rows = {row["title"]: row for row in fake(worker={"cold": 9.0, "warm": 3.0, "peak_mb": None})["targets"]}
    assert rows["worker's warm request / network"]["met"] is False
    assert rows["worker's cold request - warm request, s"]["met"] is False
    unknown = {20: fake_row(20, peak=None), 10: fake_row(10)}
    rows = {row["title"]: row for row in fake(product=unknown)["targets"]}
    assert rows["peak memory, GB"]["met"] is None and rows["peak memory, most slices / fewest"]["met"] is None


def test_a_gpu_has_targets_and_a_column_of_its_own():
    machine = fake()["machine"] | {"device": "cuda", "gpu": "G 100"}
    product = {slices: fake_row(slices, 0.2, 0.1) | {"gpu_peak_mb": 1500.0 + slices} for slices in (10, 20)}
    measured = fake(machine=machine, product=product)
    assert [(row["title"], row["figure"], row["met"]) for row in measured["targets"]] == [
        ("seconds from file to file", 0.2, True),
        ("peak GPU memory, GB", 1.52, True),
    ]
    text = module.markdown(measured)
    assert "P, 2 threads, G 100 in bfloat16" in text and "| 500 | 1520 |" in text
    for block in text.split("\n\n")[1:]:
        assert len({line.count("|") for line in block.splitlines()}) == 1, "every row of a table has its columns"


def test_apple_s_gpu_is_held_to_the_processor_s_targets():
    measured = fake(machine=fake()["machine"] | {"device": "mps"})
    assert [row["title"] for row in measured["targets"]] == [row["title"] for row in fake()["targets"]]


def test_the_tables_show_ratios_first_and_every_peer():
    text = module.markdown(fake())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "| SAU-Net, file to file | 1 | 2.00 | 500 | 5 |" in lines
    assert "| nnU-Net 3d_fullres, float32 (2.8.1) | 65.0 | 130.00 | 3000 | 1 |" in lines
    assert "| MONAI 3D BasicUNet, bfloat16 | not installed (monai) | - | - | - |" in lines
    assert "| broken | failed: it broke | - | - | - |" in lines
    for block in text.split("\n\n")[1:]:
        widths = {line.count("|") for line in block.splitlines()}
        assert len(widths) == 1, "every row of a table has its columns"


def test_the_parts_of_a_run_add_up(image, tiny_model):
    row = child(image, tiny_model, runs=2)
    assert len(row["runs"]) == 2 and row["slices"] == 3 and row["working_pixels"] == [64, 64]
    for run in row["runs"]:
        assert math.isclose(sum(run[stage] for stage in module.STAGES), run["total"], rel_tol=1e-6)
        assert 0 < run["network"] < run["segment"] < run["total"]
    fine, coarse = (load_model(tiny_model).network.cost(size, size)[1] for size in (64, 48))
    assert row["gflop"] == pytest.approx((3 * fine + 2 * coarse) / 1e9)
    assert row["matrix_gflops"] > 0 and row["memory_gbs"] > 0
    json.dumps(row)


def test_the_stopwatch_sees_the_whole_network_and_changes_nothing(tiny_model, image):
    from SAUNetLib.formats.volumes import read_volume
    from SAUNetLib.volume import SagittalStack

    stack = SagittalStack.of(read_volume(image))
    plain, watched = (Engine(load_model(tiny_model), "cpu", "float32") for _ in range(2))
    stopwatch = benchmark_child.Stopwatch(watched)
    assert (plain.classes(stack)[0] == watched.classes(stack)[0]).all()
    first = stopwatch.seconds
    watched.classes(stack)
    assert 0 < first < stopwatch.seconds


def test_traffic_counts_every_convolution_s_input_weights_and_result(tiny_model):
    network = load_model(tiny_model).network
    one = benchmark_child.traffic(network, 16, 16, 2)
    assert benchmark_child.traffic(network, 16, 16, 4) == 2 * one
    weights = sum(
        module.weight.numel()
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    )
    # Four times the pixels, the same weights.
    assert benchmark_child.traffic(network, 32, 32, 2) == 4 * (one - 2 * weights) + 2 * weights


def test_the_machine_s_rates_are_of_the_right_order():
    # The best of five each: where other programs take a core, a product of two threads may wait a hundred times longer.
    rate = max(benchmark_child.matrix_rate(torch.float32, CPU, 256) for _ in range(5))
    a = torch.randn(256, 256)
    taken = min(benchmark_measures.seconds(lambda: a @ a, CPU, 5) for _ in range(5))
    assert 0.2 < rate / (2 * 256**3 / taken / 1e9) < 8, "the faster of two ways is near one of them"


def test_peak_memory_is_this_process_s_own():
    """A child of a large process must not count its parent's memory."""
    ballast = bytearray(600_000_000)
    code = "from SAUNetLib.evaluation.benchmark_measures import peak_memory; print(peak_memory())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=module._environment(), capture_output=True, encoding="utf-8", check=True
    )
    if done.stdout.strip() == "None":
        pytest.skip("this system does not tell a process's peak memory")
    assert 5 < float(done.stdout) < len(ballast) / 2e6


def test_nnunet_absent_is_a_row_not_a_failure(image, monkeypatch):
    for name in ("nnunetv2", "nnunetv2.experiment_planning"):
        monkeypatch.setitem(sys.modules, name, None)
    assert benchmark_peers.nnunet(str(image), "cpu")["absent"].startswith("nnunetv2")


@pytest.mark.parametrize("device, precision", [("cpu", "float32"), ("cuda", "float16")])
def test_peers_are_named_by_what_they_compute_in(monkeypatch, device, precision):
    monkeypatch.setattr(module, "_peer", lambda task, image, device, **rest: {"absent": task})
    rows = module._peers(Path("x"), device, {"device": device, "precision": "bfloat16"}, 1, print)
    assert list(rows) == [
        "MONAI 3D BasicUNet, bfloat16",
        "MONAI 3D UNet, bfloat16",
        f"nnU-Net 3d_fullres, {precision}",
        f"nnU-Net 3d_fullres, {precision}, mirroring",
    ]


@pytest.mark.parametrize("installed", [False, True])
def test_nnunet_is_announced_where_it_is_installed(monkeypatch, installed):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(module, "_peer", lambda *rest, **more: {"absent": "nnunetv2"})
    said: list[str] = []
    module._peers(Path("x"), "cpu", {"device": "cpu", "precision": "bfloat16"}, 1, said.append)
    assert any("takes minutes" in text for text in said) is installed


def test_nnunet_where_it_is_installed(image):
    pytest.importorskip("nnunetv2", reason="needs the extra `peers`")
    row = benchmark_peers.nnunet(str(image), "cpu")
    assert row["windows"] >= 1 and row["mirrored_seconds"] > 0 and row["seconds"] > 0


def test_monai_where_it_is_installed(image, monkeypatch):
    pytest.importorskip("monai", reason="needs the extra `peers`")
    for network in ("BasicUNet", "UNet"):
        row = benchmark_peers.monai_unet(str(image), network, "cpu", "float32", 1)
        assert row["seconds"] > 0 and row["version"]
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    assert benchmark_peers.monai_unet(str(image), "UNet", "cpu", "float32", 1) == {"absent": "monai.networks.nets"}


def test_errors_of_a_child_are_raised_as_its_own():
    with pytest.raises(ModelError) as caught:
        module.run_child("product", image="x", output="y", model="nobody", device="cpu", runs=1, matrix=8)
    assert caught.value.code == "MODEL_NOT_FOUND" and caught.value.exit_status == 4
    with pytest.raises(SAUNetError) as crashed:
        module.run_child("volume", wrong=1)
    assert crashed.value.code == "INTERNAL" and "unexpected keyword" in crashed.value.cause


def test_a_child_may_say_anything_in_any_encoding(monkeypatch):
    real, code = subprocess.run, "import sys; sys.stderr.buffer.write(b'g\\xe9n\\xe9ral'); sys.exit(1)"
    monkeypatch.setattr(module.subprocess, "run", lambda _, **rest: real([sys.executable, "-c", code], **rest))
    with pytest.raises(SAUNetError) as failed:
        module.run_child("volume")
    assert failed.value.code == "INTERNAL" and "g\ufffdn\ufffdral" in failed.value.cause


@pytest.mark.parametrize("kind", [
    UsageError("DEVICE", "c", "r"), InputError("INPUT_EMPTY", "c", "r"), CancelledError("later"),
    SAUNetError("INTERNAL", "c", "r")])  # fmt: skip
def test_errors_keep_their_kind_across_the_process(kind):
    raised = error_of(kind.as_dict())
    assert type(raised) is type(kind) and str(raised) == str(kind)


def test_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "run_child", lambda *a, **k: pytest.fail("measured before it was refused"))
    assert main(["benchmark", "--budget", "smoke", "--output", str(tmp_path / "speed.txt")]) == 2
    assert "OUTPUT_FORMAT" in capsys.readouterr().err


def test_a_whole_run_on_tiny_volumes(tmp_path, capsys, monkeypatch, tiny_model):
    original = module.run_child

    def run_child(task, **arguments):  # the peers are tested above, and MONAI's import is slow
        return {"absent": task} if task in ("monai_unet", "nnunet") else original(task, **arguments)

    monkeypatch.setattr(module, "run_child", run_child)
    path = tmp_path / "speed.json"
    command = ["benchmark", "--budget", "smoke", "--device", "cpu", "--model", str(tiny_model), "--output", str(path)]
    assert main(command) == 0
    measured = json.loads(path.read_text())
    assert set(measured["product"]) == {"2", "3"} and measured["volume"] == [3, 64, 64]
    worker, imports = measured["worker"], measured["imports"]
    assert 0 < worker["warm"] < worker["cold"], "the second request needs no start"
    assert imports["saunet --help"] < imports["pipeline with PyTorch"], "the help does not wait for PyTorch"
    assert imports["worker ready"] < imports["pipeline with PyTorch"]
    shown = capsys.readouterr().out
    assert "not installed (nnunet)" in shown and "| 2 |" in shown and "tiny 1" in shown
