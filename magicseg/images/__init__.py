"""Reading of images, index maps, folders of images and COCO annotations: one reader each, for every command."""
