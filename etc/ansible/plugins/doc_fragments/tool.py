# Copyright: the authors of deploy-clojars
# MIT License (see https://opensource.org/license/mit)
"""The options that both modules have."""

from __future__ import annotations


class ModuleDocFragment:
    """Which tool to run, and with which configuration."""

    DOCUMENTATION = r"""
options:
  program:
    description:
      - The tool, as a path or a name. A name is looked up in C(PATH), C(/usr/local/bin), C(/opt/deploy-clojars/bin) and C(~/.local/bin).
    type: path
    default: deploy-clojars
  config:
    description: The tool's configuration file. By default the tool finds its own.
    type: path
"""
