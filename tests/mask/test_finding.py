"""A detector's candidates to objects: thresholds, one label each, none twice."""

import numpy as np
import pytest

from magicseg.backends import Detections
from magicseg.config.finding import FindOptions
from magicseg.core.errors import BackendError
from magicseg.vision.finder import select_instances

pytestmark = pytest.mark.usefixtures("faulty")


def options(**changes):
    return FindOptions.model_validate({"detector": {"backend": "patches"}, **changes})


def candidates(*rows):
    """Rows of box, confidence and scores."""
    return Detections(
        boxes=np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        confidence=np.array([confidence for _, confidence, _ in rows], np.float32),
        scores=np.array([scores for _, _, scores in rows], np.float32).reshape(len(rows), -1),
    )


def test_a_box_is_of_its_best_label_if_both_thresholds_are_passed():
    found = candidates(
        ([0, 0, 5, 5], 0.9, [0.2, 0.8]),
        ([10, 0, 15, 5], 0.31, [0.26, 0.1]),
        ([20, 0, 25, 5], 0.29, [0.29, 0.1]),  # below the box threshold
        ([30, 0, 35, 5], 0.9, [0.24, 0.1]),  # sure of something, but not of a label
    )
    objects = select_instances(found, options())
    assert objects.labels.tolist() == [1, 0]
    assert objects.scores.tolist() == pytest.approx([0.8, 0.26])
    assert objects.boxes.tolist() == [[0, 0, 5, 5], [10, 0, 15, 5]]
    assert objects.best.tolist() == pytest.approx([0.29, 0.8])


def test_boxes_of_one_label_that_overlap_are_one_object_those_of_two_labels_are_not():
    found = candidates(
        ([0, 0, 10, 10], 0.8, [0.8, 0]), ([0, 0, 10, 11], 0.9, [0.9, 0]), ([0, 0, 10, 10], 0.7, [0, 0.7])
    )
    objects = select_instances(found, options())
    assert objects.labels.tolist() == [0, 1]
    assert objects.scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(select_instances(found, options(nms_iou=0.95))) == 3


def test_at_most_so_many_objects_of_a_label_the_best_ones():
    rows = [([10 * place, 0, 10 * place + 5, 5], 0.5 + place / 100, [0.5 + place / 100]) for place in range(9)]
    objects = select_instances(candidates(*rows), options(max_objects=3))
    assert objects.scores.tolist() == pytest.approx([0.58, 0.57, 0.56])


def test_a_box_without_an_area_is_none():
    rows = [
        ([7, 0, 7, 5], 0.9, [0.9]),
        ([7, 0, 7, 5], 0.8, [0.8]),
        ([0, 3, 9, 3.5], 0.7, [0.7]),
        ([0, 0, 2, 1], 0.6, [0.6]),
    ]
    assert select_instances(candidates(*rows), options()).boxes.tolist() == [[0, 0, 2, 1]]


def test_nothing_is_found_where_there_is_no_candidate():
    nothing = candidates(([0, 0, 5, 5], 0.0, [0.0, 0.0]))
    nothing = Detections(boxes=nothing.boxes[:0], confidence=nothing.confidence[:0], scores=nothing.scores[:0])
    objects = select_instances(nothing, options())
    assert len(objects) == 0
    assert objects.best.tolist() == [0, 0]


def test_an_unknown_detector_and_unknown_options_are_named():
    with pytest.raises(BackendError, match="no back end 'nothing' among the detectors"):
        options(detector={"backend": "nothing"})
    with pytest.raises(ValueError, match=r"detector\.options does not fit back end 'patches': colour"):
        options(detector={"backend": "patches", "options": {"colour": 3}})


def test_a_detector_s_defaults_are_written_out(tmp_path):
    chosen = options(
        detector={"backend": "transformers", "options": {"model": str(tmp_path), "device": "cpu", "dtype": "float32"}}
    )
    assert chosen.model_dump()["detector"]["options"]["text_length"] == 64
