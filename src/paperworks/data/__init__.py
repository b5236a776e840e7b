"""Small real data that works offline, and loaders for the data sets that users bring."""
