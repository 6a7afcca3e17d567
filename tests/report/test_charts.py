import re

import pytest

from magicseg.report.charts import line_chart, short_number


def _points(svg: str) -> list[tuple[float, float]]:
    found = re.search(r'<polyline class="curve" points="([^"]*)"', svg)
    assert found
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_falling_curve_goes_down_the_page():
    points = _points(line_chart([(0, 4.0), (10, 3.0), (20, 1.0)], label="loss"))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)


def test_a_curve_over_many_powers_of_ten_gets_a_logarithmic_axis():
    svg = line_chart([(0, 1.0), (1, 0.1), (2, 0.001)], label="focal")
    assert "logarithmic axis" in svg
    (_, first), (_, second), (_, third) = _points(svg)
    assert (third - second) / (second - first) == pytest.approx(2, abs=0.02)


def test_values_that_are_not_finite_are_left_out():
    points = _points(line_chart([(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)], label="loss"))
    assert len(points) == 2


@pytest.mark.parametrize("points", [[], [(0, float("nan"))]])
def test_a_curve_without_finite_values_becomes_a_sentence(points):
    assert "no finite values" in line_chart(points, label="loss")


@pytest.mark.parametrize("values", [[0.0], [5.0], [0.0, 0.0], [-2.0, -1.0], [1e-9, 1e9], [3.0, 3.0]])
def test_curves_of_any_values_stay_inside_the_chart(values):
    svg = line_chart(list(enumerate(values)), label="loss")
    drawn = re.findall(r'(?:y1|cy)="([-\d.]+)"', svg)
    if len(values) > 1:
        drawn += [y for _, y in _points(svg)]
    assert all(0 <= float(y) <= 200 for y in drawn)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    svg = line_chart([(step, 1.0 + step) for step in range(50_001)], label="loss")
    assert len(_points(svg)) <= 402
    assert "1 at step 0, 50001 at step 50000" in svg


def test_the_label_is_escaped():
    assert "<script>" not in line_chart([(0, 1.0)], label="<script>")


@pytest.mark.parametrize(
    ("value", "text"), [(700.0, "700"), (0.01251, "0.01251"), (2e-05, "2e-05"), (1 / 3, "0.3333")]
)
def test_numbers_are_short(value, text):
    assert short_number(value) == text
