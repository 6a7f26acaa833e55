"""The training of the network that reads blur: radii are what was applied, and seeds decide."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.data.synthetic import photos
from tta_restore.degradations.blur_statistics import NUM_BLUR_STATISTICS, BlurNet
from tta_restore.engine.train import blur_net


def drawn(count=24):
    return list(blur_net.samples(photos.load("motorcycle_left"), count, torch.Generator().manual_seed(3)))


@pytest.mark.slow
def test_samples_are_seeded_and_blur_can_be_learned():
    first, second = drawn(), drawn()
    assert all(torch.equal(a.statistics, b.statistics) for a, b in zip(first, second, strict=True))
    assert all(one.statistics.shape[1] == NUM_BLUR_STATISTICS for one in first)
    assert {one.radius > 0 for one in first} == {False, True}
    assert max(one.radius for one in first) <= 5 * 1.5
    assert {len(one.statistics) for one in first} >= {1, 9}  # tiles of small frames and of large ones
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        records = blur_net.fit_blur_net(BlurNet(), first, torch.Generator().manual_seed(0), steps=100)
    assert records[-1]["loss"] < records[0]["loss"]


def test_photographs_are_found_once_in_their_largest_size(tmp_path):
    sizes = {
        "city_1920x1080.jpg": 300, "city_640x480.jpg": 250, "day-l.png": 260, "day-d.png": 240, "icon.png": 10,
        "a/contents/images/800x600.png": 210, "a/contents/images/1600x1200.png": 220,
        "b/contents/images/800x600.png": 230, "notes.txt": 900,
    }  # fmt: skip
    for name, kilobytes in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(kilobytes * 1000))
    found = {str(path.relative_to(tmp_path)) for path in blur_net.find_photos([tmp_path])}
    kept = {"city_1920x1080.jpg", "day-l.png", "a/contents/images/1600x1200.png", "b/contents/images/800x600.png"}
    assert found == {str(Path(name)) for name in kept}


def test_a_folder_that_is_missing_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        blur_net.main(["--photos", str(tmp_path / "none"), "--out", str(tmp_path / "net.safetensors")])
    assert stopped.value.code == 2
    assert "none is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        blur_net.main(["--photos", str(tmp_path), "--out", str(tmp_path / "net.safetensors")])
    assert "no photographs (.jpg, .jpeg, .png, .webp of at least 200 kB)" in capsys.readouterr().err


def test_weights_are_written_with_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(blur_net.photos, "TRAIN", ("motorcycle_left",))
    monkeypatch.setattr(blur_net, "fit_blur_net", lambda *arguments: [{"step": 1, "loss": 0.5}])
    blur_net.main(["--samples", "2", "--seed", "5", "--out", str(tmp_path / "net.safetensors")])
    log = json.loads((tmp_path / "net.json").read_text())
    assert log["command"].endswith("blur_net --samples 2 --seed 5 --out net.safetensors")
    assert (log["photographs"], log["seed"], log["parameters"]) == (1, 5, 3747)
    BlurNet().load_state_dict(load_file(tmp_path / "net.safetensors"))
