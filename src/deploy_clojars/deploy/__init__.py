"""Deploy: each step of it in a file of its own."""
