"""`python -m deploy_clojars`."""

from deploy_clojars.cli import main

if __name__ == "__main__":
    main()
