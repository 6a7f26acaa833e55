"""Published values of `reproduce`, compared with the specifications of the papers, value by value."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import tta_restore
from tta_restore.engine.evaluate.outcome import Cost, Entry, Outcome, entries_of, side_by_side
from tta_restore.engine.evaluate.published import TABLES
from tta_restore.engine.evaluate.tables import INPUT
from tta_restore.engine.train.config import SupervisedConfig
from tta_restore.models import list_models
from tta_restore.models.ifan import network

#: specs/ifan.md section 14 (project page): PSNR, SSIM, MAE x 10, LPIPS, parameters (M), MACs (B), seconds.
IFAN = {
    "ifan-table1": {
        "baseline": (24.88, 0.753, 0.416, 0.289, None, None, None),
        "D": (24.97, 0.761, 0.412, 0.280, 10.58, 364.3, None),
        "F": (25.07, 0.765, 0.406, 0.271, None, None, None),
        "F+D": (25.18, 0.780, 0.403, 0.233, 10.48, 362.9, None),
        "F+R": (25.28, 0.780, 0.400, 0.245, None, None, None),
        "F+D+R": (25.37, 0.789, 0.394, 0.217, 10.48, 362.9, None),
    },
    "ifan-dpdd": {
        "input": (23.89, 0.725, 0.471, 0.349, None, None, None),
        "JNB": (23.69, 0.707, 0.480, 0.442, None, None, 105.8),
        "EBDB": (23.94, 0.723, 0.468, 0.402, None, None, 96.58),
        "DMENet": (23.90, 0.720, 0.470, 0.410, 26.94, 1172.5, 77.70),
        "DPDNet-S": (24.03, 0.735, 0.461, 0.279, 35.25, 989.8, 0.462),
        "DPDNet-D": (25.23, 0.787, 0.401, 0.224, 35.25, 991.4, 0.474),
        "IFAN": (25.37, 0.789, 0.394, 0.217, 10.48, 362.9, 0.014),
    },
    "ifan-realdof": {
        "input": (22.33, 0.633, 0.513, 0.524, None, None, None),
        "JNB": (22.36, 0.635, 0.511, 0.601, None, None, None),
        "EBDB": (22.38, 0.638, 0.509, 0.594, None, None, None),
        "DMENet": (22.41, 0.639, 0.508, 0.597, None, None, None),
        "DPDNet-S": (22.67, 0.666, 0.506, 0.420, None, None, None),
        "IFAN": (24.71, 0.748, 0.407, 0.306, None, None, None),
    },
}

#: specs/jdrl.md section 6.7: PSNR, SSIM.
JDRL = {
    ("jdrl-sdd", "MPRNet*", "SDD"): {"aligned_psnr": 26.88, "aligned_ssim": 0.81},
    ("jdrl-sdd", "MPRNet* (converted, other flow network)", "SDD"): {"aligned_psnr": 24.8, "aligned_ssim": 0.753},
    ("jdrl-dpdd", "MPRNet*", "DPDD"): {"psnr": 25.73, "ssim": 0.792},
}

#: specs/meta.md section 10, Table 1: DVD, REDS, RealBlur-J.
META1 = """
MIMOUNet+ (baseline) 29.43 / 0.914 26.43 / 0.859 27.63 / 0.837
MIMOUNet+ (meta)     29.70 / 0.917 26.73 / 0.859 28.11 / 0.851
MPRNet (baseline)    29.68 / 0.918 26.85 / 0.864 28.70 / 0.873
MPRNet (meta)        30.04 / 0.921 27.05 / 0.864 28.75 / 0.876
Restormer (baseline) 29.67 / 0.916 26.93 / 0.867 28.96 / 0.879
Restormer (meta)     30.01 / 0.921 27.21 / 0.867 29.07 / 0.885
CDVD-TSP (baseline)  30.86 / 0.938 27.17 / 0.891 28.69 / 0.873
CDVD-TSP (meta)      30.97 / 0.939 27.52 / 0.892 29.15 / 0.887
"""

#: specs/meta.md section 10, Table 2: baseline, cycle, GAN, GAN+cycle on DVD.
META2 = {
    "MIMOUNet+": (29.43, 29.58, 29.62, 29.70),
    "MPRNet": (29.68, 29.83, 30.02, 30.04),
    "Restormer": (29.67, 29.81, 29.90, 30.01),
    "CDVD-TSP": (30.83, 30.94, 30.94, 30.97),
}

#: specs/causiam.md section 6.2: images, source PSNR, CauSiam PSNR, CauSiam SSIM.
CAUSIAM = {
    "DPDD": (76, 24.648, 24.862, 0.759),
    "RealDOF": (50, 23.254, 23.713, 0.687),
    "LFDOF": (725, 24.810, 25.617, 0.778),
    "RTF": (22, 23.578, 24.399, 0.785),
    "average": (873, 24.676, 25.412, 0.771),
}


def row_of(table, name):
    return next(row for row in TABLES[table].rows if row.name == name)


@pytest.mark.parametrize("table", IFAN)
def test_ifan(table):
    assert [row.name for row in TABLES[table].rows] == list(IFAN[table])
    (data,) = TABLES[table].data
    for name, (psnr, ssim, mae, lpips, parameters, gmacs, seconds) in IFAN[table].items():
        row = row_of(table, name)
        expected = {"psnr": psnr, "ssim": ssim, "mae": pytest.approx(mae / 10), "lpips": lpips}
        assert row.published == {data.name: expected}
        assert (row.parameters, row.gmacs, row.seconds) == (parameters, gmacs, seconds)


def test_jdrl():
    found = {
        (table, row.name, data): dict(values)
        for table in ("jdrl-sdd", "jdrl-dpdd", "jdrl-journal")
        for row in TABLES[table].rows
        for data, values in row.published.items()
    }
    assert found == JDRL


def test_meta_table1():
    lines = META1.strip().splitlines()
    assert len(lines) == len(TABLES["meta-table1"].rows)
    for line in lines:
        name, _, numbers = line.partition(")")
        numbers = [float(n) for n in numbers.replace("/", " ").split()]
        published = row_of("meta-table1", f"{name})").published
        found = [
            v for data in ("DVD", "REDS", "RealBlur-J") for v in (published[data]["psnr"], published[data]["ssim"])
        ]
        assert found == numbers


def test_meta_table2():
    assert len(TABLES["meta-table2"].rows) == 16
    for model, values in META2.items():
        for what, value in zip(("baseline", "cycle", "GAN", "GAN+cycle"), values, strict=True):
            assert row_of("meta-table2", f"{model} ({what})").published == {"DVD": {"psnr": value}}


def test_causiam():
    table = TABLES["causiam-five"]
    source, adapted = (row_of("causiam-five", name) for name in ("source", "CauSiam"))
    assert [data.name for data in table.data] == ["DPDD", "RealDOF", "LFDOF", "RTF", "CUHK"]
    for name, (images, before, after, ssim) in CAUSIAM.items():
        if name == "average":
            assert table.average_published == {"source": {"psnr": before}, "CauSiam": {"psnr": after, "ssim": ssim}}
            assert sum(data.images for data in table.data) == images
        else:
            assert table.data_set(name).images == images
            assert source.published[name] == {"psnr": before}
            assert adapted.published[name] == {"psnr": after, "ssim": ssim}
    quoted = [row.name for row in table.rows if row.published]
    assert quoted == ["source", "CauSiam"]


def test_tables_without_values_have_none():
    for name in ("ifan-16bit", "ifan-dual", "ifan-table4", "jdrl-journal", "causiam-sweep"):
        assert not any(row.published for row in TABLES[name].rows), name


def test_published_numbers_are_shown_with_the_digits_of_the_paper():
    def shown(name):
        table = TABLES[name]
        entries = entries_of(table, {})
        costs = {row.name: (Cost(row.parameters, row.gmacs, row.seconds), Cost()) for row in table.rows}
        return [{row: cells for row, *cells in rows} for _, _, rows in side_by_side(Outcome(table, entries, costs))]

    values, costs = shown("ifan-dpdd")
    assert values["EBDB"] == ["23.94", "0.723", "0.0468", "0.402"]
    assert [costs[row][-1] for row in ("JNB", "EBDB", "DMENet")] == ["105.8", "96.58", "77.70"]
    (values,) = shown("jdrl-sdd")
    assert values == {
        "MPRNet*": ["26.88", "0.81"],
        "MPRNet* (converted, other flow network)": ["24.8", "0.753"],
    }


def test_the_size_of_the_whole_ifan_is_told_where_it_is_printed():
    (note,) = [note for note in TABLES["ifan-table1"].notes if "F+D+R" in note]
    whole = row_of("ifan-table1", "F+D+R")
    (compared,) = [row for row in TABLES["ifan-dpdd"].rows if row.name == "IFAN"]
    assert (whole.published, whole.parameters, whole.gmacs) == (compared.published, compared.parameters, compared.gmacs)
    assert f"{whole.parameters} M and {whole.gmacs} B" in note


def test_every_row_can_be_measured_or_says_why():
    for table in TABLES.values():
        for row in table.rows:
            if row.model and row.model != INPUT:
                assert row.model in list_models("restorer"), (table.name, row.name)
            if row.measurable and row.model != INPUT:
                assert row.slot, (table.name, row.name)


SPECIFICATIONS = Path(tta_restore.__file__).parents[2] / "shared/specs"


def spec(name):
    path = SPECIFICATIONS / f"{name}.md"
    if not path.is_file():
        pytest.skip("the specifications are not part of the repository")
    return path.read_text(encoding="utf-8")


def cells_below(text, heading, count):
    """The first ``count`` rows of the table below a line that starts with ``heading``."""
    lines = text[text.index(f"\n{heading}") + 1 :].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2 : 2 + count]


def numbers(text):
    return [float(number) for number in re.findall(r"\d*\.\d+", text)]


def test_ifan_against_the_text_of_the_specification():
    text = spec("ifan")
    found = cells_below(text, "**Confirmed by the project page", 7)
    for row, (name, psnr, ssim, mae, lpips, *costs) in zip(TABLES["ifan-dpdd"].rows, found, strict=True):
        assert row.name == name
        printed = dict(zip(("psnr", "ssim", "mae", "lpips"), map(float, (psnr, ssim, mae, lpips)), strict=True))
        assert row.published["DPDD"] == pytest.approx(printed | {"mae": printed["mae"] / 10})
        assert [row.parameters, row.gmacs, row.seconds] == [float(c) if numbers(c) else None for c in costs]
    for table, sentence, names in (
        ("ifan-table1", "Ablation on DPDD", dict(zip(("baseline", "D", "F", "F+D", "F+R", "F+D+R"),
                                                     ("none", "D", "IFAN", "IFAN+D", "IFAN+R", "all"), strict=True))),
        ("ifan-realdof", "RealDOF (PSNR", {}),
    ):  # fmt: skip
        (line,) = re.findall(rf"^{re.escape(sentence)}.*$", text, re.MULTILINE)
        parts = line.partition(": ")[2].rstrip(".").split("; ")
        assert len(parts) == len(TABLES[table].rows)
        for row, part in zip(TABLES[table].rows, parts, strict=True):
            name, _, values = part.partition(" ")
            assert name == names.get(row.name, row.name)
            psnr, ssim, mae, lpips, *costs = numbers(values)
            (found,) = row.published.values()
            assert found == pytest.approx({"psnr": psnr, "ssim": ssim, "mae": mae / 10, "lpips": lpips})
            if table == "ifan-table1" and costs:
                assert [row.parameters, row.gmacs] == costs


def seed(prefix):
    paths = list((SPECIFICATIONS.parent / "seeds").glob(f"{prefix}_*.txt"))
    if not paths:
        pytest.skip("the publications are not part of the repository")
    return paths[0].read_text(encoding="utf-8")


def test_ifan_against_the_text_of_the_project_page():
    text = seed("002")
    printed = [line.split("\t") for line in text.splitlines() if len(numbers(line)) >= 4]
    rows = [row for name in ("ifan-table1", "ifan-dpdd", "ifan-realdof") for row in TABLES[name].rows]
    assert len(printed) == len(rows) == 19
    for row, cells in zip(rows, printed, strict=True):
        psnr, ssim, mae, lpips, *costs = numbers(" ".join(cells))
        (found,) = row.published.values()
        assert found == pytest.approx({"psnr": psnr, "ssim": ssim, "mae": mae / 10, "lpips": lpips})
        own = [value for value in (row.parameters, row.gmacs, row.seconds) if value is not None]
        if row.name == "F+D+R":  # printed once, for F+D, whose network is the same
            assert costs == []
            assert own == [10.48, 362.9]
        else:
            assert own == costs


def test_meta_against_the_text_of_the_paper():
    text = seed("003")
    lines = [
        re.findall(r"\d\d\.\d\d|0\.\d{3}", line)
        for line in text.splitlines()
        if line.startswith(("Baseline|", "Meta |"))
    ]
    found = [
        [value for data in row.published.values() for value in data.values()] for row in TABLES["meta-table1"].rows
    ]
    assert [[float(n) for n in line] for line in lines] == found
    for name in ("MIMOUnet+", "MPRNet", "Restormer", "CDVD-TSP"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ") and "(+" in line]
        rows = [row for row in TABLES["meta-table2"].rows if row.name.lower().startswith(f"{name.lower()} (")]
        assert [row.published["DVD"]["psnr"] for row in rows] == numbers(line)[:4]


def test_jdrl_against_the_text_of_the_specification():
    found = [row for row in cells_below(spec("jdrl"), "### 6.7", 9) if row[0].startswith("MPRNet*") and numbers(row[2])]
    expected = {("SDD" if "SDD" in row[1] else "DPDD", *numbers(f"{row[2]} {row[3]}")) for row in found}
    assert len(expected) == 3
    tables = [TABLES[name] for name in ("jdrl-sdd", "jdrl-dpdd", "jdrl-journal")]
    printed = [item for table in tables for row in table.rows for item in row.published.items()]
    assert {(data, *values.values()) for data, values in printed} == expected


def test_meta_against_the_text_of_the_specification():
    text = spec("meta")
    found = cells_below(text, "Table 1 (PSNR/SSIM", 8)
    for row, (_, what, *values) in zip(TABLES["meta-table1"].rows, found, strict=True):
        assert row.name.endswith(f"({what.lower()})")
        assert [list(row.published[data].values()) for data in row.published] == [numbers(value) for value in values]
    assert [name for name, *_ in found if name] == [
        row.name.partition(" ")[0] for row in TABLES["meta-table1"].rows[::2]
    ]
    for name, *values in cells_below(text, "Table 2 (DVD PSNR", 4):
        rows = [row for row in TABLES["meta-table2"].rows if row.name.startswith(f"{name} (")]
        assert [row.published["DVD"]["psnr"] for row in rows] == [numbers(value)[0] for value in values]


def test_causiam_against_the_text_of_the_specification():
    table = TABLES["causiam-five"]
    before, after = row_of("causiam-five", "source"), row_of("causiam-five", "CauSiam")
    for name, images, source, psnr, _, ssim in cells_below(spec("causiam"), "### 6.2", 5):
        if name == "average":
            own = [table.average_published[row] for row in ("source", "CauSiam")]
            assert sum(data.images for data in table.data) == int(images)
        else:
            own = [before.published[name], after.published[name]]
            assert table.data_set(name).images == int(images)
        assert own == [{"psnr": float(source)}, {"psnr": float(psnr), "ssim": float(ssim)}]


def test_notes_name_options_of_train_that_exist():
    sections = {entry.name: entry for entry in dataclasses.fields(SupervisedConfig)}
    notes = " ".join(note for table in TABLES.values() for note in table.notes)
    named = re.findall(r"--([a-z]+)\.(\w+)", notes)
    assert ("model", "filters") in named
    for section, entry in named:
        assert section in sections
        if section == "model":
            assert entry in inspect.signature(network.IFAN).parameters
        else:
            assert entry in {f.name for f in dataclasses.fields(sections[section].default_factory)}


def test_notes_and_columns_of_a_table_are_about_what_it_holds():
    assert not any("Aligned" in note for note in TABLES["jdrl-dpdd"].notes)
    assert not any("self-ensemble" in note for note in TABLES["causiam-sweep"].notes)
    table = TABLES["ifan-table4"]  # without published values
    entries = tuple(Entry(row.name, "DPDD", "psnr", None, 25.0, 2) for row in table.rows[:2])
    costs = {row.name: (Cost(10.5), Cost(10.476)) for row in table.rows[:1]}
    (_, header, rows), (_, cost_header, cost_rows) = side_by_side(Outcome(table, entries, costs, (), {}, ()))
    assert header == ["", "PSNR (dB) measured"]
    assert rows == [[row.name, "25.00"] for row in table.rows[:2]]
    assert cost_header == ["", "parameters (M) published", "measured"]
    assert cost_rows == [[table.rows[0].name, "10.5", "10.476"]]
