"""Who is connected to an instance: nginx with requests, and others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deploy_clojars.host import nginx
from deploy_clojars.host.nginx import visitors_from
from deploy_clojars.machine import connections
from deploy_clojars.machine.connections import Visitor


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


def visits_at(web_ports: Sequence[int], nailgun_ports: Sequence[int]) -> Visits:
    """Looks at who is connected to an instance with these ports now."""
    table = connections.Table(*web_ports, *nailgun_ports)
    at_web = [each for port in web_ports for each in table.visitors(port)]
    at_nailgun = [each for port in nailgun_ports for each in table.visitors(port)]
    ended = map(table.seconds_since_one_ended, web_ports)
    since = min((seconds for seconds in ended if seconds is not None), default=math.inf)
    if not at_web and not at_nailgun:
        return Visits(since)
    own = nginx.own_processes()
    requests = visitors_from(own, at_web)
    through_nginx = visitors_from(own, at_nailgun)
    others = [each for each in (*at_web, *at_nailgun) if each not in (*requests, *through_nginx)]
    return Visits(since, tuple(requests), tuple(through_nginx), tuple(others))
