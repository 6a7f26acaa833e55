"""Declarative description of a published table: data sets, rows, published values and what each row is measured with.

Importing this module and :mod:`~tta_restore.engine.evaluate.published` does not import torch, so that
``tta-restore reproduce --list`` is quick.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError

__all__ = ["DECIMALS", "INPUT", "DataSet", "Printed", "Row", "Table", "chosen_rows"]

#: Model of a row that measures the degraded images themselves.
INPUT = "input"

#: Quantity -> digits after the point, as printed.
DECIMALS = {"psnr": 2, "ssim": 3, "mae": 4, "lpips": 3, "aligned_psnr": 2, "aligned_ssim": 3}


_SOURCE = Named("source")


class Printed(float):
    """A number with the digits of a publication, for those that differ from the other numbers of a column.

    Args:
        text: as printed, such as "24.8" in a column of two digits.
    """

    text: str

    def __new__(cls, text: str | float) -> Self:
        """Keep the text of the number."""
        number = super().__new__(cls, text)
        number.text = str(text)
        return number


@dataclass(frozen=True)
class DataSet:
    """A data set of a table.

    Attributes:
        name: NAME of ``--data NAME=DIR``.
        layout: registered layout of its folder, see :func:`tta_restore.data.datasets.layouts.register_layout`; empty
            for two folders of blurry and of sharp images under any of the usual names.
        quantities: measured quantities, in the order of the table's columns.
        images: number of images or frames that the published values are means over; 0 if it is not known.
        align: RealBlur's alignment of brightness and geometry before the metrics.
        multiple: sides that images are brought to a multiple of before the metrics, by the table's protocol: cropped
            (JDRL) or reflected (Meta Transferring, CauSiam); 0 to leave them.
        about: where the data set comes from.
    """

    name: str
    layout: str = ""
    quantities: tuple[str, ...] = ("psnr", "ssim")
    images: int = 0
    align: bool = False
    multiple: int = 0
    about: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: as printed, unique in its table.
        published: printed values by data set and quantity, of :class:`Printed` where their digits are to be kept; PSNR
            in dB, MAE in [0, 1].
        model: registered restorer, :data:`INPUT`, or ``module.path:callable``; empty for a network of another project,
            which ``--models NAME=MODEL`` or a checkpoint that spandrel recognizes provides.
        slot: NAME of ``--weights NAME=FILE`` and ``--models NAME=MODEL``; empty for a row without a network.
        config: keywords of the model's builder.
        spec: of a network of another project that has none, keywords of :class:`tta_restore.models.RestorerSpec`.
        about: what such a network takes and returns, for the list of what is missing.
        method: method around the restorer, see ``evaluate --methods``, with its settings.
        networks: further networks of the method or the protocol: argument -> NAME of ``--weights``.
        parameters: published number of parameters, in millions.
        gmacs: published multiply-accumulate operations, in billions.
        seconds: published seconds per image.
        bgr: whether the published pipeline gives its optical flow network the color channels in reverse order.
        source: where the published values are from, if not from the table's source.
        reason: why the row has published values only; empty for a row that can be measured.
    """

    name: str
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    model: str = ""
    slot: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    method: Named = _SOURCE
    networks: Mapping[str, str] = field(default_factory=dict)
    parameters: float | None = None
    gmacs: float | None = None
    seconds: float | None = None
    bgr: bool = False
    source: str = ""
    reason: str = ""

    @property
    def file(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("_")

    @property
    def measurable(self) -> bool:
        """Return whether the row can be measured, given data and weights."""
        return not self.reason


@dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
        name: on the command line.
        title: one line.
        protocol: name of the function that measures it, see :mod:`tta_restore.engine.evaluate.protocols`, or
            ``module.path:function``.
        data: data sets, in the order in which a continual protocol shows them.
        rows: rows, in print order.
        source: publication, and the section of the specification that the values are from.
        notes: sentences on how the protocol reads, and on what is not known.
        bits: 8 drops the lower bits of 16-bit files, 16 keeps them.
        average: name of a column with means over all images of all data sets; empty for none.
        stream: whether the images are one stream, so that PSNR over time is drawn.
        macs_size: height and width of the image that MACs are counted for.
        average_published: printed values of that column by row.
    """

    name: str
    title: str
    protocol: str
    data: tuple[DataSet, ...]
    rows: tuple[Row, ...]
    source: str
    notes: tuple[str, ...] = ()
    bits: int = 8
    average: str = ""
    stream: bool = False
    macs_size: tuple[int, int] = (720, 1280)
    average_published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"Table {self.name}: the row {min(twice)!r} occurs twice")
        known = {data.name for data in self.data}
        for row in self.rows:
            if strange := set(row.published) - known:
                raise ValueError(
                    f"Table {self.name}: {row.name} has values on {min(strange)}, not one of its data sets"
                )

    def data_set(self, name: str) -> DataSet:
        """Return a data set by name.

        Raises:
            KeyError: the table has none of that name.
        """
        return next(data for data in self.data if data.name == name)

    @property
    def slots(self) -> list[str]:
        """Every NAME that ``--weights`` takes, in order."""
        found = [name for row in self.rows if row.measurable for name in (row.slot, *row.networks.values())]
        return [name for name in dict.fromkeys(found) if name]


def chosen_rows(table: Table, names: Sequence[str] | None) -> Table:
    """Return the table with the rows of these names only; None for all.

    Raises:
        UsageError: there is no such row.
    """
    if names is None:
        return table
    known = [row.name for row in table.rows]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--rows: {table.name} has no row {unknown[0]!r}; there are: {', '.join(known)}")
    return replace(table, rows=tuple(row for row in table.rows if row.name in names))
