import json

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.export.formats import export

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_the_graph_takes_any_batch_and_names_its_outputs(tmp_path):
    import onnxruntime

    encoder = build_encoder(
        "vit_tiny_patch16_224", image_size=32, arch={"embed_dim": 32, "depth": 1, "num_heads": 2}
    ).eval()
    result = export(encoder, "onnx", tmp_path / "net.onnx", mean=[0.1], std=[0.2], provenance={"step": 3})
    session = onnxruntime.InferenceSession(str(result.path))
    assert [o.name for o in session.get_outputs()] == ["pooled", "patches", "cls"]
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32] and isinstance(session.get_inputs()[0].shape[0], str)
    images = torch.randn(5, 3, 32, 32)
    pooled, patches, cls = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        features = encoder(images)
    np.testing.assert_allclose(patches, features.patches_BND.numpy(), atol=1e-4)
    np.testing.assert_allclose(cls, features.cls_BD.numpy(), atol=1e-4)
    described = json.loads((tmp_path / "net.onnx.json").read_text())
    assert described["normalise"] == {"mean": [0.1] * 3, "std": [0.2] * 3} and described["provenance"] == {"step": 3}
