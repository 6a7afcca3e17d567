"""Basics for all packages: errors, settings, files, documents, devices, processes. Imports no other package."""
