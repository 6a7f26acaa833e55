"""Iterative filter adaptive network (IFAN), its reblurring network and its checkpoints."""

from tta_restore.models.ifan.network import IFAN, IFANDual, IFANTraining
from tta_restore.models.ifan.reblur import IFANReblur

__all__ = ["IFAN", "IFANDual", "IFANReblur", "IFANTraining"]
