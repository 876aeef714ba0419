"""`fedlearn device` that kills itself when its first update of a certain round is about to leave it.

python -m support.mortal_device ROUND
"""

import os
import signal
import sys

from fedlearn.cli import main
from fedlearn.device.uploads import Upload


def doom(number: int) -> None:
    bring = Upload.bring

    async def bring_or_die(self: Upload) -> None:
        if self._round.number == number:
            os.kill(os.getpid(), signal.SIGKILL)
        await bring(self)

    Upload.bring = bring_or_die  # type: ignore[method-assign] - it is what dies here


if __name__ == "__main__":
    doom(int(sys.argv[1]))
    sys.argv[1:] = ["device"]
    main()
