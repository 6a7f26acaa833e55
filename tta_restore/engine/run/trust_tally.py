"""Mean trust in the adapted model over the frames of a run, and why frames got none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tta_restore.adapters import StepReport

__all__ = ["TrustTally"]


@dataclass
class TrustTally:
    """Weight of the adapted model in the results of a run. ``str`` of it is empty where none was measured.

    Attributes:
        frames: number of frames whose trust was measured.
        total: sum of their trust.
        unadapted: number of those that are restored as without adaptation.
        reasons: last message on each of these, where there is one; frames without steps have that of the frame before.
    """

    frames: int = 0
    total: float = 0.0
    unadapted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    _latest: str | None = None

    def add(self, report: StepReport | None) -> None:
        """Count the report on a frame; one without trust is left out."""
        if report is None or report.trust is None:
            return
        self.frames += 1
        self.total += report.trust
        if report.trust > 0:
            self._latest = None
            return
        self.unadapted += 1
        # that further frames take no steps is not why this one is restored so
        reasons = [text for text in report.messages if not text.startswith("steady:")]
        if reasons:
            self._latest = reasons[-1].partition(" (")[0]  # without the numbers of its frame
        if self._latest is not None:
            self.reasons[self._latest] += 1

    def __str__(self) -> str:
        if not self.frames:
            return ""
        text = f"trust in the adapted model {self.total / self.frames:.2f}"
        if self.frames > 1:
            text += f" in the mean over {self.frames} frames"
            text += f"; {self.unadapted} restored as without adaptation" if self.unadapted else ""
        for reason, count in self.reasons.most_common(1):
            text += f" ({reason})" if count == self.unadapted else f" ({count} of them: {reason})"
        return text
