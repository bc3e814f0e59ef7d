"""The tool, hit by every signal at every instant; a deploy tool is judged on its worst night.

`make torture N=300` deals N hits, `make torture N=1 SEED=…` repeats the one that failed. Nothing in
the product helps: where a run is, is read from its journal and its screen.
"""
