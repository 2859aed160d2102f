"""Networks for dense prediction on the feature maps of a backbone of any family."""
