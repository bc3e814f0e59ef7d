"""Deploy: each step in its own file."""
