"""Labels to captions of a scene with them and of the same scene without them."""
