"""The parts of the page: what it says, how it is marked up, and its plain files."""
