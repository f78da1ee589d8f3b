"""A reader whose decoder crashes or hangs. A file of its own, because child processes import it."""

from __future__ import annotations

import signal
import time

import numpy as np
from numpy.typing import NDArray

from training.data.frames import FrameReader
from training.datasets.split import Clip


class TreacherousReader(FrameReader):
    """The process dies at the clip `crash` and sleeps at the clip `hang`."""

    def read(self, clip: Clip, epoch: int = 0) -> NDArray[np.uint8]:
        if clip.id == "crash":
            signal.raise_signal(signal.SIGKILL)
        if clip.id == "hang":
            time.sleep(1000)
        return super().read(clip, epoch)
