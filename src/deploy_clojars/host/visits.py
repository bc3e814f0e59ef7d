"""Who is connected to an instance: nginx with requests, and others."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from deploy_clojars.host import nginx
from deploy_clojars.host.nginx import visitors_from
from deploy_clojars.machine import connections
from deploy_clojars.machine.connections import Visitor
from deploy_clojars.machine.idle import without_idle


@dataclass(frozen=True)
class Visits:
    """Who is connected to an instance: nginx with requests, with nailgun clients, and others."""

    since_a_request: float = math.inf  # seconds since the last one ended, where that is known
    requests: tuple[Visitor, ...] = ()
    nailgun: tuple[Visitor, ...] = ()
    past_nginx: tuple[Visitor, ...] = ()

    @property
    def holders(self) -> list[str]:
        """Who keeps the instance from being drained, a line for each port."""
        ports = Counter(each.port for each in (*self.requests, *self.nailgun))
        return [
            f"nginx: {count} connection{'s' if count > 1 else ''} to port {port}"
            for port, count in ports.items()
        ]


@dataclass(frozen=True)
class Doors:
    """Where requests and nailgun clients come into an instance."""

    web: frozenset[int]  # ports
    nailgun: frozenset[int]  # ports where only connections can be seen and no requests
    listening: tuple[connections.Row, ...] = ()  # all sockets of this machine that do
    own: frozenset[int] | None = None  # its sockets (inodes); None if they are not all known
    elsewhere: frozenset[connections.Address] = frozenset()  # those that are not this machine's

    def lead_in(self, visitor: Visitor) -> bool:
        """Whether the visitor is in this instance, as far as that is known.

        Another address with the same port number may be another program's.
        """
        taken_by = connections.answering(self.listening, visitor.at, visitor.port)
        if self.own is None or not taken_by:
            return True
        return any(row.inode in self.own for row in taken_by)

    def visits(self) -> Visits:
        """Looks at who is connected now."""
        table = connections.Table(*self.web, *self.nailgun)
        at_web = [each for port in self.web for each in self._visitors(table, port)]
        at_nailgun = [each for port in self.nailgun for each in self._visitors(table, port)]
        ended = map(table.seconds_since_one_ended, self.web)
        since = min((seconds for seconds in ended if seconds is not None), default=math.inf)
        if not at_web and not at_nailgun:
            return Visits(since)
        own = nginx.own_processes()
        from_nginx = visitors_from(own, at_web)
        requests = without_idle(from_nginx) if from_nginx else []
        through_nginx = visitors_from(own, at_nailgun)
        others = [
            each for each in (*at_web, *at_nailgun) if each not in (*from_nginx, *through_nginx)
        ]
        return Visits(since, tuple(requests), tuple(through_nginx), tuple(others))

    def _visitors(self, table: connections.Table, port: int) -> list[Visitor]:
        here = [each for each in table.visitors(port) if self.lead_in(each)]
        away = [address for address in self.elsewhere if address[1] == port]
        return [*here, *(each for address in away for each in table.sent_to(address))]
