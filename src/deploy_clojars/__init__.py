"""Puts a new release of clojars.org into production, and back."""

__version__ = "0.1.0"
