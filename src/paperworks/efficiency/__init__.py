"""Methods that make trained networks cheaper to run, to train or to store: fewer weights read, fewer bytes kept."""
