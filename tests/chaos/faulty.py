"""``python -m tests.chaos.faulty``: the service as it is, around the fake engine, which fails in one way for each of
some grey levels, as a driver, a device and a bug in the batcher would."""

import sys
import time

from app import logs, server
from app.batching import Batcher
from app.engine import Answer, Ask, DeviceLost, OutOfMemory
from app.forward import Forward
from app.services import lanes_here
from app.settings import Settings
from tests.fakes import FakeEngine

ERROR, CROWD, NO_MEMORY, LOST, BUG = 250, 245, 240, 235, 230


class Faulty(FakeEngine):
    """``CROWD`` fits alone, ``NO_MEMORY`` never, and after ``LOST`` nothing works any more."""

    lost = False

    def __call__(self, asks: list[Ask]) -> list[Answer]:
        levels = [round(float(ask.pixels.mean())) for ask in asks]
        if ERROR in levels:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
        if NO_MEMORY in levels or (CROWD in levels and len(levels) > 1):
            raise OutOfMemory("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.lost = self.lost or LOST in levels
        if self.lost:
            raise DeviceLost("the device answers no call any more")
        if BUG in levels:
            Batcher._learn = None  # type: ignore[assignment,method-assign]
        time.sleep(0.005)
        return super().__call__(asks)


def main() -> None:
    settings = Settings()
    logs.configure(settings.log_level)
    server.serve(settings, lanes_here(lambda told, seen: Forward(Faulty(), told.max_pixels, seen)))


if __name__ == "__main__":
    sys.exit(main())
