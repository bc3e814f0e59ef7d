"""The eight steps of plain-deploy by pyinfra, on this host: `pyinfra -y @local deploy.py`."""

import os

from pyinfra.operations import server

repository, tag, work, releases, bin, primary, backup = os.environ["DEPLOY"].split()
UP = "until curl --fail --silent --output /dev/null http://127.0.0.1:{}/; do sleep 0.1; done"

for command in (
    f"rm -rf {work}",
    f"git -c advice.detachedHead=false clone --quiet --branch {tag} {repository} {work}",
    f"cd {work} && lein test",
    f"cd {work} && lein uberjar",
    f"cp {work}/target/*-standalone.jar {releases}/clojars-web-{tag}-standalone.jar",
    f"ln -sfn clojars-web-{tag}-standalone.jar {releases}/clojars-web-current.jar",
    f"{bin}/restart clojars-backup",
    UP.format(backup),
    f"{bin}/restart clojars",
    UP.format(primary),
):
    server.shell(commands=[command])
