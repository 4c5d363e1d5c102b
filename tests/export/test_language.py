"""Networks for text leave with their tokenizer, and give the same tokens where they are read back."""

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.load import load_encoder
from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.core.errors import ConfigError
from imprint.export.formats import export

TEXT = "A dog runs over the green grass, and a cat sits near the old tree."


@pytest.fixture(scope="module", params=["bert", "albert", "gpt", "gpt2"])
def model(request):
    torch.manual_seed(0)
    tokenizer = train_tokenizer([TEXT] * 3, "bpe", vocabulary=300)
    arch = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    model = build_encoder(f"text:{request.param}", image_size=32, vocabulary=300, context=16, arch=arch)
    model.tokenizer = tokenizer
    return model.eval()


@pytest.mark.parametrize("format", ["safetensors", "hf"])
def test_it_reads_back_with_its_tokenizer(model, format, tmp_path):
    result = export(model, format, tmp_path / "out")
    assert result.max_abs_diff < 1e-4
    scope: dict = {}
    exec(result.how_to_load, scope)  # the documented lines are what is tested
    ids = torch.from_numpy(model.tokenizer.ids([TEXT])[0]).long()[None, :16]
    with torch.no_grad():
        theirs = scope["model"](ids) if format == "safetensors" else scope["model"](input_ids=ids).last_hidden_state
        torch.testing.assert_close(theirs, model(ids), rtol=1e-4, atol=1e-5)
    if format == "hf":
        words = scope["tokenizer"](TEXT, add_special_tokens=False)["input_ids"]
        assert words == model.tokenizer.ids([TEXT])[0].tolist() and scope["tokenizer"].pad_token_id == 0
    else:
        assert load_encoder(result.path).tokenizer.fingerprint == model.tokenizer.fingerprint


def test_formats_of_images_are_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="reads text, which the format onnx does not hold"):
        export(model, "onnx", tmp_path / "out")
