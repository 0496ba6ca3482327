"""Models on disk: what does not match is refused, with a remedy."""

import json
import shutil
import warnings

import pytest
import safetensors.torch
import torch
from conftest import CARD, ROOT

import SAUNetLib.model as model_module
from SAUNetLib.errors import ModelError, UsageError
from SAUNetLib.model import add_model, load_model, save_model
from SAUNetLib.model_card import ModelCard, available_models, find_model, is_model_name, model_names
from SAUNetLib.network import SAUNet


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy that may be spoilt."""
    for path in (tiny_model, tiny_model.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / tiny_model.name


def refused(path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert caught.value.exit_status == 4 and caught.value.remedy
    return caught.value


@pytest.mark.parametrize("name, usable", [
    ("saunet-lumbar", True), ("Wirbelsäule 2.1", True), ("my+model (2)", True), ("a..b", True), ("", False),
    ("..", False), ("a/b", False), ("a\\b", False), ("x.SafeTensors", False), ("a\0b", False),
    (" ", False), ("NUL", False), ("con", False), ("Aux .1", False), ("COM1", False), ("lpt9.2.0", False),
    ("console", True), ("com", True), ("COM10", True), ("my nul", True)])  # fmt: skip
def test_a_model_is_called_as_a_file_can_be(name, usable):
    assert is_model_name(name) is usable


def edit_card(model, **changes):
    card = model.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))


def test_saved_and_loaded_weights_are_the_same_in_half_precision(tmp_path):
    network = SAUNet(**CARD["network"])
    save_model(network, tmp_path / "a.safetensors", CARD)
    loaded = load_model(tmp_path / "a.safetensors")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.network.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    assert not loaded.network.training and loaded.card.name == "tiny"


def test_the_mean_of_two_versions_is_what_the_page_on_the_training_writes(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    code = page.partition("The mean of two versions' weights")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    first, second = (SAUNet(**CARD["network"]) for _ in range(2))
    (tmp_path / "runs" / "fifth").mkdir(parents=True)
    save_model(first, "saunet-lumbar-1.1.safetensors", CARD)
    save_model(second, "runs/fifth/saunet-lumbar.safetensors", CARD)
    exec(code, {})
    mean, old, new = load_model("saunet-lumbar-1.2.safetensors"), first.state_dict(), second.state_dict()
    for name, value in mean.network.state_dict().items():
        torch.testing.assert_close(value.double(), (old[name] * 0.25 + new[name] * 0.75).double(), rtol=1e-2, atol=1e-3)
    assert mean.card.version == "1.2"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_is_loaded_in_float32_whatever_the_caller_s_default_is(tiny_model, dtype):
    torch.set_default_dtype(dtype)
    try:
        assert {value.dtype for value in load_model(tiny_model).network.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_loading_leaves_the_filters_of_warnings_alone(tiny_model, monkeypatch):
    """They are those of all threads."""
    seen = []
    monkeypatch.setattr(
        model_module, "SAUNet", lambda **network: seen.append(list(warnings.filters)) or SAUNet(**network)
    )
    load_model(tiny_model)
    assert seen == [warnings.filters]


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(model, keep):
    model.write_bytes(model.read_bytes()[:keep])
    assert refused(model).code == "MODEL_DAMAGED"


def test_a_changed_byte_is_refused(model):
    content = bytearray(model.read_bytes())
    content[-5] ^= 1
    model.write_bytes(content)
    assert refused(model).code == "MODEL_DAMAGED"


def test_a_file_that_is_no_safetensors_is_refused_even_with_its_own_hash(model):
    import hashlib

    torch.save({"weights": torch.zeros(3)}, model)
    edit_card(model, sha256=hashlib.sha256(model.read_bytes()).hexdigest())
    assert refused(model).code == "MODEL_DAMAGED"


def resaved(model, weights):
    import hashlib

    content = safetensors.torch.save(weights)
    model.write_bytes(content)
    edit_card(model, sha256=hashlib.sha256(content).hexdigest())


def test_weights_of_another_shape_are_refused(model):
    weights = safetensors.torch.load_file(model)
    weights["head.weight"] = torch.zeros(5, 4, 1, 1)
    resaved(model, weights)
    assert refused(model).code == "MODEL_MISMATCH"


def test_missing_and_foreign_weights_are_refused(model):
    weights = safetensors.torch.load_file(model)
    del weights["head.bias"]
    resaved(model, weights)
    assert refused(model).code == "MODEL_MISMATCH"
    resaved(model, {"a": torch.zeros(2)})
    assert refused(model).code == "MODEL_MISMATCH"


def test_weights_that_are_no_numbers_are_refused(model):
    weights = safetensors.torch.load_file(model)
    weights["head.bias"][0] = float("nan")
    resaved(model, weights)
    assert refused(model).code == "MODEL_DAMAGED"


def test_weights_too_large_for_half_precision_are_kept_whole(tmp_path):
    """As infinities they would be a model that cannot be loaded."""
    network = SAUNet(**CARD["network"])
    name, value = next((name, value) for name, value in network.state_dict().items() if "running_var" in name)
    value[0] = 1e5
    save_model(network, tmp_path / "a.safetensors", CARD)
    loaded = load_model(tmp_path / "a.safetensors").network.state_dict()
    assert torch.equal(loaded[name], value)


def test_a_training_that_diverged_writes_no_model(tmp_path):
    network = SAUNet(**CARD["network"])
    network.state_dict()["head.bias"][0] = float("nan")
    with pytest.raises(UsageError, match="diverged") as caught:
        save_model(network, tmp_path / "a.safetensors", CARD)
    assert "smaller learning_rate" in caught.value.remedy and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"name": 3}', "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")]
)
def test_an_unreadable_card_is_refused(model, content):
    card = model.with_suffix(".json")
    card.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(model).code == "MODEL_CARD"


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"widths": [4, 4]}},
        {"network": {"layers": 3}},
        {"network": None},
        {"network": {"attention": "always"}},
        {"network": {"widths": [-4, 4, 8, 8, 8]}},
        {"network": {"widths": [4, 4, 0, 8, 8]}},
        {"pixel_mm": 0},
        {"pixel_mm": "wide"},
        {"classes": ["background", "vertebra"]},
        {"unknown": 1},
        {"sha256": 5},
        {"description": None},
        {"licence": 5},
        {"attribution": ["none"]},
        {"limits": "none"},
        {"limits": [1]},
        {"trained_on": None},
        {"validated_on": [1]},
    ],
)
@pytest.mark.filterwarnings("error")  # of PyTorch, about layers without weights
def test_a_card_with_impossible_entries_is_refused(model, changes):
    edit_card(model, **changes)
    assert refused(model).code == "MODEL_CARD"


@pytest.mark.parametrize("name", ["a/b", "CON", "x.safetensors", "a:b", ""])
def test_a_card_with_a_name_that_no_file_can_have_says_so(model, name):
    edit_card(model, name=name)
    error = refused(model)
    assert error.code == "MODEL_CARD" and repr(name) in error.cause and "name" in error.remedy


def test_a_card_that_asks_for_an_absurd_network_costs_no_memory(model):
    edit_card(model, network={"widths": [4_000, 8_000, 16_000, 32_000, 64_000]})
    assert refused(model).code == "MODEL_MISMATCH"


def test_a_missing_card_is_refused(model):
    model.with_suffix(".json").unlink()
    assert refused(model).code == "MODEL_CARD"


@pytest.mark.parametrize("name", ["nobody", "nobody.safetensors", "../tiny", "/etc/passwd", ""])
def test_unknown_names_are_refused(name):
    assert refused(name).code == "MODEL_NOT_FOUND"


def test_an_added_model_is_found_by_name_and_a_bad_one_is_not_added(model, tmp_path, monkeypatch):
    own = tmp_path / "own"
    monkeypatch.setenv("SAUNET_MODELS", str(own))
    assert add_model(model).name == "tiny"
    assert find_model("tiny") == own / "tiny.safetensors"
    assert "tiny" in [card.name for card in available_models()]
    assert sorted(path.name for path in own.iterdir()) == ["tiny.json", "tiny.safetensors"]
    for kind in ("json", "safetensors"):  # as macOS lays beside a file on other systems' disks
        (own / f"._tiny.{kind}").write_bytes(b"\0\5\26\7")
    card = own / "tiny.json"
    card.write_text(card.read_text(encoding="utf-8"), encoding="utf-8-sig")  # as some editors save it
    assert "tiny" in model_names() and "._tiny" not in model_names() and load_model("tiny").card.name == "tiny"
    edit_card(model, name="other", sha256="0")
    with pytest.raises(ModelError):
        add_model(model)
    assert not (own / "other.safetensors").exists()


@pytest.mark.parametrize("own, shipped, chosen", [
    ("1.9", "1.10", "shipped"), ("1.0", "1.0", "own"), ("1.1", "1.0", "own"), (1, "0.1", "shipped"),
    ("1.1", None, "own"), ("9" * 10_000, "1", "own"),
])  # fmt: skip
def test_an_old_copy_does_not_hide_the_model_shipped_since(model, tmp_path, monkeypatch, own, shipped, chosen):
    """A bundle leaves a copy among the user's models; it outlives the next installation of SAUNet."""
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    monkeypatch.setattr("SAUNetLib.model_card.resource", lambda _: tmp_path / "shipped")
    versions = {"own": own, "shipped": shipped}
    for folder, version in versions.items():
        if version is not None:
            (tmp_path / folder).mkdir()
            edit_card(model, version=version)
            for path in (model, model.with_suffix(".json")):
                shutil.copy(path, tmp_path / folder)
    assert find_model("tiny") == tmp_path / chosen / "tiny.safetensors"
    assert [card.version for card in available_models()] == [versions[chosen]]
    assert load_model("tiny").card.version == versions[chosen]


def test_a_model_that_its_name_would_not_choose_is_not_added(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    edit_card(model, name="saunet-lumbar", version="0.1")
    with pytest.raises(UsageError) as caught:
        add_model(model)
    assert "newer" in caught.value.cause and not (tmp_path / "own").exists()


def test_a_model_is_added_from_a_file_not_by_a_name(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    for name in ("saunet-lumbar", "tiny", str(model.with_suffix(".json"))):
        with pytest.raises(ModelError) as caught:
            add_model(name)
        assert caught.value.code == "MODEL_NOT_FOUND" and f"{name} is not a model file" in caught.value.cause
    assert not (tmp_path / "own").exists()


def test_a_model_is_added_under_its_card_s_name_whatever_its_file_is_called(model, tmp_path, monkeypatch):
    own = tmp_path / "own"
    monkeypatch.setenv("SAUNET_MODELS", str(own))
    edit_card(model, name="spine-x")
    for path in (model, model.with_suffix(".json")):
        path.rename(path.with_stem("download(1)"))
    add_model(model.with_stem("download(1)"))
    assert sorted(path.name for path in own.iterdir()) == ["spine-x.json", "spine-x.safetensors"]
    assert find_model("spine-x") == own / "spine-x.safetensors"


def test_a_damaged_copy_of_a_model_whose_version_has_no_number_is_replaced(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    edit_card(model, version="final")
    add_model(model)
    (tmp_path / "own" / "tiny.json").write_text("{")
    add_model(model)
    assert load_model("tiny").card.version == "final"


def test_a_folder_of_models_that_cannot_be_written_to_is_no_bug(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "file" / "own"))
    with pytest.raises(UsageError) as caught:
        add_model(model)
    assert caught.value.code == "OUTPUT_WRITE"


def test_a_model_that_cannot_be_saved_leaves_the_old_one(model, monkeypatch):
    """After hours of training a full disk must not cost what was there."""
    before = {path: path.read_bytes() for path in (model, model.with_suffix(".json"))}

    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelCard, "write", full)
    with pytest.raises(UsageError) as caught:
        save_model(SAUNet(**CARD["network"]), model, CARD)
    assert caught.value.code == "OUTPUT_WRITE"
    assert before == {path: path.read_bytes() for path in model.parent.iterdir()}


def test_a_user_without_a_home_has_the_shipped_models(model, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SAUNET_MODELS", raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    assert find_model().is_file()
    with pytest.raises(UsageError) as caught:
        add_model(model)
    assert "SAUNET_MODELS" in caught.value.remedy
