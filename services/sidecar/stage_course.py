"""An instance's way through its stages while it starts, fails and comes back."""

from __future__ import annotations

from headrace.edge.structured_log import get_logger
from headrace.model.errors import HeadraceError
from services.sidecar.domain.lifecycle import RECOVERY, Happening, Stage
from services.sidecar.status_board import StatusBoard

log = get_logger(__name__)

_PREPARING = (Stage.SLEEPING, Stage.FETCHING, Stage.BUILDING, Stage.STARTING, Stage.INIT, Stage.SELF_CHECK)
_LAPS = {
    Happening.FETCHED: "fetch",
    Happening.BUILT: "build",
    Happening.STARTED: "start",
    Happening.INITIALISED: "init",
    Happening.CHECKED: "self_check",
}


class StageCourse:
    """Moves the board of one instance; what failed goes back to the stage that it left."""

    def __init__(self, status: StatusBoard, instance: str) -> None:
        self._status = status
        self._instance = instance
        self._left = Stage.WARM

    def begin(self) -> None:
        """It prepares: stage times are measured from here."""
        self._status.start_clock()
        self.progress(Happening.PREPARE)

    def progress(self, happening: Happening) -> None:
        """A part of the start is over. Later starts of the component do not change the stage."""
        status = self._status
        if status.stage not in _PREPARING:
            return
        if happening in _LAPS:
            status.lap(_LAPS[happening])
        status.move(happening)
        if status.stage is Stage.WARM:
            log.info("warm", instance=self._instance, stage_ms=status.board.stage_ms)

    def fail(self, error: HeadraceError) -> None:
        """The cause is shown; once it failed, or shuts down, the stage stays."""
        status = self._status
        status.blame(error.message, error.reason)
        if status.stage in RECOVERY:
            self._left = status.stage
        if status.stage not in (Stage.FAILED, Stage.SHUTTING_DOWN, Stage.ENDED):
            log.error("failed", instance=self._instance, cause=error.message, reason=error.reason)
            status.move(Happening.FAIL)
        else:
            status.touch()

    def recover(self) -> bool:
        """Whether it had failed; then it is where it was before."""
        if self._status.stage is not Stage.FAILED:
            return False
        self._status.move(RECOVERY[self._left])
        return True
