"""The describe stage: captions of a scene with a sample's labels, and of the same scene without them."""
