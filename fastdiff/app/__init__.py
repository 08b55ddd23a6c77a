"""The digits, files and pictures behind the command line."""
