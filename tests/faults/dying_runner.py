"""The real runner with fail points, which also kills itself after it has reported a given progress of a stage.

``python -P -m tests.faults.dying_runner STAGE:DONE run.json --events-fd N``; ``-`` for no such progress.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Final

from tests.faults import failpoints
from worker.runner import __main__ as runner
from worker.runner import program
from worker.subprocesses.messages import EventWriter, Message, StageAdvanced

NOWHERE: Final = "-"


class DyingWriter(EventWriter):
    """An event writer that kills its process after the message that it waits for."""

    stage: str
    done: int

    def send(self, message: Message) -> None:
        """Send the message, and die if it is the awaited one."""
        super().send(message)
        if isinstance(message, StageAdvanced) and (message.name, message.done) == (self.stage, self.done):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Run the real runner."""
    place, run_file, *options = sys.argv[1:]
    failpoints.install("runner", Path(run_file).parents[3])  # <data>/work/<job>/<fence>/run.json
    if place != NOWHERE:
        DyingWriter.stage, _, done = place.partition(":")
        DyingWriter.done = int(done)
        program.EventWriter = DyingWriter  # type: ignore[misc]  # the one edge that this program is about
    return runner.main([run_file, *options])


if __name__ == "__main__":
    sys.exit(main())
