"""What `astrogen demo` shows: galaxies and maps of its own data."""
