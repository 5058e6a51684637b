"""Two-phase traffic lights: the arms 0 and 2 of a junction share one phase, the arms 1 and 3 the other."""

from __future__ import annotations

from navsim_recogdrive.world.road_network import Connector, Junction

GREEN_S = 8.5
AMBER_S = 4.0
CLEARANCE_S = 2.5
"""All lights red, so that the junction empties."""
HALF_CYCLE_S = GREEN_S + AMBER_S + CLEARANCE_S


class Signals:
    """The lights of a town at any time.

    ``shift`` (seconds) moves all cycles, so that logs of one town differ.
    """

    def __init__(self, shift: float) -> None:
        self._shift = shift

    @classmethod
    def with_phase(cls, node: Junction, group: int, time: float, phase: float) -> Signals:
        """Lights of which ``group`` at ``node`` is ``phase`` seconds after its turning green at ``time``."""
        shift = phase - time - node.phase_offset - (0.0 if group == 0 else HALF_CYCLE_S)
        return cls(shift % (2.0 * HALF_CYCLE_S))

    def _phase(self, node: Junction, group: int, time: float) -> float:
        cycle = (time + self._shift + node.phase_offset) % (2.0 * HALF_CYCLE_S)
        return cycle if group == 0 else (cycle + HALF_CYCLE_S) % (2.0 * HALF_CYCLE_S)

    def colour(self, node: Junction, group: int, time: float) -> str:
        """``"green"``, ``"amber"`` or ``"red"`` for the arms of ``group`` at ``time`` seconds."""
        phase = self._phase(node, group, time)
        if phase < GREEN_S:
            return "green"
        return "amber" if phase < GREEN_S + AMBER_S else "red"

    def connector_colour(self, connector: Connector, node: Junction, time: float) -> str:
        """Colour for a connector; always green at a junction without lights."""
        return "green" if connector.signal_group is None else self.colour(node, connector.signal_group, time)

    def walk(self, node: Junction, arm: int, time: float) -> bool:
        """Whether pedestrians may step on the crosswalk of ``arm``: just after the cross street turned green."""
        return self._phase(node, 1 - arm % 2, time) < 2.5
