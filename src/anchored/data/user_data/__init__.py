"""A user's own images: folders, CSV and npz files, Hugging Face data sets."""
