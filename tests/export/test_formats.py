"""Every format against encoders of every kind: what is written loads by its documented lines and gives our numbers."""

import importlib.util
import json

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.load import load_encoder, load_normalise
from imprint.backbones.stored import save_encoder
from imprint.core.errors import CheckpointError, ConfigError, MissingExtra
from imprint.export import check
from imprint.export.formats import FORMATS, export

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
STAGES = {"layers": [1, 1, 1, 1]}
NARROW = {**STAGES, "channels": [16, 16, 24, 32]}
ENCODERS = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "arch": SMALL, "drop_path": 0.1}),
    "registers": ("vit_tiny_patch16_224", {"patch_size": 8, "arch": SMALL, "registers": 2, "mask_token": True}),
    "layer_scale": ("vit_small_patch14_dinov2", {"patch_size": 8, "arch": SMALL}),
    "sincos_grey": ("vit_tiny_patch16_224", {"patch_size": 8, "arch": SMALL, "positions": "sincos", "channels": 1}),
    "rotary": ("vit_small_patch16_dinov3", {"patch_size": 8, "arch": SMALL}),
    "swiglu": ("vit_tiny_patch16_224", {"patch_size": 8, "arch": {**SMALL, "mlp": "swiglu", "layer_scale": 0.1}}),
    "beit": (
        "beit_base_patch16_224",
        {"patch_size": 8, "arch": {**SMALL, "relative_positions": "shared", "absolute_positions": False}},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 2, "arch": {"embed_dim": 16, "layers": [1, 1], "heads": [2, 2], "window": 4}},
    ),
    "resnet18": ("resnet18", {}),
    "cifar": ("resnet18", {"stem": "cifar", "channels": 4}),
    "narrow_cifar": ("resnet18", {"stem": "cifar", "arch": NARROW}),
    "half": ("resnet18", {"stem": "half"}),
    "convnext": ("convnext_atto", {"arch": NARROW}),
    "tagged": ("resnet10t.c3_in1k", {"arch": NARROW}),
}
REFUSED = {
    ("timm", "cifar"), ("timm", "narrow_cifar"), ("hf", "cifar"), ("hf", "narrow_cifar"), ("timm", "half"),
    ("hf", "half"),
    *(("torchvision", kind) for kind in
      ("registers", "layer_scale", "sincos_grey", "rotary", "narrow_cifar", "convnext", "tagged", "swiglu", "beit",
       "swin")),
}  # fmt: skip
NEEDS = {"hf": ("transformers",), "onnx": ("onnx", "onnxruntime", "onnxscript")}
SLOW = {"onnx": {"registers", "narrow_cifar"}}  # tracing takes seconds each; the others add no new operation


def make(kind):
    name, options = ENCODERS[kind]
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=32, **options)
    with torch.no_grad():
        for parameter in encoder.parameters():  # fresh zeros and ones would hide what is lost
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        for buffer in encoder.buffers():
            if buffer.dtype == torch.float32 and buffer.ndim == 1:
                buffer.add_(torch.rand_like(buffer) * 0.1)
    return encoder.train()


def require(format):
    for package in NEEDS.get(format, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


def run_documented(result, images):
    """Return the pooled vector of what the documented lines load."""
    namespace: dict = {}
    exec(result.how_to_load, namespace)
    model = namespace["model"]
    if result.format == "onnx":
        return torch.from_numpy(model.run(["pooled"], {"images": images.numpy()})[0])
    with torch.no_grad():
        if result.format == "hf":
            out = model(pixel_values=images)
            pooled = getattr(out, "pooler_output", None)
            return out.last_hidden_state[:, 0] if pooled is None else pooled
        return model(images)


CASES = [(f, k) for f in FORMATS for k in ENCODERS if (f, k) not in REFUSED and k in SLOW.get(f, ENCODERS)]


@pytest.mark.parametrize(("format", "kind"), CASES)
def test_the_documented_lines_give_our_numbers(format, kind, tmp_path):
    require(format)
    encoder = make(kind)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    result = export(encoder, format, tmp_path / "out", mean=[0.4], std=[0.3])
    images = torch.randn(3, encoder.channels, 32, 32)
    with torch.no_grad():
        ours = encoder.eval().encode(images).pooled_BD
    torch.testing.assert_close(run_documented(result, images), ours, rtol=1e-3, atol=1e-4)
    assert result.path.exists() and 0 <= result.max_abs_diff < 1e-2
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize(("format", "kind"), sorted(REFUSED))
def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(format, kind, tmp_path):
    require(format)
    with pytest.raises(ConfigError, match="(?i)use --format"):
        export(make(kind), format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["safetensors", "timm", "hf"])
def test_our_own_loader_reads_what_was_exported(format, tmp_path):
    require(format)
    encoder = make("vit")
    export(encoder, format, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = encoder.eval()(images), load_encoder(tmp_path)(images)
    torch.testing.assert_close(theirs.patches_BND, ours.patches_BND)


def test_a_stored_run_is_exported_with_its_normalisation_and_provenance(tmp_path):
    save_encoder(make("registers"), tmp_path / "run", mean=[0.1, 0.2, 0.3], std=[1.0], provenance={"method": "dino"})
    result = export(tmp_path / "run", "safetensors", tmp_path / "out" / "net.safetensors")
    assert result.path == tmp_path / "out" / "net.safetensors"
    assert load_normalise(result.path) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    described = json.loads(result.path.with_suffix(".json").read_text())
    assert described["provenance"] == {"method": "dino"} and not described["encoder"]["mask_token"]
    assert "mask_token" not in load_encoder(result.path).state_dict()


def test_a_run_is_never_overwritten_by_its_own_export(tmp_path):
    run = tmp_path / "run"
    save_encoder(make("vit"), run)
    (run / "config.json").write_text('{"name": "dino"}')
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    for format in ("safetensors", "timm"):
        with pytest.raises(ConfigError, match="choose another"):
            export(run, format, run)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_unknown_formats_name_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'torchvision'"):
        export(make("vit"), "torchvison", "out")


def test_mean_and_std_must_fit_the_channels(tmp_path):
    with pytest.raises(ConfigError, match="3 values for 4 channels"):
        export(make("cifar"), "safetensors", tmp_path, mean=[0.1, 0.2, 0.3])
    assert load_normalise(export(make("cifar"), "safetensors", tmp_path).path)[0] == pytest.approx(
        (0.449,) * 4, abs=1e-3
    )


@pytest.mark.parametrize("package", NEEDS["onnx"])
def test_a_missing_package_names_its_extra(package, tmp_path, monkeypatch):
    import sys

    require("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"'{package}'.*imprint\[export\]"):
        export(make("vit"), "onnx", tmp_path)


def test_a_difference_is_an_error(tmp_path):
    ours = torch.ones(2, 3)
    assert check.compare(tmp_path, {"a": ours}, {"a": ours + 1e-7}, tolerance=1e-5) < 1e-6
    for wrong, message in ((ours + 1e-3, "differs"), (ours * float("nan"), "differs"), (ours[:1], "reads back as")):
        with pytest.raises(CheckpointError, match=message):
            check.compare(tmp_path, {"a": ours}, {"a": wrong}, tolerance=1e-5)


def test_a_corrupted_write_is_noticed(tmp_path, monkeypatch):
    """The file is changed between writing and reading back."""
    from safetensors.torch import load, save

    import imprint.export.timm_folder as timm_folder

    real = timm_folder.write_aside

    def spoil(path, content):
        if path.suffix == ".safetensors":
            state = load(content)
            state["norm.bias"] = state["norm.bias"] + 0.1
            content = save(state, metadata={"format": "pt"})
        real(path, content)

    monkeypatch.setattr(timm_folder, "write_aside", spoil)
    with pytest.raises(CheckpointError, match="do not use the file"):
        export(make("vit"), "timm", tmp_path)
