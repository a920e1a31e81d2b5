"""What many networks of one architecture answer, in batches over networks and images."""
