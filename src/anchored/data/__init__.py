"""Images: the catalog of data sets, readers of their files, users' own images, batches of them."""
