"""The eight steps of plain-deploy by Fabric, on this host: `fab deploy`."""

import os

from fabric import task

UP = "until curl --fail --silent --output /dev/null http://127.0.0.1:{}/; do sleep 0.1; done"


@task
def deploy(c):
    repository, tag, work, releases, bin, primary, backup = os.environ["DEPLOY"].split()
    c.run(f"rm -rf {work}")
    c.run(f"git -c advice.detachedHead=false clone --quiet --branch {tag} {repository} {work}")
    with c.cd(work):
        c.run("lein test")
        c.run("lein uberjar")
        c.run(f"cp target/*-standalone.jar {releases}/clojars-web-{tag}-standalone.jar")
    c.run(f"ln -sfn clojars-web-{tag}-standalone.jar {releases}/clojars-web-current.jar")
    c.run(f"{bin}/restart clojars-backup")
    c.run(UP.format(backup))
    c.run(f"{bin}/restart clojars")
    c.run(UP.format(primary))
