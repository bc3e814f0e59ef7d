"""Stand-ins for what tests cannot have: they behave as measured, and one option swaps them out."""
