"""The commands of ``durably``: a file for each word that a user types first."""
