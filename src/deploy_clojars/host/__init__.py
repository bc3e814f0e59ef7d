"""What the host is: its instances, releases and journal, nginx and the service manager."""
