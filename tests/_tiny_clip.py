"""An open_clip model of a few thousand random weights, and a file with them: what weights from a file look like."""

import json

import pytest
import torch


def save_tiny_clip(folder):
    """Path of the file, and the model; ``OpenClipEncoder("tiny-test", path)`` reads it from then on."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    (folder / "tiny-test.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.create_model("tiny-test")
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt", model.eval()
