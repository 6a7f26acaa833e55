"""Published tables of the four systems as data; what they are measured with, and where the values are from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tta_restore.engine.evaluate.tables import INPUT, DataSet, Printed, Row, Table
from tta_restore.engine.run.settings import Named

__all__ = ["TABLES"]

_FOUR = ("psnr", "ssim", "mae", "lpips")
_DPDD = "Abuolaim and Brown, ECCV 2020: 76 test scenes of 1680 x 1120"
_REALDOF = "Lee et al., CVPR 2021: 50 pairs"
_IFAN_PAGE = "Lee et al., CVPR 2021, project page"
_IFAN_NOTES = (
    "Images are cropped at the right and the bottom to multiples of 8 and restored whole; results are clipped to "
    "[0, 1] and measured as floats, without rounding. SSIM is that of scikit-image with a uniform 7 x 7 window.",
    "Official checkpoints were trained with shared horizontal filters and load so by themselves; taps that are never "
    "read are not predicted, which saves 12.0 G multiply-adds at 1280 x 720. The published count leaves out the "
    "adaptive convolution itself, 0.2 G.",
    "Published times are of the authors' GPU.",
)
_OTHERS = "quoted"


def _four(psnr: float, ssim: float, mae: float, lpips: float) -> dict[str, float]:
    """Return the values of the IFAN project page; it prints MAE in units of 0.1."""
    return dict(zip(_FOUR, (psnr, ssim, round(mae / 10, 6), lpips), strict=True))


_DPDD_SET = DataSet("DPDD", "dpdd", _FOUR, 76, about=_DPDD)
_REALDOF_SET = DataSet("RealDOF", "realdof", _FOUR, 50, about=_REALDOF)


def _ifan(name: str, values: tuple[float, ...], *, data: str = "DPDD", slot: str = "", **options: Any) -> Row:
    return Row(name, {data: _four(*values)} if values else {}, "ifan", slot or name, **options)


def _quoted(name: str, data: str, values: tuple[float, ...], **options: Any) -> Row:
    return Row(name, {data: _four(*values)}, reason=_OTHERS, **options)


_NO_FILTERS: dict[str, Any] = {"filters": False}
_ABLATION = Table(
    "ifan-table1",
    "IFAN: ablation of filters (F), disparity (D) and reblurring (R) on DPDD",
    "ifan",
    (_DPDD_SET,),
    (
        _ifan("baseline", (24.88, 0.753, 0.416, 0.289), config={**_NO_FILTERS, "disparity": False}),
        _ifan("D", (24.97, 0.761, 0.412, 0.280), config=_NO_FILTERS, parameters=10.58, gmacs=364.3),
        _ifan("F", (25.07, 0.765, 0.406, 0.271), config={"disparity": False}),
        _ifan("F+D", (25.18, 0.780, 0.403, 0.233), parameters=10.48, gmacs=362.9),
        _ifan("F+R", (25.28, 0.780, 0.400, 0.245), config={"disparity": False}),
        _ifan("F+D+R", (25.37, 0.789, 0.394, 0.217), slot="IFAN", parameters=10.48, gmacs=362.9),
    ),
    f"{_IFAN_PAGE}, ablation study",
    (
        "Weights of the ablations were not published: train them with `tta-restore train supervised` and "
        "`--model.filters false`, `--model.disparity false`, `--settings.reblur_weight 0` as the row says.",
        "The networks without filters follow the stated sizes, since their code is not published. This table of the "
        "project page prints a size for D and for F+D only. F+D+R restores with the network of F+D; the page's "
        "comparison, where the same values stand for the whole method, prints 10.48 M and 362.9 B for it.",
        *_IFAN_NOTES,
    ),
)

_IFAN_DPDD = Table(
    "ifan-dpdd",
    "IFAN: comparison on the DPDD test set",
    "ifan",
    (_DPDD_SET,),
    (
        Row("input", {"DPDD": _four(23.89, 0.725, 0.471, 0.349)}, INPUT),
        _quoted("JNB", "DPDD", (23.69, 0.707, 0.480, 0.442), seconds=105.8),
        _quoted("EBDB", "DPDD", (23.94, 0.723, 0.468, 0.402), seconds=96.58),
        _quoted(
            "DMENet", "DPDD", (23.90, 0.720, 0.470, 0.410), parameters=26.94, gmacs=1172.5, seconds=Printed("77.70")
        ),
        Row(
            "DPDNet-S", {"DPDD": _four(24.03, 0.735, 0.461, 0.279)}, "dpdnet_s", "DPDNet-S",
            parameters=35.25, gmacs=989.8, seconds=0.462,
        ),
        _quoted("DPDNet-D", "DPDD", (25.23, 0.787, 0.401, 0.224), parameters=35.25, gmacs=991.4, seconds=0.474),
        _ifan("IFAN", (25.37, 0.789, 0.394, 0.217), parameters=10.48, gmacs=362.9, seconds=0.014),
    ),
    f"{_IFAN_PAGE}, comparisons",
    (
        "The published topology of DPDNet-S has 31.03 M parameters, not the 35.25 M of this table; its own checkpoint "
        "belongs to the former.",
        *_IFAN_NOTES,
    ),
)  # fmt: skip

_IFAN_REALDOF = Table(
    "ifan-realdof",
    "IFAN: comparison on RealDOF",
    "ifan",
    (_REALDOF_SET,),
    (
        Row("input", {"RealDOF": _four(22.33, 0.633, 0.513, 0.524)}, INPUT),
        _quoted("JNB", "RealDOF", (22.36, 0.635, 0.511, 0.601)),
        _quoted("EBDB", "RealDOF", (22.38, 0.638, 0.509, 0.594)),
        _quoted("DMENet", "RealDOF", (22.41, 0.639, 0.508, 0.597)),
        Row("DPDNet-S", {"RealDOF": _four(22.67, 0.666, 0.506, 0.420)}, "dpdnet_s", "DPDNet-S"),
        _ifan("IFAN", (24.71, 0.748, 0.407, 0.306), data="RealDOF"),
    ),
    f"{_IFAN_PAGE}, comparisons",
    _IFAN_NOTES,
)

_UNKNOWN = "Its printed values could not be obtained from any source at hand; only measured ones are shown."
_IFAN_STEPS = Table(
    "ifan-table4",
    "IFAN: number of filter steps N on DPDD (Table 4 of the paper)",
    "ifan",
    (_DPDD_SET,),
    tuple(
        _ifan(
            f"N = {steps}", (), slot="IFAN" if steps == 17 else f"IFAN_{steps}", config={"num_steps": steps},
            parameters=10.48 if steps == 17 else None, gmacs=362.9 if steps == 17 else None,
        )
        for steps in (8, 17, 26, 35, 44)
    ),
    "Lee et al., CVPR 2021, Table 4",
    (_UNKNOWN, *_IFAN_NOTES),
)  # fmt: skip
_IFAN_16BIT = Table(
    "ifan-16bit",
    "IFAN: 16-bit images of DPDD (Table 1 of the supplement)",
    "ifan",
    (_DPDD_SET,),
    (Row("input", {}, INPUT), _ifan("IFAN", (), slot="IFAN_16bit")),
    "Lee et al., CVPR 2021, supplement, Table 1",
    (_UNKNOWN, *_IFAN_NOTES),
    bits=16,
)
_IFAN_DUAL = Table(
    "ifan-dual",
    "IFAN: dual-pixel views of DPDD (Table 2 of the supplement)",
    "ifan",
    (_DPDD_SET,),
    (Row("input", {}, INPUT), Row("IFAN dual", {}, "ifan_dual", "IFAN_dual")),
    "Lee et al., CVPR 2021, supplement, Table 2",
    (_UNKNOWN, "The network takes the center, right and left images.", *_IFAN_NOTES),
)


_PORT = "README of the MindSpore port (Hunter-Will/JDRL-mindspore), official PyTorch weights"
_JDRL_PLAIN_NOTES = (
    "Float images, no rounding to 8 bits. SSIM has a uniform 7 x 7 window and is the mean over channels.",
    "The tables of the paper itself could not be obtained.",
)
_JDRL_NOTES = (
    *_JDRL_PLAIN_NOTES,
    "Aligned: the sharp image is warped onto the restoration by PWC-Net's flow, half a pixel off at the borders as in "
    "the official code. Plain values are in frames.csv. Values against another flow network are not comparable.",
    "Weights of PWC-Net are non-commercial and not included.",
)
_FLOW = {"flow": "pwc"}
_ALIGNED = ("aligned_psnr", "aligned_ssim")
_SDD_ABOUT = "Li et al., AAAI 2023: test/blur and test/gt"


def _jdrl_rows(data: str, values: Mapping[str, float], networks: Mapping[str, str]) -> tuple[Row, ...]:
    """Return the networks of the conference version, with the values of the only row that any source gives."""
    return (
        Row("input", {}, INPUT, networks=networks),
        Row("UNet*", {}, "jdrl_unet", "UNet", {"bgr": True}, networks=networks, bgr=True),
        Row("MPRNet*", {data: values}, "", "MPRNet", networks=networks, source=_PORT),
        Row("IFAN*", {}, "ifan", "IFAN", networks=networks),
    )


_JDRL_SDD = Table(
    "jdrl-sdd",
    "JDRL: networks trained on misaligned pairs, on SDD",
    "jdrl",
    (DataSet("SDD", "sdd", _ALIGNED, about=_SDD_ABOUT, multiple=16),),
    (
        *_jdrl_rows("SDD", {"aligned_psnr": 26.88, "aligned_ssim": Printed("0.81")}, _FLOW),
        Row(
            "MPRNet* (converted, other flow network)",
            {"SDD": {"aligned_psnr": Printed("24.8"), "aligned_ssim": 0.753}}, source=_PORT, reason="quoted",
        ),
    ),
    "Li et al., AAAI 2023",
    _JDRL_NOTES,
)  # fmt: skip
_JDRL_DPDD = Table(
    "jdrl-dpdd",
    "JDRL: networks trained on misaligned pairs, on DPDD",
    "jdrl",
    (DataSet("DPDD", "dpdd", ("psnr", "ssim"), 76, about=_DPDD, multiple=16),),
    _jdrl_rows("DPDD", {"psnr": 25.73, "ssim": 0.792}, {}),
    "Li et al., AAAI 2023",
    _JDRL_PLAIN_NOTES,
)
_JDRL_JOURNAL = Table(
    "jdrl-journal",
    "Reblurring-guided JDRL, journal version: aligned metrics on three data sets",
    "jdrl",
    (
        DataSet("SDD", "sdd", _ALIGNED, about=_SDD_ABOUT, multiple=16),
        DataSet("DPDD", "dpdd", _ALIGNED, 76, about=_DPDD, multiple=16),
        DataSet("RealDOF", "realdof", _ALIGNED, 50, about=_REALDOF, multiple=16),
    ),
    (
        Row("input", {}, INPUT, networks=_FLOW),
        Row("UNet (conference)", {}, "jdrl_unet", "UNet", {"bgr": True}, networks=_FLOW, bgr=True),
        Row("UNet (journal)", {}, "jdrl_journal", "UNet_journal", networks=_FLOW),
        Row("Restormer (journal)", {}, "", "Restormer", networks=_FLOW),
    ),
    "Ren et al., IJCV 2025",
    (
        "The active lines of the journal code align the sharp image on every data set; its values may not be "
        "comparable with plain ones.",
        *_JDRL_NOTES,
    ),
)


#: Settings of the released meta-test script.
_META: dict[str, Any] = {
    "variant": "official",
    "num_patches": 20,
    "patch_size": 256,
    "lr": 2.5e-6,
    "reblur_lr": 2.5e-6,
    "adversarial_weight": 0.99,
    "discriminator_lr": 1e-6,
    "discriminator_clip": 0.01,
    "min_sharpness_gain": 0.0,
}
#: Deblurrer -> losses of its training, over all its outputs.
_DEBLURRERS: dict[str, dict[str, Any]] = {
    "MIMOUNet+": {
        "distance": {"name": "tta_restore.losses:l1_fourier_loss", "axes": "width"},
        "outputs": "all",
    },
    "MPRNet": {"distance": "tta_restore.losses:charbonnier_edge_loss", "outputs": "all"},
    "Restormer": {},
    "CDVD-TSP": {},
}
#: Deblurrer that spandrel does not know -> entries of its specification, and what a function of the user has to return.
_COPIES: dict[str, tuple[dict[str, Any], str]] = {
    "MIMOUNet+": ({}, "MIMO-UNet+ of your copy: an image in, three scales out, the last one of full size"),
    "CDVD-TSP": (
        {"frames": 5, "output": 3},
        "CDVD-TSP of your copy: five frames (B, 5, 3, H, W) in, a tuple out whose fourth entry is the middle one",
    ),
}
_META_NOTES = (
    "Results are rounded to 8 bits; identical frames count 100 dB; SSIM is that of the luma. DVD and REDS are "
    "measured with the rows that the official loader pads by reflection, to multiples of 32. RealBlur: brightness and "
    "geometry are fitted first, SSIM is RGB.",
    "Adaptation starts anew with every video; means are over frames, and clips.csv has each video.",
    "Meta-trained weights, and those of the reblurring network and the discriminator, were not published: give your "
    "own of `tta-restore train reblur` and `train meta`. Values were read from a scan of the paper.",
    "MIMOUNet+, MPRNet, Restormer and CDVD-TSP are networks of other projects: --weights takes a checkpoint that "
    "spandrel recognizes (MPRNet, Restormer), --models a module.path:callable of your copy.",
    "The released code can neither build CDVD-TSP nor run its loss: its rows adapt with the L1 distance of the middle "
    "frame.",
)


def _meta_row(
    name: str, model: str, published: Mapping[str, Mapping[str, float]], *, gan: bool, cycle: bool, meta: bool = True
) -> Row:
    spec, about = _COPIES.get(model, ({}, ""))
    if not gan and not cycle:
        return Row(name, published, slot=model, spec=spec, about=about)
    own = _META | _DEBLURRERS[model] | ({} if cycle else {"adversarial_weight": 1.0})
    networks = {"reblur": "reblur"} | ({"discriminator": "discriminator"} if gan else {})
    slot = f"{model}-meta" if meta else model
    method = Named("meta-transfer", own)
    return Row(name, published, slot=slot, spec=spec, about=about, method=method, networks=networks)


def _two(dvd: tuple[float, float], reds: tuple[float, float], realblur: tuple[float, float]) -> dict[str, Any]:
    values = zip(("DVD", "REDS", "RealBlur-J"), (dvd, reds, realblur), strict=True)
    return {name: {"psnr": psnr, "ssim": ssim} for name, (psnr, ssim) in values}


_TABLE1 = {
    "MIMOUNet+": (
        ((29.43, 0.914), (26.43, 0.859), (27.63, 0.837)),
        ((29.70, 0.917), (26.73, 0.859), (28.11, 0.851)),
    ),
    "MPRNet": (
        ((29.68, 0.918), (26.85, 0.864), (28.70, 0.873)),
        ((30.04, 0.921), (27.05, 0.864), (28.75, 0.876)),
    ),
    "Restormer": (
        ((29.67, 0.916), (26.93, 0.867), (28.96, 0.879)),
        ((30.01, 0.921), (27.21, 0.867), (29.07, 0.885)),
    ),
    "CDVD-TSP": (
        ((30.86, 0.938), (27.17, 0.891), (28.69, 0.873)),
        ((30.97, 0.939), (27.52, 0.892), (29.15, 0.887)),
    ),
}
_TABLE2 = {
    "MIMOUNet+": (29.43, 29.58, 29.62, 29.70),
    "MPRNet": (29.68, 29.83, 30.02, 30.04),
    "Restormer": (29.67, 29.81, 29.90, 30.01),
    "CDVD-TSP": (30.83, 30.94, 30.94, 30.97),
}
_LOSSES = {"baseline": (False, False), "cycle": (False, True), "GAN": (True, False), "GAN+cycle": (True, True)}
_DVD = "Su et al., CVPR 2017: 1000 test frames"

_META_TABLE1 = Table(
    "meta-table1",
    "Meta Transferring: four deblurrers trained on GoPro, on DVD, REDS and RealBlur-J",
    "meta",
    (
        DataSet("DVD", "dvd", images=1000, multiple=32, about=_DVD),
        DataSet("REDS", "reds", images=3000, multiple=32, about="Nah et al., CVPRW 2019: the 30 validation videos"),
        DataSet("RealBlur-J", "realblur", images=980, align=True, about="Rim et al., ECCV 2020: 50 test scenes"),
    ),
    tuple(
        _meta_row(f"{model} ({what})", model, _two(*values), gan=what == "meta", cycle=what == "meta")
        for model, both in _TABLE1.items()
        for what, values in zip(("baseline", "meta"), both, strict=True)
    ),
    "Liu et al., BMVC 2022, Table 1",
    _META_NOTES,
)
_META_TABLE2 = Table(
    "meta-table2",
    "Meta Transferring: losses of the inner reblur step, on DVD",
    "meta",
    (DataSet("DVD", "dvd", ("psnr",), images=1000, multiple=32, about=_DVD),),
    tuple(
        _meta_row(f"{model} ({what})", model, {"DVD": {"psnr": value}}, gan=gan, cycle=cycle)
        for model, values in _TABLE2.items()
        for value, (what, (gan, cycle)) in zip(values, _LOSSES.items(), strict=True)
    ),
    "Liu et al., BMVC 2022, Table 2",
    ("The baseline of CDVD-TSP is 30.83 dB here and 30.86 dB in Table 1 of the paper.", *_META_NOTES),
)


_FIVE = (
    DataSet("DPDD", "dpdd", images=76, multiple=16, about=_DPDD),
    DataSet("RealDOF", "realdof", images=50, multiple=16, about=_REALDOF),
    DataSet("LFDOF", "", images=725, multiple=16, about="Ruan et al., TCI 2021: input and ground_truth"),
    DataSet("RTF", "", images=22, multiple=16, about="D'Andres et al., TIP 2016: two folders of 22 images"),
    DataSet("CUHK", "cuhk", multiple=16, about="Shi et al., CVPR 2014: no sharp originals"),
)
_FOUR_SETS = ("DPDD", "RealDOF", "LFDOF", "RTF")


def _causiam(name: str, psnr: tuple[float, ...], ssim: tuple[float, ...], method: Named) -> Row:
    published = {
        data: {"psnr": psnr[i]} | ({"ssim": ssim[i]} if ssim else {}) for i, data in enumerate(_FOUR_SETS) if psnr
    }
    needs = {"semantic.pretrained": "CLIP"} if method.name == "causiam" else {}
    return Row(name, published, "dpdnet_s", "DPDNet-S", method=method, networks=needs)


_CAUSIAM_NOTES = (
    "Input and target are padded by reflection at the right and the bottom to multiples of 16 and measured padded; "
    "both are truncated to 8 bits. PSNR is RGB, the mean over images.",
    "Data sets follow one another in the order of the table; nothing is reset between them. CUHK has no originals: it "
    "is adapted on and not measured.",
    "Average: the mean over all images, as the printed one.",
    "The implementation of the published SSIM is not known; here it is the Gaussian 11 x 11 window.",
    "Weights of the authors' DPDNet-S are not part of the release at hand; CLIP is a file of open_clip's ViT-B-32.",
)
_CAUSIAM_FIVE = Table(
    "causiam-five",
    "CauSiam: continual adaptation of DPDNet-S over DPDD, RealDOF, LFDOF, RTF and CUHK",
    "causiam",
    _FIVE,
    (
        _causiam("source", (24.648, 23.254, 24.810, 23.578), (), Named("source")),
        _causiam("self-ensemble", (), (), Named("self-ensemble", {"views": "rot4"})),
        _causiam("TENT", (), (), Named("tent")),
        _causiam("CoTTA", (), (), Named("cotta")),
        _causiam("SAR", (), (), Named("sar")),
        _causiam("EATA", (), (), Named("eata")),
        _causiam("RoTTA", (), (), Named("rotta")),
        _causiam("SiamCTTA (all weights)", (), (), Named("siam-ctta")),
        _causiam(
            "CauSiam", (24.862, 23.713, 25.617, 24.399), (0.759, 0.687, 0.778, 0.785),
            Named("causiam", {"variant": "official"}),
        ),
    ),
    "CauSiam release README, Table 7 (arXiv 2501.09052)",
    (
        *_CAUSIAM_NOTES,
        "The self-ensemble has no published row. It shows what averaging four views gives without adaptation.",
    ),
    average="average",
    stream=True,
    average_published={"source": {"psnr": 24.676}, "CauSiam": {"psnr": 25.412, "ssim": 0.771}},
)  # fmt: skip

#: Symbol of the paper -> setting of the method, and the values of the sweep; the first one is the released value.
_SWEEP: dict[str, tuple[str, tuple[Any, ...]]] = {
    "eta": ("ema", (0.9, 0.5, 0.99, 0.999)),
    "K": ("steps", (1, 2, 3)),
    "N": ("views", ("rot4", "identity", "rot4_flip", "d4")),
    "alpha": ("semantic.res_scale", (0.05, 0.01, 0.1, 0.5)),
    "p": ("restore", (0.01, 0.0, 0.001, 0.1)),
}


def _sweep_rows() -> tuple[Row, ...]:
    official = _causiam("CauSiam", (), (), Named("causiam", {"variant": "official"}))
    rows = [official]
    for symbol, (key, values) in _SWEEP.items():
        for value in values[1:]:
            outer, _, inner = key.partition(".")
            own: dict[str, Any] = {outer: {inner: value} if inner else value}
            rows.append(_causiam(f"{symbol} = {value}", (), (), Named("causiam", {"variant": "official"} | own)))
    return tuple(rows)


_CAUSIAM_SWEEP = Table(
    "causiam-sweep",
    "CauSiam: sweeps of eta, K, N, alpha and p",
    "causiam",
    _FIVE,
    _sweep_rows(),
    "arXiv 2501.09052, ablations",
    (_UNKNOWN, "Rows change one setting of the released ones.", *_CAUSIAM_NOTES),
    average="average",
    stream=True,
)

_ALL = (
    _ABLATION, _IFAN_DPDD, _IFAN_REALDOF, _IFAN_STEPS, _IFAN_16BIT, _IFAN_DUAL, _JDRL_SDD, _JDRL_DPDD, _JDRL_JOURNAL,
    _META_TABLE1, _META_TABLE2, _CAUSIAM_FIVE, _CAUSIAM_SWEEP,
)  # fmt: skip
#: Published tables by name.
TABLES: Mapping[str, Table] = MappingProxyType({table.name: table for table in _ALL})
