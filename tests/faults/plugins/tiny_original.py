"""segment-anything with an additional tiny architecture for tests."""

import sys
from pathlib import Path

from magicseg.vision.shipped_models import OriginalSegmenter


class TinyOriginalSegmenter(OriginalSegmenter):
    """The segmenter ``tiny-original``."""

    def __init__(self, settings, options):
        from segment_anything import sam_model_registry

        sys.path.append(str(Path(__file__).parents[2]))
        from helpers.tiny_detectors import build_original_sam

        sam_model_registry["vit_tiny"] = build_original_sam
        super().__init__(settings, options)
