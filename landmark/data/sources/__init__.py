"""Sources of images: listings, published CSV files, tars, and images of any format."""
