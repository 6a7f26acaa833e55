"""Long streams: what is recommended never stays below the source; what is published is shown as it is."""

import pytest
import torch

from tta_restore import adapters
from tta_restore.data.synthetic import defocus
from tta_restore.engine.evaluate.results import FrameRecord, StreamResult
from tta_restore.engine.evaluate.stream import evaluate_stream
from tta_restore.models import as_restorer, create_model


def record(method, index, psnr, stream=0):
    return FrameRecord(method, stream, index, "family", "photo", index, psnr, 0.9, 0.0, 0.0)


def test_the_worst_window_is_found_in_each_stream():
    gains = [1.0, -1.0, -2.0, 3.0, 0.0]
    records = [record("a", i, 20.0 + gain) for i, gain in enumerate(gains)] + [record("b", i, 20.0) for i in range(5)]
    result = StreamResult(tuple(records))
    assert result.worst_window("a", "b", 2) == (1, pytest.approx(-1.5))
    assert result.worst_window("a", "b", 5) == (0, pytest.approx(0.2))
    with pytest.raises(ValueError, match="at least 6 frames"):
        result.worst_window("a", "b", 6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_lenses_twenty_times_over(capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    frames = defocus.defocus_stream(frames_per_lens=2, rounds=20)
    assert len(frames) == 200
    source = as_restorer(create_model("lens_unet", checkpoint="specialist").eval())
    result = evaluate_stream(
        frames,
        {
            "source": lambda: adapters.Adapter(source),
            "recommended": lambda: adapters.recommended(source),
            "siam-ctta": lambda: adapters.SiamCTTA(source, select="all"),
        },
        progress=False,
    )
    torch.set_num_threads(threads)
    for length in (50, 200):
        windows = {name: result.worst_window(name, "source", length) for name in ("recommended", "siam-ctta")}
        with capsys.disabled():
            print(f"\nworst {length} frames over the source: {windows}")
        assert windows["recommended"][1] >= -0.05
