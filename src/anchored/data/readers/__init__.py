"""Readers: from a row of the catalog to raw images; downloads and checks of files."""
