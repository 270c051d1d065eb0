"""How the machines of a cluster are shared out among workers."""

from dataclasses import dataclass

from server.errors import RequestError


@dataclass(frozen=True)
class Machine:
    """What Ray may use of it. A Mac's GPU is none of Ray's."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Share:
    """What each worker gets of its machine."""

    cpus: int
    gpus: int

    @classmethod
    def of(cls, machines: list[Machine], workers: int | None) -> "Share":
        """One GPU, if there are any. Otherwise a whole machine or, for more workers, the most cores that leave room for
        all of them.

        Raises RequestError if there is no room for that many.
        """
        wanted = workers or 1
        if any(machine.gpus for machine in machines):
            shares = [cls(min(max(1, machine.cpus // machine.gpus) for machine in machines if machine.gpus), 1)]
        else:
            most = min((machine.cpus for machine in machines if machine.cpus), default=1)
            shares = [cls(cpus, 0) for cpus in range(most, 0, -1)]
        for share in shares:
            if share.room(machines) >= wanted:
                return share
        raise RequestError(
            f"the cluster has no room for {wanted} workers; there is room for {shares[-1].room(machines)}", "workers"
        )

    def room(self, machines: list[Machine]) -> int:
        """How many workers these machines have room for."""
        rooms = (
            min(machine.cpus // self.cpus, machine.gpus // self.gpus) if self.gpus else machine.cpus // self.cpus
            for machine in machines
        )
        return sum(rooms)
