"""What should wake a researcher up before the run is over: a training that falls apart."""

import dataclasses

# What a projector's `feature_std` is below when all images have become one to it.
COLLAPSED = 0.01


@dataclasses.dataclass
class LossWatch:
    """Whether the training loss rises again.

    Attributes:
        first: the first value that was logged.
        lowest: the lowest so far.
        rising: whether the alarm is on, which is then given once.
    """

    first: float | None = None
    lowest: float = 0.0
    rising: bool = False

    def update(self, loss: float) -> str | None:
        """The alarm, if the loss has lost more than half of what it had gained since the start.

        A gain below a tenth of the first value is taken for noise.

        Args:
            loss: the mean since the last call.
        """
        if self.first is None:
            self.first = self.lowest = loss
        self.lowest = min(self.lowest, loss)
        gained = self.first - self.lowest
        was, self.rising = (
            self.rising,
            (gained > 0.1 * abs(self.first) and loss - self.lowest > 0.5 * gained),
        )
        if not self.rising or was:
            return None
        return (
            f"divergence: train/loss is {loss:.4g} after {self.lowest:.4g}, more than half of what "
            "was learned is lost; try a lower learning rate, a longer warm-up or clip_norm"
        )
