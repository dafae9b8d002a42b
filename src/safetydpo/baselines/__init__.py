"""Methods to compare with that change weights of the network."""
