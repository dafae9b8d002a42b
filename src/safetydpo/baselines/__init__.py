"""Methods to compare with that change UNet weights."""
