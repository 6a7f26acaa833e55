"""docs/inventory.md names objects, models and tests that exist."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import tta_restore
from tta_restore import adapters, losses, metrics, models
from tta_restore.engine.evaluate.published import TABLES
from tta_restore.engine.train.config import MisalignedSettings

ROOT = Path(tta_restore.__file__).parents[1]
TEXT = (ROOT / "docs/inventory.md").read_text()


def test_every_test_exists():
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", TEXT))
    assert len(named) > 30
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


def test_every_object_exists():
    for name in set(re.findall(r"`(tta_restore(?:\.\w+)+)`", TEXT)):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, leaf = name.rpartition(".")
            assert hasattr(importlib.import_module(module), leaf), name


def test_every_model_is_registered():
    named = {name for row in re.findall(r"models? `(\w+)`", TEXT) for name in [row]}
    assert named >= {"ifan", "jdrl_journal", "blur_conditioned", "video_reblur", "dpdnet_s"}
    assert named <= set(models.list_models())


def rows():
    return [line for line in TEXT.splitlines() if line.startswith("| ") and "`tests/" in line]


def test_rows_that_are_called_golden_read_recorded_tensors():
    golden = [row for row in rows() if "golden" in row.rpartition("|")[0].rpartition("|")[2]]
    assert len(golden) > 25
    for row in golden:
        tests = [(ROOT / name).read_text() for name in re.findall(r"`(tests/[\w/]+\.py)`", row)]
        assert any("golden" in text for text in tests), row


def test_every_part_has_a_place_and_a_test():
    for row in rows():
        part, where, test = (cell.strip() for cell in row.strip("|").split("|"))
        assert part, row
        assert where, row
        assert "`tests/" in test, row


def test_every_table_and_protocol_exists():
    named = {name for group in re.findall(r"reproduce ([\w-]+(?:`, `[\w-]+)*)`", TEXT) for name in group.split("`, `")}
    assert named == set(TABLES)
    assert set(re.findall(r'protocols\["([\w-]+)"\]', TEXT)) == set(metrics.protocols)


#: Registered networks that belong to none of the four publications.
OWN = {
    "conditioned_lens_unet",
    "lens_estimator",
    "lens_unet",
    "motion_reblur",
    "patch_critic",
    "residual_upscaler",
    "small_unet",
}


def test_every_loss_and_network_of_the_publications_is_listed():
    assert {name for name in losses.__all__ if name.endswith("_loss") and f"losses.{name}`" not in TEXT} == set()
    assert {name for name in models.list_models() if f"`{name}`" not in TEXT} == OWN


@pytest.mark.parametrize(("heading", "prefix"), [("Meta Transferring", "003"), ("CauSiam", "000")])
def test_every_figure_that_a_publication_names_is_mentioned(heading, prefix):
    paths = list((ROOT.parent / "shared/seeds").glob(f"{prefix}_*.txt"))
    if not paths:
        pytest.skip("the publications are not part of the repository")
    named = set(re.findall(r"(?:Figure|Fig\.) (\d)", paths[0].read_text(encoding="utf-8")))
    assert len(named) >= 5
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    listed = re.findall(r"Figures? ((?:\d(?:, | and )?)+)", section)
    assert named <= set(re.findall(r"\d", " ".join(listed)))


def test_stated_sizes():
    def count(name, **config):
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in models.create_model(name, **config).parameters())

    for number, found in (
        ("10,476,996", count("ifan")),
        ("10,477,860", count("ifan_dual")),
        ("10,578,116", count("ifan", filters=False)),
        ("9,099,971", count("ifan", filters=False, disparity=False)),
        ("31,033,423", count("dpdnet_s")),
    ):
        assert number in TEXT
        assert f"{found:,}" == number


def taken(cls):
    bases = cls.__mro__[:-1]
    return {name for base in bases for name in (*inspect.signature(base.__init__).parameters, *vars(base))}


def test_every_keyword_is_taken():
    for network, keywords in {
        models.ifan.IFAN: ("filters", "disparity", "num_steps", "reblur_config", "variant", "horizontal"),
        models.jdrl.JDRLReblur: ("one_branch",),
        models.jdrl.JDRLUNet: ("bgr",),
        models.video_reblur.VideoReblur: ("fusion", "variant"),
        adapters.SiamCTTA: ("views", "steps", "ema", "restore", "region", "tiles"),
        adapters.MetaTransfer: ("num_patches",),
    }.items():
        for keyword in keywords:
            assert keyword in TEXT
            assert keyword in taken(network), (network, keyword)
    assert hasattr(MisalignedSettings, "released")
    assert hasattr(MisalignedSettings, "multi_stage")
