"""The engine: chunks, precision, memory, cancelling, and the same bits every time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import SAUNetLib.engine as engine_module
from SAUNetLib.engine import (
    Engine,
    best_class,
    choose_device,
    computes_bfloat16,
    fine_classes,
    network_input,
    resample,
)
from SAUNetLib.errors import CancelledError, OutOfMemoryError, UsageError
from SAUNetLib.model import load_model
from SAUNetLib.network import SAUNet, fold_batch_norm, inference, pack_for_processor
from SAUNetLib.volume import Intensity, SagittalStack


def stack_of(slices: int, rows: int = 60, columns: int = 50, pixel: float = 1.5) -> SagittalStack:
    values = np.random.default_rng(slices).normal(100, 30, (slices, rows, columns)).astype(np.float32)
    values = np.cumsum(values - 100, axis=1)  # smooth enough to have shapes in it
    return SagittalStack(values, 4.0, (pixel, pixel), (0, 1, 2), (False, False, False))


def test_result_has_the_stack_s_grid_and_several_classes(tiny_engine):
    found, notices = tiny_engine.classes(stack_of(5))
    assert found.shape == (5, 60, 50) and found.dtype == np.uint8 and notices == ()
    assert len(np.unique(found)) > 1 and found.max() <= 3


@pytest.mark.parametrize("fill", [-32768.0, 0.0, 1e5])
def test_padding_changes_no_intensities(tiny_engine, fill):
    """Whatever it holds: it is no part of what the scanner measured."""
    stack = stack_of(4, 64, 48)
    padded = np.full((8, 64, 64), fill, np.float32)
    padded[2:6, :, :48] = stack.slices
    seen = Intensity.of(stack.slices)
    found = []
    original = tiny_engine._input
    tiny_engine._input = lambda slices, intensity, shape: found.append(intensity) or original(slices, intensity, shape)
    tiny_engine.classes(SagittalStack(padded, 4.0, (1.5, 1.5), (0, 1, 2), (False, False, False)))
    del tiny_engine._input
    assert set(found[:8]) == {seen}


def test_the_network_s_input_is_padded_as_dark_as_the_volume_gets():
    """Zero would be of middling brightness: tissue where nothing was measured."""
    intensity = Intensity(low=10.0, high=90.0, mean=40.0, deviation=20.0)
    found = network_input(np.full((1, 5, 6), 90, np.int16), intensity, (5, 6), 8)[0, 0]
    assert found.shape == (8, 8) and (found[:5, :6] == 2.5).all()
    assert (found[5:] == -1.5).all() and (found[:, 6:] == -1.5).all()


@pytest.mark.parametrize("slices", [1, 2, 7])
def test_result_does_not_depend_on_the_chunk(tiny_model, slices):
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    results = []
    for chunk in (1, 2, 3, 16):
        engine.chunk = chunk
        results.append(engine.classes(stack_of(slices))[0])
    for other in results[1:]:
        # Another batch size may take another convolution kernel: the last bit of a score, not a decision.
        assert np.mean(other != results[0]) < 1e-4


def test_engine_equals_the_network_on_the_whole_stack(tiny_model):
    model = load_model(tiny_model)
    stack = stack_of(4, 64, 48)
    found, _ = Engine(model, "cpu", "float32").classes(stack)
    intensity = engine_module.Intensity.of(stack.slices)
    with torch.inference_mode():
        scores = model.network(torch.from_numpy(intensity.normalise(stack.slices.astype(np.float32)))[None, :, None])[0]
    assert np.mean(found != scores.argmax(1).numpy()) < 1e-3


def test_every_slice_is_encoded_once_whatever_the_chunk(tiny_model):
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    encoded = []
    engine.network.encoder.register_forward_hook(lambda _m, inputs, _r: encoded.append(inputs[0].shape[0]))
    engine.chunk = 2
    engine.classes(stack_of(5))
    assert encoded == [2, 2, 1, 1, 1]  # then one slice as it is, and turned round: does it face backwards?


@pytest.mark.parametrize(("as_is", "turned", "told"), [(0.80, 0.83, True), (0.80, 0.805, False), (0.5, 0.7, False)])
def test_front_and_back_seem_swapped_where_the_network_is_clearly_surer_of_the_slice_turned_round(
    tiny_engine, monkeypatch, as_is, turned, told
):
    """Of a little of a spine it is about as sure either way, or not sure at all."""
    sure = iter((as_is, turned))

    def scores(_):
        share = next(sure)
        return torch.tensor([1 - share, share, 0, 0]).log()[None, :, None, None].expand(1, 4, 64, 64)

    monkeypatch.setattr(tiny_engine.network, "scores", scores)
    assert tiny_engine._seems_turned(stack_of(1), np.ones((1, 60, 50), np.uint8)) is told


def test_front_and_back_are_told_in_the_slice_that_shows_most(tiny_engine, monkeypatch):
    """And by what is not background there: of background the network is surer than of any structure."""
    given, sure = [], iter(((0.80, 0.999), (0.83, 0.9)))

    def scores(_):
        of_spine, of_background = next(sure)
        result = torch.empty(1, 4, 1, 64, 64)
        result[..., :32, :] = torch.tensor([1 - of_spine, of_spine, 0, 0]).log()[None, :, None, None, None]
        result[..., 32:, :] = torch.tensor([of_background, 1 - of_background, 0, 0]).log()[None, :, None, None, None]
        return result[:, :, 0]

    real = tiny_engine._input
    monkeypatch.setattr(tiny_engine, "_input", lambda slices, *rest: given.append(slices) or real(slices, *rest))
    monkeypatch.setattr(tiny_engine.network, "scores", scores)
    stack, found = stack_of(5), np.zeros((5, 60, 50), np.uint8)
    found[2, :5], found[4] = 1, 1
    assert tiny_engine._seems_turned(stack, found)
    assert np.array_equal(given[0], stack.slices[4:]) and np.array_equal(given[1], stack.slices[4:, :, ::-1])


def test_same_input_same_bits(tiny_engine):
    stack = stack_of(4)
    assert np.array_equal(tiny_engine.classes(stack)[0], tiny_engine.classes(stack)[0])


def test_folding_batch_norm_changes_nothing_but_the_layers():
    torch.manual_seed(4)
    network = SAUNet(widths=(4, 4, 8, 8, 8)).train()
    for _ in range(3):
        network(torch.randn(2, 2, 1, 32, 32) * 3 + 1)  # statistics worth folding
    network.eval()
    stack = torch.randn(1, 3, 1, 32, 32)
    with torch.inference_mode():
        before = network(stack)
        folded = fold_batch_norm(network)
        torch.testing.assert_close(folded(stack), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"reach": 2}, {"reading": "concat"}, {"attention": "skips"}, {"attention": "scores"}, {"attention": "none"}],
)
def test_packing_changes_nothing_but_the_layers(dtype, options):
    torch.manual_seed(4)
    network = SAUNet(widths=(4, 4, 8, 8, 8), **options).train()
    network(torch.randn(2, 2, 1, 32, 32) * 3 + 1)
    network = fold_batch_norm(network.eval()).to(dtype)
    stack = torch.randn(1, 3, 1, 64, 48).to(dtype)
    with torch.inference_mode():
        before = network(stack)
        tolerance = 1e-5 if dtype == torch.float32 else 0.05  # bfloat16 keeps eight bits
        torch.testing.assert_close(pack_for_processor(network)(stack), before, rtol=tolerance, atol=tolerance)
    if torch.backends.mkldnn.is_available():
        assert not any(isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d) for module in network.modules())


def test_without_onednn_the_engine_answers_the_same(tiny_model, tiny_engine, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = Engine(load_model(tiny_model), "cpu", "float32")
    assert any(isinstance(module, torch.nn.Conv2d) for module in plain.network.modules())
    assert np.mean(plain.classes(stack_of(4))[0] != tiny_engine.classes(stack_of(4))[0]) < 1e-4


def test_another_form_of_onednns_operation_leaves_the_network_as_it_is(monkeypatch):
    def other_form(self, x):
        raise RuntimeError("expected at most 7 arguments")

    monkeypatch.setattr(inference.PackedConvolution, "forward", other_form)
    inference._packing_works.cache_clear()
    try:
        network = pack_for_processor(fold_batch_norm(SAUNet(widths=(4, 4, 4, 4, 4)).eval()))
        assert not any(isinstance(module, inference.PackedConvolution) for module in network.modules())
    finally:
        inference._packing_works.cache_clear()


def host_settings(name):
    """What another program may have set for its own computations."""
    if name == "device":
        return torch.device("meta")
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("host", ["device", "autocast"])
def test_whether_packing_works_neither_takes_random_numbers_nor_depends_on_the_caller(host):
    expected, before = inference._packing_works(), torch.get_rng_state()
    inference._packing_works.cache_clear()
    try:
        with host_settings(host):
            assert inference._packing_works() is expected
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        inference._packing_works.cache_clear()


@pytest.mark.parametrize("packed", [True, False])
def test_the_caller_s_autocast_changes_nothing(tiny_model, monkeypatch, packed):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: packed)
    engine, turned = Engine(load_model(tiny_model), "cpu", "float32"), []
    seems_turned = engine._seems_turned
    engine._seems_turned = lambda *what: turned.append(torch.is_autocast_enabled("cpu")) or seems_turned(*what)
    expected, _ = engine.classes(stack_of(3))
    with host_settings("autocast"):
        assert np.array_equal(engine.classes(stack_of(3))[0], expected)
    assert turned == [False, False]


def test_a_device_for_which_pytorch_has_no_autocast_needs_nothing_turned_off():
    with engine_module.without_autocast(torch.device("meta")) as nothing:
        assert nothing is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_caller_s_default_type_changes_nothing(tiny_model, tiny_engine, dtype):
    fine = stack_of(3, 90, 80, 0.9)  # whose classes are enlarged
    expected, _ = tiny_engine.classes(fine)
    torch.set_default_dtype(dtype)
    try:
        assert np.array_equal(Engine(load_model(tiny_model), "cpu", "float32").classes(fine)[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_model_itself_is_not_changed(tiny_model):
    model = load_model(tiny_model)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    Engine(model, "cpu").classes(stack_of(2))
    after = model.network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_best_class_is_the_first_of_the_highest_scores():
    scores = torch.randint(0, 3, (2, 4, 30, 20)).float()  # many ties
    assert torch.equal(best_class(scores), scores.argmax(1).to(torch.uint8))


def test_bfloat16_agrees_with_float32_on_the_shipped_model(shared_data):
    from SAUNetLib.formats.volumes import read_volume

    stack = SagittalStack.of(read_volume(shared_data / "external_bodies" / "VB3_02_image.nii.gz"))
    model = load_model()
    full, _ = Engine(model, "cpu", "float32").classes(stack)
    half, _ = Engine(model, "cpu", "bfloat16").classes(stack)
    assert full.any()
    assert np.mean(full == half) >= 0.999


def test_cancelling_takes_effect_within_a_chunk(tiny_engine):
    told = []

    def report(stage: str, fraction: float) -> None:
        told.append(fraction)
        if len(told) == 3:
            raise CancelledError

    with pytest.raises(CancelledError):
        tiny_engine.classes(stack_of(6), report)
    assert told == [0.0, pytest.approx(1 / 6), pytest.approx(2 / 6)]


def test_progress_rises_to_one(tiny_engine):
    told = []
    tiny_engine.classes(stack_of(5), lambda stage, fraction: told.append((stage, fraction)))
    assert {stage for stage, _ in told} == {"segment"}
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1


def failing(engine: Engine, error: Exception, times: int) -> list[int]:
    """Let the network fail a number of times; the chunks that were tried are recorded."""
    tried: list[int] = []
    original = engine._input

    def prepare(slices, *rest):
        tried.append(len(slices))
        if len(tried) <= times:
            raise error
        return original(slices, *rest)

    engine._input = prepare
    return tried


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cudnn", "cudnn status", "allocator", "python"])
def test_out_of_memory_takes_smaller_chunks_and_says_so(tiny_model, error):
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    engine.chunk = 4
    tried = failing(engine, error, 2)
    found, notices = engine.classes(stack_of(4))
    assert tried[:3] == [4, 2, 1]
    assert [notice.text for notice in notices] == ["Memory ran low; continued with one slice at a time."]
    assert np.array_equal(found, Engine(load_model(tiny_model), "cpu", "float32").classes(stack_of(4))[0])


def test_out_of_memory_on_a_gpu_ends_on_the_processor(tiny_model, monkeypatch):
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    engine.chunk = 1
    engine.device = torch.device("meta")  # stands for a device that is not the processor
    tried = failing(engine, torch.OutOfMemoryError("out of memory"), 1)
    _, notices = engine.classes(stack_of(2))
    assert [notice.code for notice in notices] == ["MOVED_TO_CPU"]
    assert engine.device.type == "cpu" and len(tried) == 5  # one that failed, two, and one slice as it is and reversed


def test_a_gpu_that_fails_is_left_where_nobody_asked_for_it(tiny_model):
    """As one for which this build of PyTorch has no kernels, or whose driver was reset."""
    error = RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")
    engine = Engine(load_model(tiny_model), "auto", "float32")
    engine._chosen = engine.device = torch.device("meta")  # stands for a device that is not the processor
    failing(engine, error, 1)
    found, notices = engine.classes(stack_of(2))
    assert [notice.code for notice in notices] == ["GPU_FAILED"] and "no kernel image" in notices[0].text
    assert np.array_equal(found, Engine(load_model(tiny_model), "cpu", "float32").classes(stack_of(2))[0])


@pytest.mark.parametrize("at_the_start", [True, False])
def test_a_gpu_that_fails_though_it_was_asked_for_is_no_bug(tiny_model, monkeypatch, at_the_start):
    error = RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    engine._chosen = engine.device = torch.device("meta")  # stands for a device that is not the processor
    if at_the_start:
        engine._stepped_down = True
        monkeypatch.setattr(engine, "_prepare", lambda device: (_ for _ in ()).throw(error))
    else:
        failing(engine, error, 1)
    with pytest.raises(UsageError, match="no kernel image") as caught:
        engine.classes(stack_of(2))
    assert caught.value.code == "DEVICE" and "--device cpu" in caught.value.remedy


def test_a_bug_on_the_processor_stays_one(tiny_model):
    engine = Engine(load_model(tiny_model), "auto", "float32")
    engine._chosen = torch.device("meta")
    failing(engine, RuntimeError("a bug"), 1)
    with pytest.raises(RuntimeError, match="a bug"):
        engine.classes(stack_of(2))


def test_a_gpu_that_is_full_before_the_work_is_left_for_the_processor(tiny_model, monkeypatch):
    prepare, full = Engine._prepare, [True]

    def preparing(self, device):
        if device.type != "cpu" and full[0]:
            raise torch.OutOfMemoryError("out of memory")
        prepare(self, torch.device("cpu"))

    monkeypatch.setattr(Engine, "_prepare", preparing)
    monkeypatch.setattr("SAUNetLib.engine.choose_device", lambda device: torch.device("meta"))
    engine = Engine(load_model(tiny_model), "cuda", "float32")
    for _ in range(2):
        assert [notice.code for notice in engine.classes(stack_of(2))[1]] == ["MOVED_TO_CPU"]
    full[0] = False
    for _ in range(2):
        assert engine.classes(stack_of(2))[1] == ()


def test_the_stack_after_one_that_did_not_fit_is_given_the_gpu_again(tiny_model, monkeypatch):
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    engine.device = engine._chosen = torch.device("meta")  # stands for a device that is not the processor
    failing(engine, torch.OutOfMemoryError("out of memory"), 1)
    engine.classes(stack_of(2))
    asked = []
    monkeypatch.setattr(engine, "_prepare", asked.append)
    engine.classes(stack_of(2))
    assert asked == [torch.device("meta")]


def test_the_stack_after_one_that_took_smaller_chunks_is_tried_in_whole_ones(tiny_model):
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    whole = engine.chunk
    engine.chunk = 4
    failing(engine, torch.OutOfMemoryError("out of memory"), 2)
    engine.classes(stack_of(4))
    assert engine._stepped_down
    engine.classes(stack_of(1))
    assert not engine._stepped_down and engine.chunk == whole


def test_out_of_memory_on_the_processor_is_an_error_of_its_own(tiny_model):
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    failing(engine, MemoryError(), 99)
    with pytest.raises(OutOfMemoryError) as caught:
        engine.classes(stack_of(2))
    assert caught.value.exit_status == 5


def test_other_failures_are_not_taken_for_a_lack_of_memory(tiny_model):
    engine = Engine(load_model(tiny_model), "cpu", "float32")
    failing(engine, RuntimeError("shapes do not match"), 1)
    with pytest.raises(RuntimeError, match="shapes"):
        engine.classes(stack_of(2))


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    for device in ("cuda", "mps", "quantum"):
        with pytest.raises(UsageError) as caught:
            choose_device(device)
        assert caught.value.code == "DEVICE"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for machine, device in (("arm64", "mps"), ("x86_64", "cpu")):  # Slicer's package for macOS is for the second
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert choose_device("auto").type == device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


@pytest.mark.parametrize("capability, expected", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_where_an_nvidia_gpu_computes_in_it(monkeypatch, capability, expected):
    """In any PyTorch: the question that it has for it took no argument before 2.4."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: pytest.fail("not asked"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert computes_bfloat16(torch.device("cuda")) is expected


@pytest.mark.parametrize("name, expected", [("gfx1030", False), ("gfx906:sramecc+", False), ("gfx90a", True),
                                            ("gfx1100", True), ("gfx942", True)])  # fmt: skip
def test_bfloat16_where_an_amd_gpu_computes_in_it(monkeypatch, name, expected):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=name))
    assert computes_bfloat16(torch.device("cuda")) is expected


@pytest.mark.parametrize("allowed", [True, False])
def test_bfloat16_where_onednn_may_use_the_processor_s(monkeypatch, allowed):
    """ONEDNN_MAX_CPU_ISA=AVX2, as for equal results on unequal computers: packing the weights failed."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: allowed, raising=False)
    assert computes_bfloat16(torch.device("cpu")) is allowed


def test_the_engine_does_without_pytorch_s_own_road_to_numpy(tiny_model, monkeypatch):
    """PyTorch 2.2, the last one for Macs with Intel's processors, was built for NumPy 1 and has none to NumPy 2."""
    expected, _ = Engine(load_model(tiny_model), "cpu", "float32").classes(stack_of(3))

    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("Numpy is not available")

    for owner, name in ((torch, "from_numpy"), (torch.Tensor, "numpy"), (torch.Tensor, "__array__")):
        monkeypatch.setattr(owner, name, missing)
    found, notices = Engine(load_model(tiny_model), "cpu", "float32").classes(stack_of(3))
    assert np.array_equal(found, expected) and notices == ()


@given(
    coarse=st.tuples(st.integers(16, 24), st.integers(16, 24)),
    fine=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    box=st.tuples(*[st.integers(0, 23)] * 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_classes_enlarged_in_their_box_are_those_of_all_scores_enlarged(coarse, fine, box, seed):
    """Foreground anywhere, at the border or nowhere; enlarged, made smaller, and one of each."""
    scores = torch.randn(1, 4, *coarse, generator=torch.Generator().manual_seed(seed))
    scores[:, 0] += 8
    top, bottom, left, right = box
    scores[:, 0, top:bottom, left:right] -= 8
    expected = best_class(resample(scores, fine))[0]
    found = fine_classes(scores.to(memory_format=torch.channels_last), fine)
    assert found.dtype == torch.uint8 and found.shape == fine
    # Where two scores are as good as equal, rounding may decide.
    assert (found != expected).sum() <= 1


def test_resampling_keeps_the_field_of_view():
    ramp = torch.linspace(0, 1, 40).expand(1, 1, 40, 40)
    for shape in ((20, 20), (80, 80), (40, 25)):
        smaller = resample(ramp, shape)
        assert smaller.shape[-2:] == shape
        back = resample(smaller, (40, 40))
        assert (back - ramp)[..., 4:-4].abs().max() < 0.02


def test_making_an_image_smaller_averages_what_lies_between_the_pixels():
    """Else thin bright lines are there or not, as the grid happens to fall."""
    lines = torch.zeros(1, 1, 16, 16)
    lines[..., ::4] = 1
    found = resample(lines, (4, 4))
    assert found.min() > 0.15 and found.max() < 0.3


def test_a_filter_that_an_apple_gpu_lacks_is_done_on_the_processor(monkeypatch):
    class There:
        """A tensor on a GPU of Apple's."""

        shape, device = (1, 1, 8, 8), SimpleNamespace(type="mps")

        def cpu(self):
            return Here(torch.ones(self.shape))

    class Here(torch.Tensor):
        def to(self, device):
            return ("back", device.type, tuple(self.shape))

    monkeypatch.setattr(F, "interpolate", lambda slices, shape, **_: Here(torch.ones(1, 1, *shape)))
    assert resample(There(), (4, 4)) == ("back", "mps", (1, 1, 4, 4))
