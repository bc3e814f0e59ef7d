"""Load on a site whose instances are restarted, and the account of what came of it."""
